"""Models by way of transformers: its own logits, whatever else a step holds; and what is refused, with why."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from models import test_quantized as checkpoints
from models.family_cases import PROMPTS, SIZES, make_model, transformers_logits
from models.running import Run, load, prompt_logits
from octavo.base.config import ModelConfig
from octavo.base.errors import CheckpointError
from octavo.models import implementation
from octavo.models.bridge.model import BridgedModel
from octavo.models.bridge.tried import TRIED
from octavo.models.loader import LoadedModel
from octavo.models.registry import FAMILIES
from octavo.ops.table import bind
from support import quantized_checkpoints as written

pytestmark = pytest.mark.usefixtures("one_torch_thread")

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 16}
_ROUTED = {**_EXPERTS, "n_routed_experts": 6, "n_shared_experts": 1, "first_k_dense_replace": 1}
_LATENT = {
    "q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "num_key_value_heads": 4,
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "afmoe": {**_EXPERTS, "num_experts": 4, "sliding_window": 8, "num_dense_layers": 1},
    "cwm": {"sliding_window": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "diffllama": {},
    "dots1": {**_ROUTED, "n_group": 1, "topk_group": 1},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "granite_swa": {"sliding_window": 8},
    "helium": {"head_dim": 16},
    "jais2": {"intermediate_size": 80},  # no multiple of a vector
    "nanochat": {},
    "solar_open": {**_ROUTED, "n_group": 1, "topk_group": 1},
    "vaultgemma": {"head_dim": 16, "sliding_window": 8},
    "biogpt": {},
}

EXPERTS = {
    **checkpoints.LLAMA, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 32,
}  # fmt: skip


def make(directory: Path, model_type: str, options: dict[str, Any]) -> Any:
    """A random model of transformers, saved to `directory`."""
    config = CONFIG_MAPPING[model_type](**{**SIZES, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **options})
    config._attn_implementation = "eager"
    classes = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = classes(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.15 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + 1.0 if "norm" in name and "gemma" not in model_type else noise)
    model.save_pretrained(directory)
    return model


def bridged(path: Path, **config: Any) -> LoadedModel:
    loaded = load(path, bind("cpu"), **{"model_impl": "transformers", **config})
    assert isinstance(loaded.model, BridgedModel)
    return loaded


def change_config(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_all_that_the_documents_name_is_tried_here() -> None:
    assert OPTIONS.keys() == TRIED.keys()
    native = {family.model_type for family in FAMILIES.values()}
    assert not native & OPTIONS.keys(), "octavo has a family of its own now"


@pytest.mark.parametrize("model_type", OPTIONS)
def test_logits_are_those_of_transformers_and_no_row_depends_on_others(model_type: str, tmp_path: Path) -> None:
    """K20."""
    expected = transformers_logits(make(tmp_path, model_type, OPTIONS[model_type]), PROMPTS)
    loaded = bridged(tmp_path, model_impl="auto")
    ops = bind("cpu")
    together = torch.stack(prompt_logits(loaded, ops, PROMPTS))
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-4)
    for chunk in (7, 1):
        assert torch.equal(torch.stack(prompt_logits(loaded, ops, PROMPTS, chunk)), together)
    for prompt, rows in zip(PROMPTS, together, strict=True):
        assert torch.equal(prompt_logits(loaded, ops, [prompt])[0], rows)
        # As many tokens as there are experts: rows must not be taken for those of a parameter.
        assert torch.equal(prompt_logits(loaded, ops, [prompt], 4)[0], rows)
    some = Run(loaded, ops, 2, 40, torch.float32).step([prompt[:20] for prompt in PROMPTS], [3, 19, 20, 39])[0]
    assert torch.equal(some, torch.cat([rows[:20] for rows in together])[[3, 19, 20, 39]])


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}])
def test_a_llama_is_octavos_own_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    make_model(tmp_path, "Llama", {**options, "head_dim": 32, "intermediate_size": 160})
    ops = bind("cpu")
    native, other = load(tmp_path, ops), bridged(tmp_path)
    assert (native.num_params, native.weight_bytes) == (other.num_params, other.weight_bytes)
    assert native.spec.tie_word_embeddings == other.spec.tie_word_embeddings
    definitions = [each.model.definition for each in (native, other)]
    assert len({(each.layer_ops_per_token, each.attention_ops_per_key) for each in definitions}) == 1
    for ours, theirs in zip(prompt_logits(native, ops, PROMPTS), prompt_logits(other, ops, PROMPTS), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


def test_quantized_weights_stay_what_they_are(tmp_path: Path) -> None:
    make_model(tmp_path, "Llama", {"head_dim": 32})
    ops = bind("cpu")
    native, other = load(tmp_path, ops, quantization="int8"), bridged(tmp_path, quantization="int8")
    assert (native.quantization, native.weight_bytes) == (other.quantization, other.weight_bytes)
    ours, theirs = (torch.stack(prompt_logits(each, ops, PROMPTS)) for each in (native, other))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "writer", "method"),
    [
        (checkpoints.LLAMA, lambda weight: written.gptq(weight, act_order=True), checkpoints.GPTQ),
        (checkpoints.LLAMA, lambda weight: written.float8(weight, kind="matrix"), checkpoints.FP8),
        (EXPERTS, written.awq, checkpoints.AWQ),  # they are stacked while they load: as floats
    ],
)
def test_a_quantized_checkpoint_is_what_octavos_own_family_makes_of_it(
    config: dict[str, Any], writer: written.Writer, method: dict[str, Any], tmp_path: Path
) -> None:
    path = checkpoints.quantized(tmp_path, config, writer, method, skip=(".mlp.gate.",))
    ops = bind("cpu")
    native, other = load(path, ops), bridged(path)
    assert native.num_params == other.num_params
    if config is checkpoints.LLAMA:
        assert native.weight_bytes == other.weight_bytes
    ours, theirs = (prompt_logits(each, ops, [checkpoints.IDS])[0] for each in (native, other))
    assert checkpoints.divergence(theirs, ours) < 1e-3


def test_matrices_norms_and_products_are_the_tables(tmp_path: Path) -> None:
    make_model(tmp_path, "Llama", {"head_dim": 32})
    model = bridged(tmp_path).model
    assert isinstance(model, BridgedModel)
    own = {name for name, module in model._tree.named_modules() if "forward" in module.__dict__}
    layer = {"input_layernorm", "post_attention_layernorm", "mlp", "self_attn.q_proj", "self_attn.o_proj"}
    assert {f"model.layers.0.{name}" for name in layer} | {"model.norm", "model.embed_tokens", "lm_head"} <= own
    assert not model.definition.row_wise


def test_weights_of_older_checkpoints_are_found_by_transformers_rules(tmp_path: Path) -> None:
    """Experts one by one, and a model saved without its head's prefix."""
    make(tmp_path, "flex_olmo", OPTIONS["flex_olmo"])
    assert any(".experts.0.gate_proj" in name for name in load_file(tmp_path / "model.safetensors"))
    make(tmp_path / "old", "helium", OPTIONS["helium"])
    expected = prompt_logits(bridged(tmp_path / "old"), bind("cpu"), PROMPTS)
    tensors = load_file(tmp_path / "old/model.safetensors")
    renamed = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    renamed["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(renamed, tmp_path / "old/model.safetensors")
    for ours, theirs in zip(prompt_logits(bridged(tmp_path / "old"), bind("cpu"), PROMPTS), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"1 missing tensor: model\.layers\.1\.mlp\.up_proj\.we"),
        (lambda t: t.update(extra=torch.ones(2)), r"1 unexpected tensor: extra"),
        (lambda t: t.update({"model.norm.weight": torch.ones(3)}), r"'model\.norm\.weight' has the shape \[3\]"),
        (lambda t: t["lm_head.weight"].fill_(float("nan")), r"'lm_head\.weight' holds NaN"),
    ],
)
def test_wrong_tensors_are_errors_by_name(change: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path, "helium", OPTIONS["helium"])
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        bridged(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "options", "reason"),
    [
        ("mamba", {"state_size": 4, "num_hidden_layers": 1}, "its layers keep a state of their own"),
        (
            "gptj",
            {"n_embd": 64, "n_layer": 1, "n_head": 4, "rotary_dim": 8},
            "does not go through transformers' attent",
        ),
        ("xglm", {"d_model": 64, "num_layers": 1, "attention_heads": 4, "ffn_dim": 64}, "a mask or a bias of its own"),
        ("bart", {"d_model": 64, "decoder_layers": 1}, "attends to an encoder|encoder"),
        (
            "helium",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}},
            r"its positions \(dynamic rope\) change with the longest sequence of a step",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(
    model_type: str, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """K20."""
    config = CONFIG_MAPPING[model_type](**{**SIZES, "num_hidden_layers": 1, "pad_token_id": 0, **options})
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
    config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=reason):
        bridged(tmp_path, load_format="dummy")


