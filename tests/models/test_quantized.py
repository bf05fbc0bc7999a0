"""Quantized checkpoints as models: which modules are, what is missing, and the same logits as the weights they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.running import greedy, load, prompt_logits
from octavo.base.config.engine import Quantization
from octavo.base.errors import CheckpointError, InvalidConfig
from octavo.models.checkpoint import DummyCheckpoint
from octavo.models.decoder import define
from octavo.models.registry import model_spec
from octavo.ops.table import Ops, bind
from octavo.quant.methods.table import METHODS
from support import quantized_checkpoints as q
from support import quantized_forms as f

pytestmark = pytest.mark.usefixtures("one_torch_thread")

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 128,
    "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "float32",
    "rope_theta": 10000.0,
}  # fmt: skip
PHI: dict[str, Any] = {**LLAMA, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
MIXTRAL: dict[str, Any] = {
    **LLAMA, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4,
    "num_experts_per_tok": 2,
}  # fmt: skip
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}
AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm"}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
IDS = list(range(3, 40))


@pytest.fixture(scope="module")
def native() -> Ops:
    return bind("cpu")


def plain(directory: Path, config: dict[str, Any]) -> Path:
    """A model with weights large enough for logits that differ."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    dummy = DummyCheckpoint(define(model_spec(config, "test")).tensors, config, "test", 0)
    tensors = {name: dummy.get(name) * (1 if dummy.get(name).dim() == 1 else 5) for name in dummy.names()}
    if "Phi3" in config["architectures"][0]:
        for layer in range(config["num_hidden_layers"]):
            for fused, block, parts in (("qkv_proj", "self_attn", "qkv"), ("gate_up_proj", "mlp", ("gate", "up"))):
                names = [f"model.layers.{layer}.{block}.{part}_proj.weight" for part in parts]
                tensors[f"model.layers.{layer}.{block}.{fused}.weight"] = torch.cat([tensors.pop(n) for n in names])
    save_file(tensors, directory / "model.safetensors")
    return directory


def quantized(tmp_path: Path, config: dict[str, Any], writer: q.Writer, method: dict[str, Any], **more: Any) -> Path:
    return q.write(plain(tmp_path / "plain", config), tmp_path / "quantized", writer, method, **more)


def change_tensors(model: Path, **changes: torch.Tensor | None) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(model / "model.safetensors").items()}
    changed = {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}
    save_file(changed, model / "model.safetensors")


