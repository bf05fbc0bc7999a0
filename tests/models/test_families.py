"""All families against transformers: tiny random models, whole-prompt logits in float32."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from models.expert_cases import EXPERT_CASES
from models.running import Run, load, prompt_logits
from octavo import _cpu
from octavo.base.errors import CheckpointError
from octavo.models.decoder import define
from octavo.models.registry import model_spec
from octavo.ops.run import Runner
from octavo.ops.table import bind

PROMPT_LENGTH = 45
PROMPTS = [
    torch.randint(0, 96, (PROMPT_LENGTH,), generator=torch.Generator().manual_seed(seed)).tolist() for seed in (1, 2)
]
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [1.5 + 0.3 * i for i in range(8)],
    "original_max_position_embeddings": 32,
}
MSCALE_ROPE = {**YARN_ROPE, "mscale": 0.9, "mscale_all_dim": 0.9}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 24,
    "v_head_dim": 20,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "n_shared_experts": 2,
}
MINICPM3: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 24,
}
LATENT_LONG_ROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.2 * i for i in range(8)],
}
HYBRID: dict[str, Any] = {
    "intermediate_size": 48,
    "shared_intermediate_size": 40,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "mamba_n_heads": 4,
    "mamba_n_groups": 2,
    "mamba_d_state": 24,
    "mamba_d_conv": 3,
}
JAMBA: dict[str, Any] = {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "mamba_d_state": 8,
    "mamba_dt_rank": 6,
    "use_mamba_kernels": False,
    "use_associative_scan": False,
}
LFM2_LAYERS = ["conv", "full_attention", "conv"]
GEMMA_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 5_000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}

#: Sizes that a family's configuration does not have.
FOREIGN: dict[str, tuple[str, ...]] = {
    "GPT2": ("num_key_value_heads", "intermediate_size"),
    "GPTNeoX": ("num_key_value_heads",),
    "Dbrx": (
        "num_key_value_heads",
        "intermediate_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ),
    "Bloom": ("num_key_value_heads", "intermediate_size", "max_position_embeddings"),
    "OPT": ("num_key_value_heads", "intermediate_size"),
    "Persimmon": ("num_key_value_heads",),
    "Mpt": (
        "num_key_value_heads",
        "intermediate_size",
        "max_position_embeddings",
        "hidden_size",
        "num_attention_heads",
    ),
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied-llama3-rope": ("Llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}),
    "llama-linear-rope-biases": ("Llama", {"rope_parameters": LINEAR_ROPE, "attention_bias": True, "mlp_bias": True}),
    "llama-yarn-rope": ("Llama", {"rope_parameters": YARN_ROPE}),
    "llama-wide-heads": ("Llama", {"head_dim": 32, "num_key_value_heads": 4}),
    "mistral-window": ("Mistral", {"sliding_window": 8}),
    "mistral-no-window": ("Mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2", {"rms_norm_eps": 1e-5}),
    "qwen2-tied-upper-windows": (
        "Qwen2",
        {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-tied-biases": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 32, "sliding_window": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3",
        {"num_hidden_layers": 7, "head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 24},
    ),
    "gemma3-softcap-ropes-untied": (
        "Gemma3",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": GEMMA_ROPES,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": False,
        },
    ),
    "gemma": ("Gemma", {"head_dim": 32, "num_key_value_heads": 1}),
    "gpt2": ("GPT2", {}),
    "gpt2-untied-inner": ("GPT2", {"n_inner": 96, "tie_word_embeddings": False, "activation_function": "relu"}),
    "gpt-neox": ("GPTNeoX", {"rotary_pct": 0.5}),
    "gpt-neox-sequential-no-bias": (
        "GPTNeoX",
        {"use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_new", "rotary_pct": 0.25},
    ),
    "bloom": ("Bloom", {}),
    "bloom-12-heads": ("Bloom", {"hidden_size": 96, "n_head": 12, "num_attention_heads": 12}),
    "phi3": ("Phi3", {"pad_token_id": None}),
    "phi3-longrope": (
        "Phi3",
        {
            "pad_token_id": None,
            "rope_parameters": LONG_ROPE,
            "max_position_embeddings": 96,
            "original_max_position_embeddings": 32,
        },
    ),
    "phi3-longrope-partial-window": (
        "Phi3",
        {
            "pad_token_id": None,
            "rope_parameters": {
                **LONG_ROPE,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.2] * 8,
                "long_factor": [2.5] * 8,
            },
            "max_position_embeddings": 96,
            "original_max_position_embeddings": 32,
            "sliding_window": 8,
            "hidden_size": 128,
        },
    ),
    "qwen3-moe": (
        "Qwen3Moe",
        {"head_dim": 32, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 48},
    ),
    "qwen3-moe-renormalized-sparse": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
        },
    ),
    "deepseek-v2-dense": ("DeepseekV2", {**LATENT, "q_lora_rank": 40, "first_k_dense_replace": 3}),
    "deepseek-v2-lite-yarn": (
        "DeepseekV2",
        {
            **LATENT,
            "q_lora_rank": None,
            "first_k_dense_replace": 1,
            "attention_bias": True,
            "rope_parameters": MSCALE_ROPE,
        },
    ),
    "deepseek-v2-unshared-mscale": (
        "DeepseekV2",
        {
            **LATENT,
            "kv_lora_rank": 48,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "n_shared_experts": 1,
            "rope_parameters": {**MSCALE_ROPE, "mscale": 0.7},
        },
    ),
    "deepseek-v2-groups": (
        "DeepseekV2",
        {
            **LATENT,
            "topk_method": "group_limited_greedy",
            "n_group": 3,
            "topk_group": 2,
            "routed_scaling_factor": 2.0,
            "n_shared_experts": 1,
        },
    ),
    "deepseek-v3": (
        "DeepseekV3",
        {**LATENT, "first_k_dense_replace": 1, "n_group": 3, "topk_group": 2, "rope_parameters": MSCALE_ROPE},
    ),
    "deepseek-v3-one-group": (
        "DeepseekV3",
        {**LATENT, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "norm_topk_prob": False, "attention_bias": True},
    ),
    "lfm2": ("Lfm2", {"layer_types": LFM2_LAYERS, "block_multiple_of": 32}),
    "lfm2-biases-4-taps": (
        "Lfm2",
        {"layer_types": LFM2_LAYERS[::-1], "conv_bias": True, "conv_L_cache": 4, "block_auto_adjust_ff_dim": False},
    ),
    "lfm2-moe": (
        "Lfm2Moe",
        {
            "layer_types": LFM2_LAYERS,
            "num_dense_layers": 1,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
        },
    ),
    "lfm2-moe-no-bias": (
        "Lfm2Moe",
        {
            "layer_types": LFM2_LAYERS,
            "num_dense_layers": 0,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "use_expert_bias": False,
            "norm_topk_prob": False,
        },
    ),
    "glm-4.7-flash": ("Glm4MoeLite", {**LATENT, "mlp_layer_types": ["dense", "dense", "sparse"]}),
    "minicpm3": ("MiniCPM3", {**MINICPM3, "tie_word_embeddings": False, "dim_model_base": 16}),
    "minicpm3-longrope": (
        "MiniCPM3",
        {
            **MINICPM3,
            "q_lora_rank": None,
            "v_head_dim": 24,
            "attention_bias": True,
            "rope_parameters": LATENT_LONG_ROPE,
        },
    ),
    "granite-hybrid": (
        "GraniteMoeHybrid",
        {
            **HYBRID,
            "num_local_experts": 4,
            "position_embedding_type": "rope",
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.25,
            "embedding_multiplier": 6.0,
            "logits_scaling": 3.0,
        },
    ),
    "granite-hybrid-dense": (
        "GraniteMoeHybrid",
        {
            **HYBRID,
            "num_local_experts": 0,
            "mamba_n_groups": 1,
            "mamba_n_heads": 2,
            "mamba_conv_bias": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "nemotron-h": (
        "NemotronH",
        {
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention"],
            "head_dim": 16,
            "mamba_num_heads": 4,
            "mamba_head_dim": 20,
            "n_groups": 2,
            "ssm_state_size": 16,
            "conv_kernel": 4,
            "mlp_bias": True,
        },
    ),
    "qwen3-heads-of-512": ("Qwen3", {"head_dim": 512, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "jamba": ("Jamba", {**JAMBA, "num_experts": 4, "num_experts_per_tok": 2}),
    "jamba-dense-biases": (
        "Jamba",
        {**JAMBA, "num_experts": 1, "num_experts_per_tok": 1, "mamba_proj_bias": True, "mamba_conv_bias": False},
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral-window-3-of-5": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 8}),
    **EXPERT_CASES,
}


def make_model(directory: Path, family: str, options: dict[str, Any], **saving: Any) -> Any:
    """A random model of transformers, saved to `directory`. Weights are large enough for differences to show."""
    config_name = f"{family}TextConfig" if family in ("Gemma3", "Llama4") else f"{family}Config"
    sizes = {key: value for key, value in {**SIZES, **options}.items() if key not in FOREIGN.get(family, ())}
    config = getattr(transformers, config_name)(**sizes)
    config._attn_implementation = "eager"
    model = getattr(transformers, "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            around_one = ("norm" in name or "ln_" in name) and not family.startswith(("Gemma", "Nemotron"))
            parameter.copy_(0.15 * noise + 1.0 if around_one else 0.15 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith(("e_score_correction_bias", "expert_bias")):
                buffer.copy_(0.15 * torch.randn(buffer.shape, generator=generator))
    model.save_pretrained(directory, **saving)
    return model


def transformers_logits(model: Any, prompts: list[list[int]]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor(prompts)).logits
    return logits


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """The models are so small that handing work to threads is most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("impl", ["reference", "auto"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, impl: Any, tmp_path: Path) -> None:
    family, options = CASES[case]
    expected = transformers_logits(make_model(tmp_path, family, options), PROMPTS)
    ops = bind("cpu", impl)
    loaded = load(tmp_path, ops)
    assert loaded.dtype == torch.float32
    for chunk in (PROMPT_LENGTH, 7, 1):
        ours = prompt_logits(loaded, ops, PROMPTS, chunk)
        torch.testing.assert_close(torch.stack(ours), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_token_costs_two_operations_for_each_weight_of_the_layers(case: str, tmp_path: Path) -> None:
    """K7: the benchmarks' count of operations is that of the matrices that the checkpoint holds."""
    family, options = CASES[case]
    make_model(tmp_path, family, options)
    config = json.loads((tmp_path / "config.json").read_text())
    definition = define(model_spec(config, str(tmp_path)))
    declared = definition.tensors.items()
    matrices = [(name, tensor.shape) for name, tensor in declared if ".layers." in name and len(tensor.shape) == 2]
    # Of the experts a token meets only some.
    config |= config.get("ffn_config", {})
    counts = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    chosen = ("moe_k", "moe_topk", "moe_top_k", "num_experts_per_tok")
    num_experts, top_k = (next((config[key] for key in keys if config.get(key)), 1) for keys in (counts, chosen))
    share = top_k / num_experts
    values = [rows * columns * (share if ".experts." in name else 1) for name, (rows, columns) in matrices]
    assert definition.layer_ops_per_token == round(2 * sum(values))


#: Families with operations that the others do not have.
OTHER_KINDS = (
    "gpt2", "gpt-neox", "bloom", "phi3-longrope-partial-window", "mixtral", "qwen3-moe", "gpt-oss", "qwen2-moe",
    "glm4-moe", "deepseek-v3", "lfm2", "jamba", "granite-hybrid", "nemotron-h",
)  # fmt: skip


def test_chunking_and_company_change_no_bit(tmp_path: Path) -> None:
    """The law of the kernels, through a whole model: windows, norms, biases and all."""
    for case in ("gemma2", "gemma3", "qwen2-tied-upper-windows", "gemma3-softcap-ropes-untied", *OTHER_KINDS):
        make_model(tmp_path / case, *CASES[case])
        ops = bind("cpu")
        loaded = load(tmp_path / case, ops)
        whole = prompt_logits(loaded, ops, PROMPTS)
        for chunk in (1, 7, 16):
            assert torch.equal(torch.stack(prompt_logits(loaded, ops, PROMPTS, chunk)), torch.stack(whole))
        assert torch.equal(prompt_logits(loaded, ops, PROMPTS[:1])[0], whole[0])


#: Those whose operations differ from layer to layer, or from those of the others.
ONE_CALL = [
    case for case in CASES if case not in EXPERT_CASES or case in ("gpt-oss", "qwen2-moe", "glm4-moe", "dbrx", "llama4")
]


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ONE_CALL)
def test_all_layers_in_one_call_change_no_bit(case: str, kv_dtype: torch.dtype, tmp_path: Path) -> None:
    """Of the same native operations called one by one: prompts in pieces, and more sequences than one."""
    family, options = CASES[case]
    make_model(tmp_path, family, options)
    native = bind()
    assert native.implementations["program_runner"] == "cpu"
    one_by_one = dataclasses.replace(native, program_runner=Runner)
    prompts = [[3, 14, 15, 9, 2, 6, 5] * 5, [2, 7, 1, 8, 2, 8, 1] * 5]
    found = [
        prompt_logits(load(tmp_path, ops), ops, prompts, chunk=9, kv_dtype=kv_dtype) for ops in (native, one_by_one)
    ]
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("impl", ["reference", "auto", "one by one"])
@pytest.mark.parametrize("case", ["llama", "gemma3", "gpt-neox", "mixtral"])
def test_the_rows_that_are_needed_are_those_of_the_whole_step(impl: str, case: str, tmp_path: Path) -> None:
    family, options = CASES[case]
    make_model(tmp_path, family, options)
    ops = bind("cpu", "reference" if impl == "reference" else "auto")
    loaded = load(tmp_path, dataclasses.replace(ops, program_runner=Runner) if impl == "one by one" else ops)
    whole = Run(loaded, ops, 2, PROMPT_LENGTH + 1, torch.float32)
    part = Run(loaded, ops, 2, PROMPT_LENGTH + 1, torch.float32)
    expected = torch.cat(whole.step([prompt[:20] for prompt in PROMPTS]))
    for needed in ([3, 19, 20, 39], list(range(40)), []):
        part.lens = [0, 0]
        (found,) = part.step([prompt[:20] for prompt in PROMPTS], needed)
        torch.testing.assert_close(found, expected[needed], rtol=0, atol=1e-5 if impl == "reference" else 0)
    # All keys and values were written: the next step's context is whole.
    for mine, theirs in zip(part.step([[1], [2]]), whole.step([[1], [2]]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 if impl == "reference" else 0)


def round_weights(model: Any, dtype: torch.dtype) -> Any:
    """`model.to` would round the rope frequencies too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_weights_are_computed_with_in_float32(dtype: str, tmp_path: Path) -> None:
    """But for bfloat16 where the processor multiplies it: there activations are rounded to it, too."""
    model = make_model(tmp_path, "Llama", {})
    round_weights(model, getattr(torch, dtype)).save_pretrained(tmp_path)
    expected = transformers_logits(round_weights(model, torch.float32), PROMPTS)
    for impl in ("reference", "auto"):
        ops = bind("cpu", impl)
        loaded = load(tmp_path, ops)
        assert loaded.dtype == getattr(torch, dtype)
        rounds = impl == "auto" and dtype == "bfloat16" and _cpu.isa() == "avx512_vnni"
        tolerance = 0.1 if rounds else 1e-4
        ours = torch.stack(prompt_logits(loaded, ops, PROMPTS))
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


def test_the_dtype_flag_converts_the_weights(tmp_path: Path) -> None:
    model = make_model(tmp_path, "Llama", {})
    rounded = round_weights(round_weights(model, torch.bfloat16), torch.float32)
    expected = transformers_logits(rounded, PROMPTS)
    ops = bind("cpu", "reference")
    loaded = load(tmp_path, ops, dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    # Norms stay float32 with us and were rounded by transformers.
    torch.testing.assert_close(torch.stack(prompt_logits(loaded, ops, PROMPTS)), expected, rtol=0.05, atol=0.05)
    assert load(tmp_path, ops, dtype="half").dtype == torch.float16
    assert load(tmp_path, ops, dtype="float").dtype == torch.float32


def test_shards_hold_the_same_model_as_one_file(tmp_path: Path) -> None:
    model = make_model(tmp_path / "one", "Qwen2", {})
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    ops = bind("cpu", "reference")
    one, shards = (prompt_logits(load(tmp_path / kind, ops), ops, PROMPTS)[0] for kind in ("one", "shards"))
    assert torch.equal(one, shards)


def test_dummy_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    make_model(tmp_path, "Gemma3", {"head_dim": 16})
    (tmp_path / "model.safetensors").unlink()
    ops = bind("cpu", "reference")
    run = partial(load, tmp_path, ops, load_format="dummy", dtype="float32")
    first, again, other = (prompt_logits(run(seed=seed), ops, PROMPTS)[0] for seed in (5, 5, 6))
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("case", ["gpt2", "gpt-neox", "bloom", "phi3", "mixtral"])
def test_dummy_weights_need_no_layout(case: str, tmp_path: Path) -> None:
    make_model(tmp_path, *CASES[case])
    (tmp_path / "model.safetensors").unlink()
    ops = bind("cpu")
    loaded = load(tmp_path, ops, load_format="dummy", dtype="float32")
    assert torch.isfinite(prompt_logits(loaded, ops, PROMPTS[:1])[0]).all()


def test_a_tensor_that_is_there_under_two_names_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path, *CASES["gpt2"])
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["wte.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'transformer\.wte\.weight' and 'wte\.weight'|'wte\.weight' and"):
        load(tmp_path, bind())


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_the_prefix_of_gpt2_may_be_absent(prefix: str, tmp_path: Path) -> None:
    """And its buffers are no weights."""
    expected = transformers_logits(make_model(tmp_path, *CASES["gpt2"]), PROMPTS)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.replace("transformer.", prefix): tensor for name, tensor in tensors.items()}
    tensors[f"{prefix}h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    save_file(tensors, tmp_path / "model.safetensors")
    ops = bind()
    ours = torch.stack(prompt_logits(load(tmp_path, ops), ops, PROMPTS))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_the_list_of_long_rope_follows_the_longest_context(tmp_path: Path) -> None:
    """transformers takes the short factors while a prompt fits the original context; a text must not change its own."""
    model = make_model(tmp_path, *CASES["phi3-longrope"])
    short = [PROMPTS[0][:30]]
    ops = bind()
    ours = prompt_logits(load(tmp_path, ops, max_model_len=32), ops, short)[0]
    torch.testing.assert_close(ours, transformers_logits(model, short)[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(prompt_logits(load(tmp_path, ops), ops, short)[0], ours, atol=1e-2)


def old_style(config: dict[str, Any]) -> None:
    """Rewrite a configuration to the keys that transformers 4 wrote."""
    rope = config.pop("rope_parameters")
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = {"type": kind, **rope} if kind != "default" else None


def old_style_of_neox(config: dict[str, Any]) -> None:
    rope = config.pop("rope_parameters")
    config |= {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]}


def drop_defaults(config: dict[str, Any]) -> None:
    """What gemma's published configurations leave out."""
    for key in ("hidden_activation", "tie_word_embeddings", "layer_types"):
        config.pop(key, None)


@pytest.mark.parametrize(
    ("case", "rewrite"),
    [
        ("llama-tied-llama3-rope", old_style),
        ("llama-yarn-rope", old_style),
        ("qwen2-tied-upper-windows", old_style),
        ("gemma2", old_style),
        ("gemma3", old_style),
        ("phi3-longrope", old_style),
        ("gpt-neox", old_style_of_neox),
        ("gemma2", drop_defaults),
        ("gemma3", drop_defaults),
    ],
)
def test_older_configurations_mean_the_same(
    case: str, rewrite: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    make_model(tmp_path, *CASES[case])
    ops = bind("cpu", "reference")
    new = load(tmp_path, ops).spec
    config = json.loads((tmp_path / "config.json").read_text())
    rewrite(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path, ops).spec == new


def test_layers_that_predict_further_tokens_are_no_part_of_the_model(tmp_path: Path) -> None:
    expected = transformers_logits(make_model(tmp_path, *CASES["deepseek-v3"]), PROMPTS)
    tensors = load_file(tmp_path / "model.safetensors")
    further = {
        name.replace(".2.", ".3.", 1): tensor.clone() for name, tensor in tensors.items() if ".layers.2." in name
    }
    save_file(
        {**tensors, **further, "model.layers.3.eh_proj.weight": torch.ones(64, 128)}, tmp_path / "model.safetensors"
    )
    ops = bind()
    torch.testing.assert_close(
        torch.stack(prompt_logits(load(tmp_path, ops), ops, PROMPTS)), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("deepseek-v3", {"rope_interleave": False}, "rope_interleave"),
        ("deepseek-v3", {"scoring_func": "softmax"}, "scoring_func"),
        ("deepseek-v3", {"n_group": 4}, "n_group"),
        ("deepseek-v3", {"topk_group": 1, "num_experts_per_tok": 3}, "topk_group"),
        ("deepseek-v3", {"kv_lora_rank": 40}, "kv_lora_rank"),
        ("deepseek-v2-groups", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("deepseek-v2-groups", {"topk_method": "best"}, "topk_method"),
        ("deepseek-v2-groups", {"moe_layer_freq": 2}, "moe_layer_freq"),
        ("glm-4.7-flash", {"mlp_layer_types": ["sparse", "dense", "sparse"]}, "mlp_layer_types"),
        ("lfm2", {"layer_types": ["conv", "mamba", "conv"]}, "layer_types"),
        ("lfm2", {"conv_L_cache": 1}, "conv_L_cache"),
    ],
)
def test_options_that_are_not_implemented_are_refused_by_name(case: str, changes: dict[str, Any], message: str) -> None:
    family, options = CASES[case]
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **options}).to_dict()
    config["architectures"] = [f"{family}ForCausalLM"]
    model_spec(config, "here")
    with pytest.raises(CheckpointError, match=message):
        model_spec({**config, **changes}, "here")