def test_a_module_that_looks_at_other_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the classes shows it: the look at real rows does."""
    make(tmp_path, "helium", OPTIONS["helium"])
    kind = transformers.models.helium.modeling_helium.HeliumMLP
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: forward(self, x) + x.mean(1, keepdim=True))
    loaded = bridged(tmp_path)  # such a thing is harmless where it sees one row at a time
    assert any(path.endswith(".mlp") for path in loaded.model.definition.row_wise)  # type: ignore[attr-defined]
    layer = transformers.models.helium.modeling_helium.HeliumDecoderLayer
    whole = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, x, **rest: whole(self, x, **rest) + x.mean(1, keepdim=True))
    with pytest.raises(CheckpointError, match="its HeliumDecoderLayer computes in a way that depends on the step's ot"):
        bridged(tmp_path)


def test_whose_implementation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(impl: Any, architecture: str, source: str = "a") -> str:
        values = {"architectures": [architecture], "model_type": "helium"}
        return implementation.implementation(ModelConfig(model_impl=impl), values, source)

    assert [chosen(impl, "LlamaForCausalLM") for impl in ("auto", "octavo", "vllm")] == ["octavo"] * 3
    assert chosen("transformers", "LlamaForCausalLM") == "transformers"
    assert chosen("auto", "HeliumForCausalLM") == "transformers"
    with pytest.raises(CheckpointError, match=r"no family for 'LamaForCausalLM'; did you mean LlamaForC.*--model-impl"):
        chosen("octavo", "LamaForCausalLM")
    assert chosen("transformers", "LlamaForCausalLM", "a.gguf") == "transformers"
    with pytest.raises(CheckpointError, match="Models without a family need their safetensors files"):
        chosen("transformers", "LamaForCausalLM", "a.gguf")
    monkeypatch.setattr(implementation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"did you mean LlamaForCausalLM.*pip install 'octavo\[transformers\]'"):
        chosen("auto", "LamaForCausalLM")
    with pytest.raises(CheckpointError, match=r"which is not installed: pip install 'octavo\[transformers\]'"):
        chosen("transformers", "LlamaForCausalLM")


CODE = """
from transformers.models.helium import HeliumConfig, HeliumForCausalLM

