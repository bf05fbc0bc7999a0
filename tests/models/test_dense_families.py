"""Dense families that are Llama with other names, norms, ropes and factors, against transformers in float32.

Where transformers has no class for a layout, the model is one of the same mathematics, saved in that layout.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import family_cases
from models.family_cases import LLAMA3_ROPE, PROMPTS, YARN_ROPE, transformers_logits
from models.running import load, prompt_logits
from models.test_gguf_families import write_gguf
from octavo.base.errors import CheckpointError
from octavo.files.gguf import TensorInfo
from octavo.models.config_reader import ConfigReader
from octavo.models.gguf_config import hf_config
from octavo.models.registry import FAMILIES, model_spec
from octavo.ops.run import Runner
from octavo.ops.table import bind

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": None,
}  # fmt: skip
WINDOWS = ["sliding_attention", "full_attention"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("Cohere", {}),
    "cohere-head-norms-biases": ("Cohere", {"use_qk_norm": True, "attention_bias": True, "logit_scale": 0.7}),
    "cohere-untied-llama3-rope": ("Cohere", {"tie_word_embeddings": False, "rope_parameters": LLAMA3_ROPE}),
    "cohere2": ("Cohere2", {"num_hidden_layers": 4, "sliding_window": 8}),
    "cohere2-types-bias": ("Cohere2", {"sliding_window": 16, "layer_types": WINDOWS, "attention_bias": True}),
    "granite": (
        "Granite",
        {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1, "logits_scaling": 8.0},
    ),
    "granite-biases-tied": (
        "Granite",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "residual_multiplier": 1.5},
    ),
    "glm": ("Glm", {"head_dim": 16}),
    "glm-no-bias-partial": ("Glm", {"head_dim": 32, "attention_bias": False, "partial_rotary_factor": 0.25}),
    "glm4": ("Glm4", {"head_dim": 16}),
    "falcon-7b": ("Falcon", {}),
    "falcon-40b": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": (
        "Falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 96,
         "tie_word_embeddings": False},
    ),
    "falcon-rw": ("Falcon", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "exaone4": ("Exaone4", {"num_hidden_layers": 4, "sliding_window": 8}),
    "exaone4-no-window": ("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "internlm3": ("InternLM3", {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "gpt-bigcode": ("GPTBigCode", {}),
    "gpt-bigcode-heads": ("GPTBigCode", {"multi_query": False, "n_inner": 96}),
    "gpt-j": ("GPTJ", {"rotary_dim": 8}),
    "gpt-j-whole-inner": ("GPTJ", {"rotary_dim": 16, "n_inner": 96}),
    "seed-oss": ("SeedOss", {"head_dim": 32}),
    "seed-oss-biases": ("SeedOss", {"attention_bias": False, "attention_out_bias": True, "mlp_bias": True}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4}),
    "smollm3-window": ("SmolLM3", {"no_rope_layers": [0, 1], "use_sliding_window": True, "sliding_window": 8}),
    "ernie4_5": ("Ernie4_5", {"head_dim": 16}),
    "ernie4_5-biases": ("Ernie4_5", {"head_dim": 32, "use_bias": True, "tie_word_embeddings": False}),
    "llama-yarn-mscale": ("Llama", {"rope_parameters": {**YARN_ROPE, "mscale": 0.8, "mscale_all_dim": 0.5}}),
    "llama-yarn-smooth": ("Llama", {"rope_parameters": {**YARN_ROPE, "truncate": False, "attention_factor": 1.3}}),
}  # fmt: skip


def make_model(directory: Path, family: str, options: dict[str, Any]) -> Any:
    return family_cases.make_model(directory, family, {**SIZES, **options})


def check_logits(directory: Path, expected: torch.Tensor, prompts: list[list[int]] = PROMPTS, **config: Any) -> None:
    """Of the reference, and of the native operations in one call, one by one, and in pieces of the prompt."""
    reference, native = bind("cpu", "reference"), bind("cpu")
    ours = torch.stack(prompt_logits(load(directory, reference, **config), reference, prompts))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    loaded = load(directory, native, **config)
    whole = torch.stack(prompt_logits(loaded, native, prompts))
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.stack(prompt_logits(loaded, native, prompts, chunk=7)), whole)
    assert torch.equal(prompt_logits(loaded, native, prompts[:1])[0], whole[0])
    one_by_one = dataclasses.replace(native, program_runner=Runner)
    assert torch.equal(torch.stack(prompt_logits(load(directory, one_by_one, **config), one_by_one, prompts)), whole)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    check_logits(tmp_path, transformers_logits(make_model(tmp_path, *CASES[case]), PROMPTS))


# ---------------------------------------------------------------- layouts of models' own code

Tensors = dict[str, torch.Tensor]


def renamed(tensors: Tensors, *renames: tuple[str, str]) -> Tensors:
    result = {}
    for name, tensor in tensors.items():
        for old, new in renames:
            name = name.replace(old, new)
        result[name] = tensor
    return result


def joined(tensors: Tensors, parts: tuple[str, ...], whole: str, groups: int = 1) -> Tensors:
    """The rows of `parts` in one tensor: of each of so many groups those of the first, the second, ..."""
    result = dict(tensors)
    for name, tensor in tensors.items():
        if parts[0] in name:
            rows = [result.pop(name.replace(parts[0], part)) for part in parts]
            grouped = [each.view(groups, -1, *tensor.shape[1:]) for each in rows]
            result[name.replace(parts[0], whole)] = torch.cat(grouped, 1).flatten(0, 1)
    return result


QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
H_NAMES = (
    ("model.layers", "transformer.h"), ("model.embed_tokens", "transformer.wte"), ("model.norm", "transformer.ln_f"),
    ("input_layernorm", "ln_1"), ("post_attention_layernorm", "ln_2"),
)  # fmt: skip


def chatglm(tensors: Tensors) -> Tensors:
    return renamed(
        joined(tensors, QKV, "self_attention.query_key_value"),
        ("model.layers", "transformer.encoder.layers"), ("self_attn.o_proj", "self_attention.dense"),
        ("gate_up_proj", "dense_h_to_4h"), ("down_proj", "dense_4h_to_h"), ("lm_head", "transformer.output_layer"),
        ("model.embed_tokens", "transformer.embedding.word_embeddings"),
        ("model.norm", "transformer.encoder.final_layernorm"),
    )  # fmt: skip


def internlm2(tensors: Tensors) -> Tensors:
    return renamed(
        joined(tensors, QKV, "attention.wqkv", groups=2),
        ("self_attn.o_proj", "attention.wo"), ("input_layernorm", "attention_norm"), ("lm_head", "output"),
        ("post_attention_layernorm", "ffn_norm"), ("mlp.gate_proj", "feed_forward.w1"),
        ("mlp.down_proj", "feed_forward.w2"), ("mlp.up_proj", "feed_forward.w3"), ("embed_tokens", "tok_embeddings"),
    )  # fmt: skip


def exaone(tensors: Tensors) -> Tensors:
    return renamed(
        tensors, *H_NAMES, ("self_attn.o_proj", "attn.attention.out_proj"), ("self_attn", "attn.attention"),
        ("gate_proj", "c_fc_0"), ("up_proj", "c_fc_1"), ("down_proj", "c_proj"),
    )  # fmt: skip


def qwen(tensors: Tensors) -> Tensors:
    return renamed(
        joined(tensors, QKV, "attn.c_attn"), *H_NAMES, ("self_attn.o_proj", "attn.c_proj"), ("up_proj", "w1"),
        ("gate_proj", "w2"), ("down_proj", "c_proj"),
    )  # fmt: skip


def baichuan(tensors: Tensors) -> Tensors:
    return joined(tensors, QKV, "self_attn.W_pack")


#: Of our names: the model of transformers, its options, its tensors in the layout, and what the configuration says.
LAYOUTS: dict[str, tuple[str, dict[str, Any], Callable[[Tensors], Tensors], dict[str, Any]]] = {
    "chatglm": (
        "Glm", {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0,
                                                    "partial_rotary_factor": 0.5}, "rms_norm_eps": 1e-5}, chatglm,
        {"architectures": ["ChatGLMModel"], "num_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
         "ffn_hidden_size": 96, "kv_channels": 16, "multi_query_group_num": 2, "multi_query_attention": True,
         "padded_vocab_size": 96, "vocab_size": 90, "seq_length": 128, "layernorm_epsilon": 1e-5,
         "add_qkv_bias": True, "rope_ratio": 50, "rmsnorm": True, "add_bias_linear": False},
    ),
    "internlm2": (
        "Llama", {"attention_bias": True}, internlm2,
        {**SIZES, "architectures": ["InternLM2ForCausalLM"], "bias": True, "rope_theta": 10_000.0,
         "rope_scaling": {"type": "dynamic", "factor": 2.0}, "rms_norm_eps": 1e-6, "hidden_act": "silu"},
    ),
    "internlm": (
        "Llama", {"attention_bias": True, "num_key_value_heads": 4}, lambda tensors: tensors,
        {**SIZES, "num_key_value_heads": 4, "architectures": ["InternLMForCausalLM"], "bias": True,
         "rotary": {"base": 10_000, "type": "dynamic"}, "rms_norm_eps": 1e-6, "hidden_act": "silu"},
    ),
    "internlm3": (  # what transformers saves itself names Llama
        "Qwen2", {}, lambda tensors: tensors,
        {**SIZES, "architectures": ["InternLM3ForCausalLM"], "qkv_bias": True, "bias": False, "rms_norm_eps": 1e-6},
    ),
    "exaone": (
        "Llama", {"rope_parameters": LLAMA3_ROPE, "rms_norm_eps": 1e-5}, exaone,
        {**{key: value for key, value in SIZES.items() if key != "num_hidden_layers"}, "num_layers": 2,
         "architectures": ["ExaoneForCausalLM"], "layer_norm_epsilon": 1e-5, "activation_function": "silu",
         "rope_theta": 500.0, "rope_scaling": {key: value for key, value in LLAMA3_ROPE.items() if "theta" not in key}},
    ),
    "qwen": (
        "Qwen2", {"num_key_value_heads": 4}, qwen,
        {**SIZES, "num_key_value_heads": None, "architectures": ["QWenLMHeadModel"], "intermediate_size": 192,
         "max_position_embeddings": 512, "seq_length": 128, "layer_norm_epsilon": 1e-6, "rotary_emb_base": 10_000,
         "rotary_pct": 1.0, "kv_channels": 16, "no_bias": True, "use_dynamic_ntk": True, "use_logn_attn": True},
    ),
    "baichuan": (
        "Llama", {"num_key_value_heads": 4}, baichuan,
        {**SIZES, "num_key_value_heads": None, "architectures": ["BaichuanForCausalLM"], "rms_norm_eps": 1e-6,
         "hidden_act": "silu"},
    ),
    "yi": (
        "Llama", {}, lambda tensors: renamed(tensors, ("input_layernorm", "ln1"), ("post_attention_layernorm", "ln2")),
        {**SIZES, "architectures": ["YiForCausalLM"], "rms_norm_eps": 1e-6, "hidden_act": "silu"},
    ),
}  # fmt: skip


def rewrite(directory: Path, layout: Callable[[Tensors], Tensors], config: dict[str, Any]) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in layout(load_file(directory / "model.safetensors")).items()}
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_layout_of_the_models_own_code_holds_the_same_model(case: str, tmp_path: Path) -> None:
    family, options, layout, config = LAYOUTS[case]
    expected = transformers_logits(make_model(tmp_path, family, options), PROMPTS)
    rewrite(tmp_path, layout, config)
    check_logits(tmp_path, expected, max_model_len=SIZES["max_position_embeddings"])


def test_qwen_beyond_its_training_is_stretched_and_scaled_by_how_long_texts_may_get(tmp_path: Path) -> None:
    """Up to what it was trained with unless more is asked for; then as its own code does for such a prompt."""
    family, options, layout, config = LAYOUTS["qwen"]
    theta = 10_000.0 * 7 ** (16 / 14)  # 64 positions are four times as many as 16
    rope = {"rope_type": "default", "rope_theta": theta}
    model = make_model(tmp_path, family, {**options, "rope_parameters": rope})
    factors = torch.tensor([math.log(count, 16) if count > 16 else 1.0 for count in range(1, len(PROMPTS[0]) + 1)])
    for layer in model.model.layers:
        layer.self_attn.q_proj.register_forward_hook(lambda _module, _inputs, out: out * factors[:, None])
    expected = transformers_logits(model, PROMPTS)
    config = {**config, "seq_length": 16, "max_position_embeddings": 256}
    rewrite(tmp_path, layout, config)
    check_logits(tmp_path, expected, max_model_len=64)
    spec = model_spec(dict(config), "test")
    assert (spec.default_positions, spec.max_position_embeddings) == (16, 256)
    off = {"use_dynamic_ntk": False, "use_logn_attn": False}
    assert model_spec({**config, **off}, "test").max_position_embeddings == 16
    with pytest.raises(CheckpointError, match="seq_length"):  # there is no logarithm to the base of 1
        model_spec({**config, "seq_length": 1}, "test")


GGUF = {
    "cohere": "command-r", "cohere-head-norms-biases": "command-r", "cohere2": "cohere2", "granite": "granite",
    "glm": "chatglm", "glm4": "glm4", "falcon-7b": "falcon", "falcon-40b": "falcon", "falcon-11b": "falcon",
    "exaone4": "exaone4", "exaone4-no-window": "exaone4", "gpt-bigcode": "starcoder", "seed-oss": "seed_oss",
    "seed-oss-biases": "seed_oss", "smollm3": "smollm3", "ernie4_5": "ernie4_5", "ernie4_5-biases": "ernie4_5",
    "internlm2": "internlm2", "exaone": "exaone", "qwen": "qwen", "baichuan": "baichuan",
}  # fmt: skip


@pytest.mark.parametrize("case", GGUF)
def test_gguf_holds_the_same_model(case: str, tmp_path: Path) -> None:
    family, options, *layout = LAYOUTS[case] if case in LAYOUTS else CASES[case]
    model = make_model(tmp_path, family, options)
    if layout:
        rewrite(tmp_path, *layout)
    write_gguf(tmp_path / "model.gguf", GGUF[case], tmp_path, model)
    ops = bind("cpu", "reference")
    ours = torch.stack(prompt_logits(load(tmp_path / "model.gguf", ops), ops, PROMPTS))
    torch.testing.assert_close(ours, transformers_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)


def test_gguf_lists_the_layers_of_decilm() -> None:
    embedding = TensorInfo("token_embd.weight", (96, 64), 0, "F32", 0, 0)
    lists = {
        "attention.head_count": [4, 4, 0],
        "attention.head_count_kv": [4, 2, 0],
        "feed_forward_length": [256, 0, 256],
    }
    sizes = {"block_count": 3, "context_length": 128, "embedding_length": 64, "attention.layer_norm_rms_epsilon": 1e-6}
    metadata = {f"deci.{key}": value for key, value in {**lists, **sizes}.items()}
    config = hf_config({"general.architecture": "deci", **metadata}, {"token_embd.weight": embedding}, {})
    spec = model_spec({**config, "tie_word_embeddings": False}, "test")
    expected = model_spec(DECI_CONFIGS["nemotron-nas"], "test")
    assert (spec.layers, spec.norm) == (expected.layers, expected.norm)
    for key, value, message in (
        ("head_count_kv", [4, 0, 0], "in place of attention"), ("head_count", ["4", 4, 0], "whole numbers"),
        ("head_count", [4, 2, 0], "heads of queries"),
    ):  # fmt: skip
        changed = {"general.architecture": "deci", **metadata, f"deci.attention.{key}": value}
        with pytest.raises(CheckpointError, match=message):
            hf_config(changed, {"token_embd.weight": embedding}, {})


def test_gguf_tells_windows_by_layer_or_by_interval() -> None:
    embedding = TensorInfo("token_embd.weight", (96, 64), 0, "F32", 0, 0)
    for pattern, key, expected in (
        ([True, False], "layer_types", ["sliding_attention", "full_attention"]), (4, "sliding_window_pattern", 4),
    ):  # fmt: skip
        metadata = {"general.architecture": "exaone4", "exaone4.attention.sliding_window_pattern": pattern}
        assert hf_config(metadata, {"token_embd.weight": embedding}, {})[key] == expected


def test_gguf_names_no_alibi_but_baichuan_with_40_layers_has_it() -> None:
    embedding = TensorInfo("token_embd.weight", (96, 64), 0, "F32", 0, 0)
    for layers, has_alibi in ((32, False), (40, True)):
        metadata = {"general.architecture": "baichuan", "baichuan.block_count": layers, "baichuan.context_length": 64}
        config = hf_config(metadata, {"token_embd.weight": embedding}, {})
        assert ("model_max_length" in config, "max_position_embeddings" in config) == (has_alibi, not has_alibi)


def test_baichuan_13b_has_alibi_and_version_2_an_output_matrix_of_unit_rows(tmp_path: Path) -> None:
    """Llama without a rotation, with ALiBi in its mask; 6 heads, which are no power of two."""
    options = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 6}
    model = make_model(tmp_path, "Llama", options)
    config = {**SIZES, **options, "architectures": ["BaichuanForCausalLM"], "rms_norm_eps": 1e-6, "hidden_act": "silu",
              "model_max_length": 128, "max_position_embeddings": None, "unit_lm_head": True}  # fmt: skip
    rewrite(tmp_path, baichuan, config)
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.nn.functional.normalize(model.lm_head.weight))
        model.model.rotary_emb.inv_freq.zero_()
        positions = torch.arange(len(PROMPTS[0]))
        distance = positions[:, None] - positions[None, :]
        slopes = torch.tensor([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])[:, None, None]
        mask = torch.where(distance < 0, torch.finfo(torch.float32).min, -slopes * distance)
        ids = torch.tensor(PROMPTS)
        expected = model(ids, attention_mask=mask.expand(len(ids), -1, -1, -1)).logits
    check_logits(tmp_path, expected)


DECI = {**SIZES, "num_key_value_heads": None, "architectures": ["DeciLMForCausalLM"], "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "num_hidden_layers": 3, "intermediate_size": None}  # fmt: skip
DECI_CONFIGS: dict[str, dict[str, Any]] = {
    "decilm": {**DECI, "num_key_value_heads_per_layer": [4, 2, 1], "intermediate_size": 256},
    "nemotron-nas": {
        **DECI,
        "block_configs": [
            {"attention": {"n_heads_in_group": 1}, "ffn": {"ffn_mult": 5.9}},
            {"attention": {"n_heads_in_group": 2}, "ffn": {"no_op": True}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 5.5, "no_op": False}},
        ],
    },
}  # fmt: skip


def deci_model(directory: Path, case: str) -> Any:
    """Llama whose heads of keys and values are equal in groups; a part that adds nothing is one that is absent."""
    options = {"num_key_value_heads": 4, "num_hidden_layers": 3, "intermediate_size": 256}
    model, kept = make_model(directory, "Llama", options), (4, 2, 1)
    tensors, absent = load_file(directory / "model.safetensors"), ()
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            for name in ("k_proj", "v_proj"):
                weight = getattr(layer.self_attn, name).weight
                heads = weight.view(4, 16, -1)[: kept[number]]
                tensors[f"model.layers.{number}.self_attn.{name}.weight"] = heads.flatten(0, 1).clone()
                weight.copy_(heads.repeat_interleave(4 // kept[number], 0).flatten(0, 1))
        if case == "nemotron-nas":
            absent = ("layers.1.mlp", "layers.1.post_", "layers.2.self_attn", "layers.2.input_")
            model.model.layers[1].mlp.down_proj.weight.zero_()
            model.model.layers[2].self_attn.o_proj.weight.zero_()
    tensors = {name: value for name, value in tensors.items() if not any(part in name for part in absent)}
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(DECI_CONFIGS[case]))
    return model


@pytest.mark.parametrize("case", DECI_CONFIGS)
def test_layers_may_differ_in_heads_of_keys_and_in_what_they_have(case: str, tmp_path: Path) -> None:
    check_logits(tmp_path, transformers_logits(deci_model(tmp_path, case), PROMPTS))


@pytest.mark.parametrize(
    ("part", "changes"),
    [("attention", {"replace_with_linear": True}), ("ffn", {"sparsify": [1]}), ("attention", {"window_length": 8}),
     ("attention", {"num_sink_tokens": 4}), ("attention", {"n_heads_in_group": 3}), ("ffn", {"ffn_mult": 0})],
)  # fmt: skip
def test_blocks_of_nemotron_nas_that_are_not_implemented_are_refused(part: str, changes: dict[str, Any]) -> None:
    config = json.loads(json.dumps(DECI_CONFIGS["nemotron-nas"]))
    config["block_configs"][0][part] |= changes
    with pytest.raises(CheckpointError, match=rf"block_configs\.0: {part}: {next(iter(changes))}"):
        model_spec(config, "test")


def test_the_vocabulary_tells_that_baichuan_2_has_unit_rows() -> None:
    config = {**SIZES, "num_key_value_heads": 4, "hidden_act": "silu"}
    spec = FAMILIES["BaichuanForCausalLM"].spec
    assert not spec(ConfigReader({**config, "vocab_size": 64_000})).unit_lm_head
    assert spec(ConfigReader({**config, "vocab_size": 125_696})).unit_lm_head


LLAMA = {**SIZES, "num_key_value_heads": 4, "hidden_act": "silu", "rms_norm_eps": 1e-6}


@pytest.mark.parametrize("name", ["AquilaModel", "AquilaForCausalLM", "XverseForCausalLM", "LLaMAForCausalLM"])
def test_twins_of_llama(name: str) -> None:
    assert model_spec({**LLAMA, "architectures": [name]}, "test") == model_spec(
        {**LLAMA, "architectures": ["LlamaForCausalLM"]}, "test"
    )


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("Cohere2ForCausalLM", {"use_qk_norm": True}, "use_qk_norm"),
        ("Cohere2ForCausalLM", {"rotary_pct": 0.5}, "rotary_pct"),
        ("Cohere2ForCausalLM", {"use_parallel_block": False}, "use_parallel_block"),
        ("CohereForCausalLM", {"logit_scale": 0}, "logit_scale"),
        ("GraniteForCausalLM", {"residual_multiplier": 0}, "residual_multiplier"),
        ("ChatGLMModel", {"post_layer_norm": False}, "post_layer_norm"),
        ("ChatGLMModel", {"multi_query_attention": False}, "multi_query_attention"),
        ("FalconForCausalLM", {"new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn"),
        ("Exaone4ForCausalLM", {"sliding_window": 8, "sliding_window_pattern": "LXG"}, "sliding_window_pattern"),
        ("InternLMForCausalLM", {"rotary": {"type": "yarn"}}, "rotary: type"),
        ("GPTJForCausalLM", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("GPTJForCausalLM", {"rotary_dim": 7}, "partial_rotary_factor"),
        ("QWenLMHeadModel", {"no_bias": False}, "no_bias"),
        ("QWenLMHeadModel", {"intermediate_size": 97}, "intermediate_size"),
        ("QWenLMHeadModel", {"rotary_pct": 0.5}, "rotary_pct"),
        ("SmolLM3ForCausalLM", {"no_rope_layers": [1]}, "no_rope_layers"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "dynamic", "factor": 0.5}}, "factor"),
        ("LlamaForCausalLM", {"rope_scaling": {"type": "dynamic", "alpha": 4}}, "alpha"),
    ],
)  # fmt: skip
def test_options_that_are_not_implemented_are_refused_by_name(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        model_spec({**LLAMA, "architectures": [name], **changes}, "test")