def divergence(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    a, b = theirs.log_softmax(-1), ours.log_softmax(-1)
    return float((a.exp() * (a - b)).sum(-1).mean())


@pytest.mark.parametrize(
    ("config", "writer", "method", "summary"),
    [
        (LLAMA, lambda w: q.gptq(w, act_order=True, symmetric=False), GPTQ, "gptq 4 bits x14"),
        (LLAMA, q.awq, AWQ, "awq 4 bits x14"),
        (LLAMA, lambda w: q.float8(w, kind="matrix"), FP8, "fp8 8 bits x14"),
        (LLAMA, q.bnb_nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes 4 bits x14"),
        # A tensor without values stands for what it has not: scales of groups.
        (LLAMA, q.qqq, {"quant_method": "qqq", "wbits": 4}, "qqq 4 bits x14"),
        # One matrix of the file is several of the model.
        (PHI, lambda w: q.gptq(w, act_order=True), GPTQ, "gptq 4 bits x8"),
        # Columns of both matrices of an expert's pair stand in one order.
        (MIXTRAL, lambda w: q.gptq(w, act_order=True), GPTQ, "gptq 4 bits x32"),
    ],
)
def test_logits_are_those_of_the_weights_it_means(
    config: dict[str, Any], writer: q.Writer, method: dict[str, Any], summary: str, tmp_path: Path, native: Ops
) -> None:
    path = quantized(tmp_path, config, writer, method, skip=(".mlp.gate.",))
    reference = bind("cpu", "reference")
    expected = prompt_logits(load(path / "dense", reference), reference, [IDS])[0]
    assert torch.equal(prompt_logits(load(path, reference), reference, [IDS])[0], expected)
    loaded = load(path, native)
    assert loaded.quantization == summary
    assert divergence(prompt_logits(loaded, native, [IDS])[0], expected) < 1e-3
    assert loaded.num_params == load(path / "dense", native).num_params


def test_modules_that_were_left_as_they_were_come_so(tmp_path: Path, native: Ops) -> None:
    path = quantized(tmp_path, LLAMA, q.awq, {**AWQ, "modules_to_not_convert": ["down_proj"]}, skip=("down_proj",))
    assert load(path, native, quantization="awq_marlin").quantization == "awq 4 bits x12"


def test_an_output_matrix_may_be_quantized(tmp_path: Path) -> None:
    path = quantized(tmp_path, LLAMA, q.gptq, GPTQ)
    parts, _ = q.gptq(load_file(path / "model.safetensors")["lm_head.weight"], act_order=True)
    change_tensors(path, **{"lm_head.weight": None}, **{f"lm_head.{part}": value for part, value in parts.items()})
    assert load(path, bind("cpu")).quantization == "gptq 4 bits x15"


def test_scales_of_a_cache_in_float8_are_passed_over(tmp_path: Path, native: Ops) -> None:
    path = quantized(tmp_path, LLAMA, q.float8, FP8)
    change_tensors(path, **{"model.layers.0.self_attn.k_scale": torch.tensor(0.5)})
    load(path, native)


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_config.json"])
def test_older_tools_wrote_a_file_beside_the_configuration(file: str, tmp_path: Path, native: Ops) -> None:
    writer, method = (q.gptq, "gptq") if file == "quantize_config.json" else (q.awq, "awq")
    path = quantized(tmp_path, LLAMA, writer, {})
    (path / file).write_text(json.dumps({"bits": 4, "w_bit": 4, "group_size": 32, "desc_act": False}))
    assert load(path, native).quantization == f"{method} 4 bits x14"


def test_a_tool_may_call_the_one_file_after_itself(tmp_path: Path, native: Ops) -> None:
    path = quantized(tmp_path, LLAMA, q.gptq, GPTQ)
    (path / "model.safetensors").rename(path / "gptq_model-4bit-32g.safetensors")
    assert load(path, native).quantization == "gptq 4 bits x14"


def test_random_weights_are_floats(tmp_path: Path, native: Ops) -> None:
    path = quantized(tmp_path, LLAMA, q.gptq, GPTQ)
    with pytest.raises(CheckpointError, match="--load-format dummy makes floats, and this model is quantized"):
        load(path, native, load_format="dummy")


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        load(path, bind("cpu", "reference"))
    assert str(path) in error.value.message


UP = "model.layers.1.mlp.up_proj"


def test_missing_and_unexpected_parts_are_named(tmp_path: Path) -> None:
    path = quantized(tmp_path, LLAMA, q.gptq, GPTQ)
    change_tensors(path, **{f"{UP}.extra": torch.ones(3)})
    refused(path, f"1 unexpected tensor: {UP}.extra")
    change_tensors(path, **{f"{UP}.extra": None, f"{UP}.qzeros": None})
    refused(path, f"tensor '{UP}.qzeros' is missing")
    change_tensors(path, **{f"{UP}.{part}": None for part in ("qweight", "scales", "g_idx")})
    refused(path, f"1 missing tensor: {UP}.weight")


def test_scales_and_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = quantized(tmp_path, LLAMA, q.float8, FP8)
    codes = load_file(path / "model.safetensors")[f"{UP}.weight"].view(torch.uint8).clone()
    codes[3, 5] = 255
    change_tensors(path, **{f"{UP}.weight": codes.view(torch.float8_e4m3fn)})
    refused(path, f"{UP}.weight.*NaN or infinite")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"quant_method": "quark"}, "'quark' is not supported; these are: gptq, awq"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse weights"),
        ({**GPTQ, "bits": 7}, "bits = '7'"),
    ],
)
def test_what_is_not_known_is_refused_by_name(method: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = plain(tmp_path / "plain", LLAMA)
    (path / "config.json").write_text(json.dumps({**LLAMA, "quantization_config": method}))
    refused(path, message)


def test_a_flag_that_names_another_kind_is_refused(tmp_path: Path, native: Ops) -> None:
    path = quantized(tmp_path, LLAMA, q.gptq, GPTQ)
    load(path, native, quantization="gptq_marlin")
    with pytest.raises(InvalidConfig, match="--quantization int8: the weights of .* are quantized already, as gptq"):
        load(path, native, quantization="int8")
    with pytest.raises(InvalidConfig, match="--quantization awq: the weights of .* are not of this kind"):
        load(path / "dense", native, quantization="awq")


@pytest.mark.parametrize(
    ("kind", "limit"), [("int8", 1e-3), ("int4", 0.15), ("fp8", 0.03), ("bitsandbytes", 0.15), ("deepspeedfp", 0.03)]
)
def test_floats_are_quantized_while_they_load(kind: str, limit: float, tmp_path: Path, native: Ops) -> None:
    path = plain(tmp_path / "plain", LLAMA)
    dense, loaded = load(path, native), load(path, native, quantization=kind)
    assert loaded.quantization == f"{kind} at load"
    assert loaded.weight_bytes < dense.weight_bytes / 2
    ours, theirs = (prompt_logits(model, native, [IDS])[0] for model in (loaded, dense))
    assert 0 < divergence(ours, theirs) < limit


@pytest.mark.parametrize("by", ["flag", "config"])
def test_experts_alone_are_quantized_while_they_load(by: str, tmp_path: Path, native: Ops) -> None:
    config = MIXTRAL if by == "flag" else {**MIXTRAL, "quantization_config": {"quant_method": "experts_int8"}}
    path = plain(tmp_path / "plain", MIXTRAL)
    dense = load(path, native)
    (path / "config.json").write_text(json.dumps(config))
    loaded = load(path, native, **({"quantization": "experts_int8"} if by == "flag" else {}))
    experts = 2 * 4 * 3 * 128 * 192
    assert dense.weight_bytes - loaded.weight_bytes == pytest.approx(3 * experts, rel=0.05)


def test_every_method_of_the_files_has_a_name_for_the_flag() -> None:
    assert set(METHODS) <= set(get_args(Quantization))


def test_smollm2_in_two_forms_says_what_transformers_says_of_these_weights(
    smollm2_hf: Path, tmp_path: Path, native: Ops
) -> None:
    """Three layers of thirty, which are written in seconds."""
    from transformers import AutoModelForCausalLM

    forms: list[tuple[q.Writer, dict[str, Any], str | None]] = [
        (lambda w: q.gptq(w, 4, 64, act_order=True), {**GPTQ, "group_size": 64}, None),
        (f.ao_int4, {"quant_method": "torchao"}, f.about("Int4Tensor")),
    ]
    others = tuple(f".layers.{layer}." for layer in range(3, 30))
    tensors = load_file(smollm2_hf / "model.safetensors")
    config = json.loads((smollm2_hf / "config.json").read_text())
    prompt = [504, 3575, 282, 4649, 314]
    model = AutoModelForCausalLM.from_pretrained(smollm2_hf, dtype=torch.float32)
    for writer, method, about in forms:
        written, dense = q.converted(tensors, writer, others)
        metadata = None if about is None else dict.fromkeys(dense.keys() - written.keys(), about)
        save_file(written, tmp_path / "model.safetensors", metadata)
        (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": method}))
        loaded = load(tmp_path, native)
        assert loaded.quantization == f"{method['quant_method']} 4 bits x21"
        ours = greedy(loaded, native, prompt, 16)
        assert model.load_state_dict(dense, strict=False).unexpected_keys == []
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ours])).logits[0, len(prompt) - 1 : -1]
        # The token that transformers would take, or one as good as that to it.
        behind = logits.amax(-1) - logits.gather(1, torch.tensor(ours).unsqueeze(1)).squeeze(1)
        assert float(behind.max()) < 0.1, method
