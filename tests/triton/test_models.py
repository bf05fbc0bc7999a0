"""All families on a GPU's kernels, in the interpreter, against transformers in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from models import test_dense_families as dense
from models.expert_cases import GPT_OSS_ROPE
from models.family_cases import (
    DELTA,
    DELTA_EXPERTS,
    HYBRID,
    JAMBA,
    LATENT,
    MAMBA_2,
    NEMOTRON_EXPERTS,
    make_model,
    transformers_logits,
)
from models.running import load, prompt_logits
from models.test_gemma_layers import EXPERTS, GEMMA3N, GEMMA4
from octavo.ops.table import Binding, Ops, bind
from octavo.ops.triton.experts_int import IntExperts
from octavo.worker.encoder import EncoderRunner
from support.interpreted_device import InterpretedDevice
from support.plain_encoders import jina_v2_rows, make_jina_v2, make_nomic_moe, nomic_moe_rows
from support.tiny_phi3_small import logits_of, make_phi3_small

PROMPT = torch.randint(0, 96, (21,), generator=torch.Generator().manual_seed(1)).tolist()
SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied-wide-heads": ("Llama", {"tie_word_embeddings": True, "head_dim": 24, "num_key_value_heads": 4}),
    "mistral-window": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 8, "attn_logit_softcapping": 2.0,
                          "final_logit_softcapping": 3.0}),
    "gpt2": ("GPT2", {"tie_word_embeddings": False, "n_inner": 48}),
    "gpt-neox": ("GPTNeoX", {"rotary_pct": 0.5}),
    "bloom": ("Bloom", {}),
    "phi3": ("Phi3", {"pad_token_id": None, "sliding_window": 8}),
    "olmo2": ("Olmo2", {"pad_token_id": None}),
    "opt-350m": ("OPT", {"ffn_dim": 48, "do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "apertus": ("Apertus", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "hunyuan": ("HunYuanDenseV1", {"head_dim": 16}),
    "ministral3": ("Ministral3", {"head_dim": 16, "rope_parameters": {
        "rope_theta": 500.0, "rope_type": "default", "llama_4_scaling_beta": 0.5,
        "original_max_position_embeddings": 8}}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek-v2-lite": ("DeepseekV2", {**LATENT, "q_lora_rank": None, "first_k_dense_replace": 1}),
    "granite-hybrid": ("GraniteMoeHybrid", {**HYBRID, "layer_types": ["full_attention", "linear_attention"],
                                            "num_local_experts": 0}),
    "qwen3-heads-of-512": ("Qwen3", {"head_dim": 512, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "jamba": ("Jamba", {**JAMBA, "num_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-next": ("Qwen3Next", {**DELTA, **DELTA_EXPERTS, "layer_types": ["linear_attention", "full_attention"],
                                 "linear_value_head_dim": 40}),
    "mamba2": ("Mamba2", {**MAMBA_2, "num_heads": 4}),
    "nemotron-h-latent-experts": ("NemotronH", {**NEMOTRON_EXPERTS, "moe_latent_size": 16,
                                                "layers_block_type": ["full_attention", "moe"]}),
    "lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16, "conv_bias": True}),
    "deepseek-v3": ("DeepseekV3", {**LATENT, "first_k_dense_replace": 2, "n_group": 3, "topk_group": 2}),
    "gpt-oss": ("GptOss", {"head_dim": 16, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 8,
                           "rope_parameters": GPT_OSS_ROPE}),
    "qwen2-moe": ("Qwen2Moe", {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
                               "shared_expert_intermediate_size": 24}),
    "gemma3": ("Gemma3", {"num_hidden_layers": 3, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24}),
    "gemma3n": ("Gemma3n", {**GEMMA3N, "num_hidden_layers": 2, "layer_types": ["sliding_attention"] * 2,
                            "num_kv_shared_layers": 1, "vocab_size_per_layer_input": 70, "altup_num_inputs": 2,
                            "activation_sparsity_pattern": [0.5, 0.0]}),
    "gemma4-experts": ("Gemma4", {**GEMMA4, **EXPERTS, "num_hidden_layers": 2, "num_kv_shared_layers": 0,
                                  "layer_types": ["sliding_attention", "full_attention"], "attention_k_eq_v": True,
                                  "num_global_key_value_heads": 1}),
}  # fmt: skip


DENSE = ("cohere-head-norms-biases", "falcon-40b", "gpt-j")


def ops(dtype: torch.dtype = torch.float32, **options: Any) -> Ops:
    binding = Binding(
        torch_device=torch.device("cpu"), activation_dtype=dtype, to_device=lambda weight: weight, **options
    )
    return bind("cuda", binding=binding)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    family, options = CASES[case]
    expected = transformers_logits(make_model(tmp_path, family, {**SMALL, **options}), [PROMPT])[0]
    table = ops()
    loaded = load(tmp_path, table)
    for chunk in (len(PROMPT), 6):
        (ours,) = prompt_logits(loaded, table, [PROMPT], chunk)
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)


def test_logits_where_heads_see_some_blocks_of_keys(tmp_path: Path) -> None:
    options = {"hidden_size": 32, "num_attention_heads": 4, "ff_intermediate_size": 32, "num_hidden_layers": 1}
    config, tensors = make_phi3_small(tmp_path, **options, blocksparse_num_local_blocks=1)
    prompt, table = 4 * PROMPT, ops()
    loaded = load(tmp_path, table)
    for chunk in (len(prompt), 30):
        (ours,) = prompt_logits(loaded, table, [prompt], chunk)
        torch.testing.assert_close(ours, logits_of(config, tensors, prompt), rtol=1e-3, atol=1e-3)


def test_logits_by_way_of_transformers(tmp_path: Path) -> None:
    model = make_model(tmp_path, "Gemma2", {**SMALL, **CASES["gemma2"][1]})
    table = ops()
    loaded = load(tmp_path, table, model_impl="transformers")
    assert not loaded.model.can_be_captured
    for chunk in (len(PROMPT), 6):
        (ours,) = prompt_logits(loaded, table, [PROMPT], chunk)
        torch.testing.assert_close(ours, transformers_logits(model, [PROMPT])[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", DENSE)
def test_logits_of_dense_families(case: str, tmp_path: Path) -> None:
    family, options = dense.CASES[case]
    model = dense.make_model(tmp_path, family, {**options, "hidden_size": 32, "num_hidden_layers": 2, "rotary_dim": 4})
    table = ops()
    (ours,) = prompt_logits(load(tmp_path, table), table, [PROMPT])
    torch.testing.assert_close(ours, transformers_logits(model, [PROMPT])[0], rtol=1e-3, atol=1e-3)


ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "windows to both sides": (
        "Gemma3TextModel", {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8,
                            "use_bidirectional_attention": True, "query_pre_attn_scalar": 24,
                            "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "biases by distance": ("MPNetModel", {}),
}  # fmt: skip


def encoded(path: Path) -> list[torch.Tensor]:
    """The rows of a prompt, and those of a shorter one beside it."""
    table = ops()
    loaded = load(path, table)
    runner = EncoderRunner(loaded.model.definition.program, table, InterpretedDevice(), loaded.weights)
    lens = [len(PROMPT), 1, 9]
    ids = np.array([*PROMPT, *PROMPT[:1], *PROMPT[:9]], np.int32)
    return list(runner.run(lens, token_ids=ids).clone().split(lens))


@pytest.mark.parametrize("case", ENCODERS)
def test_rows_of_encoders(case: str, tmp_path: Path) -> None:
    name, options = ENCODERS[case]
    config = getattr(transformers, name.replace("Model", "Config"))(
        vocab_size=96, num_attention_heads=2, max_position_embeddings=40, **SMALL, **options
    )
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path)
        for rows in encoded(tmp_path):
            expected = model(input_ids=torch.tensor([PROMPT[: len(rows)]])).last_hidden_state[0]
            torch.testing.assert_close(rows, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [make_jina_v2, make_nomic_moe], ids=["alibi to both sides", "experts"])
def test_rows_of_encoders_that_transformers_has_not(make: Any, tmp_path: Path) -> None:
    values = make(tmp_path)
    rows_of = jina_v2_rows if make is make_jina_v2 else nomic_moe_rows
    for rows in encoded(tmp_path):
        torch.testing.assert_close(rows, rows_of(values, PROMPT[: len(rows)]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_transformers_own(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make_model(tmp_path, "Llama", SMALL)
    expected = transformers_logits(model, [PROMPT])[0]
    theirs = transformers_logits(model.to(dtype), [PROMPT])[0].float()
    table = ops(dtype)
    (ours,) = prompt_logits(load(tmp_path, table), table, [PROMPT], kv_dtype=dtype)
    assert (ours - expected).abs().mean() <= 1.5 * (theirs - expected).abs().mean()


@pytest.mark.parametrize("quantization", ["bitsandbytes", "experts_int8"])
def test_matrices_and_experts_of_few_bits_are_those_of_a_cpu(quantization: str, tmp_path: Path) -> None:
    """Quantized while they load: the same values, multiplied in half precision."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_local_experts": 3}
    make_model(tmp_path, "Mixtral", {**sizes, "num_experts_per_tok": 2})
    native, table = bind("cpu"), ops(torch.float16)
    (expected,) = prompt_logits(load(tmp_path, native, quantization=quantization), native, [PROMPT])
    loaded = load(tmp_path, table, quantization=quantization)
    assert any(isinstance(weight, IntExperts) for weight in loaded.model.weights.values())
    (ours,) = prompt_logits(loaded, table, [PROMPT], kv_dtype=torch.float16)
    assert (ours - expected).norm() / expected.norm() < 0.01


@pytest.mark.parametrize("options", [{"quantization": "int8"}, {"quantization": "fp8"}, {"batch_invariant": True}])
def test_options_of_the_matrices_change_little(options: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    expected = transformers_logits(make_model(tmp_path, "Qwen3", {**sizes, "head_dim": 16}), [PROMPT])[0]
    table = ops(torch.bfloat16, **options)
    loaded = load(tmp_path, table)
    (ours,) = prompt_logits(loaded, table, [PROMPT], kv_dtype=torch.bfloat16)
    error = (ours - expected).norm() / expected.norm()
    assert error < {"int8": 0.05, "fp8": 0.15}.get(options.get("quantization", ""), 0.02)
