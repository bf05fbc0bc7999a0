"""More families against transformers: norms, activations, positions and blocks that Llama has not."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers.models.mpt import modeling_mpt

from models.family_cases import LLAMA3_ROPE, PROMPTS, make_model, transformers_logits
from models.running import Run, load, prompt_logits
from octavo.base.config import ModelConfig
from octavo.base.errors import CheckpointError
from octavo.models.checkpoint import config_dtype
from octavo.models.overrides import overridden
from octavo.models.registry import model_spec
from octavo.models.seeing import text_part
from octavo.ops.run import Runner
from octavo.ops.table import bind

SMALL: dict[str, Any] = {"num_hidden_layers": 2}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 500.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "phi": ("Phi", {"num_key_value_heads": 4}),
    "phi-qk-norm": ("Phi", {"qk_layernorm": True, "partial_rotary_factor": 0.25}),
    "olmo": ("Olmo", {"pad_token_id": None}),
    "olmo-tied-biases": ("Olmo", {"pad_token_id": None, "tie_word_embeddings": True, "attention_bias": True}),
    "olmo-clip": ("Olmo", {"pad_token_id": None, "clip_qkv": 0.3}),
    "olmo2": ("Olmo2", {"pad_token_id": None}),
    "olmo3": (
        "Olmo3",
        {
            "pad_token_id": None,
            "num_hidden_layers": 5,
            "sliding_window": 8,
            "rope_parameters": {
                "full_attention": YARN_ROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
    ),
    "stablelm": ("StableLm", {}),
    "stablelm-qkv-bias-tied": ("StableLm", {"use_qkv_bias": True, "tie_word_embeddings": True}),
    "stablelm-parallel-qk-norm": ("StableLm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "starcoder2": ("Starcoder2", {}),
    "starcoder2-no-bias-window": ("Starcoder2", {"use_bias": False, "sliding_window": 8, "tie_word_embeddings": False}),
    "opt": ("OPT", {"ffn_dim": 96}),
    "opt-350m": ("OPT", {"ffn_dim": 96, "do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "opt-no-last-norm": (
        "OPT",
        {
            "ffn_dim": 96,
            "_remove_final_layer_norm": True,
            "enable_bias": False,
            "layer_norm_elementwise_affine": False,
            "activation_function": "gelu",
            "tie_word_embeddings": False,
        },
    ),
    "nemotron": ("Nemotron", {"head_dim": 16}),
    "nemotron-biases": ("Nemotron", {"head_dim": 32, "attention_bias": True, "mlp_bias": True}),
    "persimmon": ("Persimmon", {}),
    "apertus": ("Apertus", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "apertus-bias-tied": (
        "Apertus",
        {"attention_bias": True, "tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE},
    ),
    "arcee": ("Arcee", {}),
    "arcee-biases": ("Arcee", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "hunyuan": ("HunYuanDenseV1", {"head_dim": 32}),
    "hunyuan-alpha-bias": (
        "HunYuanDenseV1",
        {
            "head_dim": 16,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "dynamic", "alpha": 50.0, "rope_theta": 500.0, "factor": 1.0},
        },
    ),
    "mpt": ("Mpt", {"d_model": 64, "n_heads": 4, "n_layers": 2, "attn_config": {}}),
    "mpt-scale": (
        "Mpt",
        {
            "d_model": 96,
            "n_heads": 6,
            "n_layers": 2,
            "attn_config": {"softmax_scale": 0.4, "clip_qkv": 1.0},
            "tie_word_embeddings": False,
        },
    ),
    "ministral": (
        "Ministral",
        {"head_dim": 16, "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "ministral3": (
        "Ministral3",
        {
            "head_dim": 16,
            "rope_parameters": {**YARN_ROPE, "original_max_position_embeddings": 8, "llama_4_scaling_beta": 0.5},
        },
    ),
    "ministral3-plain": (
        "Ministral3",
        {
            "head_dim": 16,
            "rope_parameters": {**PLAIN_ROPE, "llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 16},
        },
    ),
    "persimmon-no-qk-norm": ("Persimmon", {"qk_layernorm": False}),
}


@pytest.fixture(scope="module", params=CASES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A tiny model's directory, and its logits."""
    family, options = CASES[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logits = transformers_logits(make_model(directory, family, {**SMALL, **options}), PROMPTS)
    torch.set_num_threads(threads)
    return directory, logits


@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_logits_are_those_of_transformers(saved: tuple[Path, torch.Tensor], impl: Any) -> None:
    directory, expected = saved
    ops = bind("cpu", impl)
    ours = torch.stack(prompt_logits(load(directory, ops), ops, PROMPTS))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-4)