class OwnConfig(HeliumConfig):
    model_type = "octavo_test_own"

class OwnForCausalLM(HeliumForCausalLM):
    config_class = OwnConfig
"""


def test_code_beside_a_model_runs_with_the_flag_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """K21."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = tmp_path / "model"
    expected = transformers_logits(make(model, "helium", OPTIONS["helium"]), PROMPTS)
    (model / "own.py").write_text(CODE)
    change_config(
        model,
        model_type="octavo_test_own",
        architectures=["OwnForCausalLM"],
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
    )
    with pytest.raises(
        CheckpointError, match=r"bring code for it \(own\.OwnForCausalLM\)\. --trust-remote-code runs it"
    ):
        bridged(model)
    assert not (tmp_path / "modules").exists()
    loaded = bridged(model, trust_remote_code=True)
    torch.testing.assert_close(torch.stack(prompt_logits(loaded, bind("cpu"), PROMPTS)), expected, rtol=1e-4, atol=1e-4)


def test_dummy_weights_are_those_of_the_seed(tmp_path: Path) -> None:
    make(tmp_path, "dots1", OPTIONS["dots1"])
    (tmp_path / "model.safetensors").unlink()
    first, again, other = (
        prompt_logits(bridged(tmp_path, load_format="dummy", dtype="float32", seed=seed), bind("cpu"), PROMPTS[:1])[0]
        for seed in (5, 5, 6)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_architecture_that_is_no_language_model_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "helium", OPTIONS["helium"])
    change_config(tmp_path, architectures=["HeliumForSequenceClassification"])
    with pytest.raises(CheckpointError, match=re.escape("no causal language model of transformers")):
        bridged(tmp_path)