def test_chunks_company_and_one_native_call_change_no_bit(saved: tuple[Path, torch.Tensor]) -> None:
    directory, _ = saved
    native = bind("cpu")
    loaded = load(directory, native)
    whole = torch.stack(prompt_logits(loaded, native, PROMPTS))
    assert torch.equal(torch.stack(prompt_logits(loaded, native, PROMPTS, 7)), whole)
    assert torch.equal(prompt_logits(loaded, native, PROMPTS[:1])[0], whole[0])
    needed = [3, 19, 20, 39]
    (part,) = Run(loaded, native, 2, 46, torch.float32).step([prompt[:20] for prompt in PROMPTS], needed)
    assert torch.equal(part, whole[:, :20].flatten(0, 1)[needed])
    one_by_one = dataclasses.replace(native, program_runner=Runner)
    assert torch.equal(torch.stack(prompt_logits(load(directory, one_by_one), one_by_one, PROMPTS)), whole)


def test_the_bound_of_alibi_is_that_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers always takes 8."""
    sizes = {"d_model": 96, "n_heads": 6, "n_layers": 2}
    model = make_model(tmp_path, "Mpt", {**sizes, "attn_config": {"alibi_bias_max": 5}})
    theirs = modeling_mpt.build_mpt_alibi_tensor
    monkeypatch.setattr(
        modeling_mpt, "build_mpt_alibi_tensor", lambda heads, length, bound, device: theirs(heads, length, 5, device)
    )
    ops = bind("cpu", "reference")
    ours = torch.stack(prompt_logits(load(tmp_path, ops), ops, PROMPTS))
    torch.testing.assert_close(ours, transformers_logits(model, PROMPTS), rtol=1e-4, atol=2e-4)


def renamed(directory: Path, changes: dict[str, Any], renames: dict[str, str] | None = None) -> None:
    """Change a saved model's configuration, and parts of its tensors' names."""
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))
    tensors = load_file(directory / "model.safetensors")
    for old, new in (renames or {}).items():
        tensors = {re.sub(old, new, name): value for name, value in tensors.items()}
    save_file(tensors, directory / "model.safetensors")


def test_orion_is_a_stablelm_that_rotates_whole_heads(tmp_path: Path) -> None:
    """transformers has no class of it."""
    rope = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0}
    expected = transformers_logits(make_model(tmp_path, "StableLm", {**SMALL, "rope_parameters": rope}), PROMPTS)
    renamed(tmp_path, {"architectures": ["OrionForCausalLM"], "model_type": "orion", "rms_norm_eps": 1e-5})
    ops = bind("cpu", "reference")
    ours = torch.stack(prompt_logits(load(tmp_path, ops), ops, PROMPTS))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-4)


def test_minicpm_is_a_granite_with_factors_of_its_own(tmp_path: Path) -> None:
    factors = {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 1.4 / 2**0.5,
        "attention_multiplier": 16**-0.5,
        "logits_scaling": 64 / 32,
    }
    expected = transformers_logits(make_model(tmp_path, "Granite", {**SMALL, **factors}), PROMPTS)
    own = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 32, "tie_word_embeddings": False}
    renamed(tmp_path, {**dict.fromkeys(factors), **own, "architectures": ["MiniCPMForCausalLM"]})
    ops = bind("cpu", "reference")
    ours = torch.stack(prompt_logits(load(tmp_path, ops), ops, PROMPTS))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-4)


def jais_logits(tensors: dict[str, torch.Tensor], config: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """What Jais computes, by its published description."""
    hidden, heads = config["n_embd"], config["n_head"]
    dim, length = hidden // heads, ids.shape[1]
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    slopes = torch.tensor([2.0 ** (-8 * (head + 1) / heads) for head in range(heads)])
    bias = (slopes[:, None, None] * distance).masked_fill(distance > 0, -torch.inf)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (hidden,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-5)

    def conv(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    x = tensors["transformer.wte.weight"][ids] * config["mup_embeddings_scale"]
    for number in range(config["n_layer"]):
        at = f"transformer.h.{number}."
        qkv = conv(norm(x, f"{at}ln_1"), f"{at}attn.c_attn").view(*ids.shape, 3, heads, dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = (q @ k.transpose(-1, -2) / dim + bias).softmax(-1) @ v
        x = x + conv(attended.transpose(1, 2).reshape(*ids.shape, hidden), f"{at}attn.c_proj")
        inner = norm(x, f"{at}ln_2")
        x = x + conv(conv(inner, f"{at}mlp.c_fc") * F.silu(conv(inner, f"{at}mlp.c_fc2")), f"{at}mlp.c_proj")
    x = norm(x, "transformer.ln_f")
    return x @ tensors["transformer.wte.weight"].t() * config["mup_output_alpha"] * config["mup_width_scale"]


PARTS_OF_JAIS = {
    r"^transformer\.": "", r"^h\.": "blk.", r"\.ln_1\.": ".attn_norm.", r"\.ln_2\.": ".ffn_norm.",
    r"^ln_f\.": "output_norm.", r"attn\.c_attn": "attn_qkv", r"attn\.c_proj": "attn_output",
    r"mlp\.c_fc\.": "ffn_up.", r"mlp\.c_fc2": "ffn_gate", r"mlp\.c_proj": "ffn_down",
}  # fmt: skip


def write_jais_gguf(path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """As llama.cpp's converter does: the factors of embeddings and logits are in two matrices."""
    writer = gguf.GGUFWriter(path, "jais")
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config["n_inner"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_max_alibi_bias(8.0)
    for name, value in tensors.items():
        for old, new in PARTS_OF_JAIS.items():
            name = re.sub(old, new, name)
        if name == "wte.weight":
            writer.add_tensor("token_embd.weight", (value * config["mup_embeddings_scale"]).numpy())
            factor = config["mup_output_alpha"] * config["mup_width_scale"]
            writer.add_tensor("output.weight", (value * factor).numpy())
        else:
            writer.add_tensor(name, (value.t() if value.dim() == 2 else value).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_jais_scales_embeddings_scores_and_logits(tmp_path: Path) -> None:
    config = {
        "architectures": ["JAISLMHeadModel"], "model_type": "jais", "vocab_size": 96, "n_embd": 64, "n_head": 4,
        "n_layer": 2, "n_inner": 96, "n_positions": 128, "activation_function": "swiglu", "layer_norm_epsilon": 1e-5,
        "position_embedding_type": "alibi", "mup_embeddings_scale": 9.1, "mup_output_alpha": 2.2,
        "mup_width_scale": 0.12, "mup_scale_qk_dot_by_d": True, "alibi_scaling": None,
    }  # fmt: skip
    shapes = {"transformer.wte.weight": (96, 64), "transformer.ln_f.weight": (64,), "transformer.ln_f.bias": (64,)}
    matrices = {"attn.c_attn": (64, 192), "attn.c_proj": (64, 64), "mlp.c_fc": (64, 96), "mlp.c_fc2": (64, 96)}
    for number in range(2):
        for name, shape in {**matrices, "mlp.c_proj": (96, 64), "ln_1": (64,), "ln_2": (64,)}.items():
            shapes[f"transformer.h.{number}.{name}.weight"] = shape
            shapes[f"transformer.h.{number}.{name}.bias"] = shape[-1:]
    generator = torch.Generator().manual_seed(3)
    tensors = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file({**tensors, "transformer.relative_pe.slopes": torch.ones(4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    ops = bind("cpu", "reference")
    write_jais_gguf(tmp_path / "jais.gguf", tensors, config)
    expected = jais_logits(tensors, config, torch.tensor(PROMPTS))
    for path in (tmp_path, tmp_path / "jais.gguf"):
        ours = torch.stack(prompt_logits(load(path, ops), ops, PROMPTS))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-4)


def test_older_configurations_of_stablelm_mean_the_same(tmp_path: Path) -> None:
    options = {"layer_norm_eps": 1e-4, "partial_rotary_factor": 0.5}
    make_model(tmp_path, "StableLm", {**SMALL, **options})
    config = json.loads((tmp_path / "config.json").read_text())
    new = model_spec(config, "new")
    theta = config.pop("rope_parameters")["rope_theta"]
    older = {"architectures": ["StableLMEpochForCausalLM"], "rope_pct": 0.5, "norm_eps": 1e-4, "rope_theta": theta}
    rest = {key: value for key, value in config.items() if key not in options}
    assert model_spec({**rest, **older}, "old") == new


@pytest.mark.parametrize("prefixes", ["of transformers 5", "older"])
@pytest.mark.parametrize("case", ["mistral3", "gemma3", "llava"])
def test_of_models_that_also_see_the_text_part_is_served(case: str, prefixes: str, tmp_path: Path) -> None:
    outer, family, options = {
        "mistral3": ("Mistral3ForConditionalGeneration", "Ministral3", {"head_dim": 16, "rope_parameters": PLAIN_ROPE}),
        "gemma3": ("Gemma3ForConditionalGeneration", "Gemma3", {"head_dim": 16, "sliding_window": 8}),
        "llava": ("LlavaForConditionalGeneration", "Llama", {}),
    }[case]
    if case == "mistral3":
        options["rope_parameters"] = {**PLAIN_ROPE, "llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 16}
    model = make_model(tmp_path, family, {**SMALL, **options})
    text = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text("{}")
    renames = {r"^model\.": "model.language_model."} if prefixes != "older" else {"^": "language_model."}
    config = {"architectures": [outer], "text_config": text, "vision_config": {"model_type": "one that nobody has"}}
    renamed(tmp_path, config, renames)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in ("vision_tower.encoder.weight", "model.vision_tower.x", "multi_modal_projector.linear_1.bias"):
        tensors[name] = torch.zeros(3)
    save_file(tensors, tmp_path / "model.safetensors")
    ops = bind("cpu", "reference")
    ours = torch.stack(prompt_logits(load(tmp_path, ops), ops, PROMPTS))
    torch.testing.assert_close(ours, transformers_logits(model, PROMPTS), rtol=1e-4, atol=2e-4)


def test_overrides_of_a_model_that_also_sees_are_of_its_text_part() -> None:
    text = {"model_type": "llama", "rope_theta": 1e4, "dtype": "float16", "num_hidden_layers": 2}
    config = {"architectures": ["LlavaForConditionalGeneration"], "text_config": text, "vision_config": {}}
    given = overridden(config, ModelConfig(model="m", rope_theta=5e5, hf_overrides='{"num_hidden_layers": 1}'))
    part = text_part(given)
    assert part is not None and part["rope_theta"] == 5e5 and part["num_hidden_layers"] == 1
    assert config_dtype(config) == torch.float16


PARTS_OF_GPT2 = {
    r"\.h\.": ".blocks.", r"\.ln_([12])\.": r".norm_\1.", "c_attn": "Wqkv", r"attn\.c_proj": "attn.out_proj",
    r"mlp\.c_fc": "ffn.up_proj", r"mlp\.c_proj": "ffn.down_proj", r"\.ln_f\.": ".norm_f.",
}  # fmt: skip


def test_learned_positions_of_mpt_are_those_of_gpt2_without_biases(tmp_path: Path) -> None:
    model = make_model(tmp_path, "GPT2", {**SMALL, "activation_function": "gelu"})
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.data.zero_()
    expected = transformers_logits(model, PROMPTS)
    tensors = {}
    for name, value in model.state_dict().items():
        if not name.endswith(".bias") and name != "lm_head.weight":
            for old, new in PARTS_OF_GPT2.items():
                name = re.sub(old, new, name)
            is_turned = value.dim() == 2 and ".blocks." in name
            tensors[name] = value.t().contiguous() if is_turned else value.clone()
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "vocab_size": 96, "model_type": "mpt"}
    config |= {"architectures": ["MPTForCausalLM"], "attn_config": {"alibi": False}, "learned_pos_emb": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ops = bind("cpu", "reference")
    ours = torch.stack(prompt_logits(load(tmp_path, ops), ops, PROMPTS))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("PhiForCausalLM", {"tie_word_embeddings": True}, "tie_word_embeddings = 'True'"),
        ("Olmo2ForCausalLM", {"clip_qkv": 4.0}, "clip_qkv = '4.0'"),
        ("Olmo3ForCausalLM", {"sliding_window": 0}, "sliding_window = '0'"),
        ("NemotronForCausalLM", {"hidden_act": "xielu"}, "hidden_act = 'xielu'"),
        ("ApertusForCausalLM", {"hidden_act": "silu"}, "hidden_act = 'silu'"),
        ("HunYuanDenseV1ForCausalLM", {"use_qk_norm": False}, "use_qk_norm = 'False'"),
        ("MptForCausalLM", {"attn_config": {"prefix_lm": True}}, "attn_config: prefix_lm = 'True'"),
        ("JAISLMHeadModel", {"position_embedding_type": "learned"}, "position_embedding_type = 'learned'"),
        ("MptForCausalLM", {"norm_type": "rmsnorm"}, "norm_type = 'rmsnorm'"),
        ("MptForCausalLM", {"ffn_config": {"ffn_type": "mptglu"}}, "ffn_config: ffn_type = 'mptglu'"),
        ("Starcoder2ForCausalLM", {"mlp_type": "gated"}, "mlp_type = 'gated'"),
        ("ApertusForCausalLM", {"post_norm": True}, "post_norm = 'True'"),
        ("MiniCPMForCausalLM", {"sparse_config": {"topk": 64}}, "sparse_config"),
        ("MiniCPMForCausalLM", {"scale_depth": -1}, "scale_depth = '-1'"),
    ],
)
def test_options_that_are_not_implemented_are_refused(architecture: str, options: dict[str, Any], message: str) -> None:
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config = {**sizes, "num_attention_heads": 4, "max_position_embeddings": 64, "architectures": [architecture]}
    with pytest.raises(CheckpointError, match=message):
        model_spec({**config, **options}, "test")
