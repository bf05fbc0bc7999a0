"""Damaged, incomplete and hostile checkpoints: one `CheckpointError` that names file and tensor."""

from __future__ import annotations

import json
import logging
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.running import load
from octavo.base.errors import CheckpointError
from octavo.models.checkpoint import DummyCheckpoint
from octavo.models.decoder import define
from octavo.models.registry import model_spec
from octavo.ops.table import bind

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "float32",
    "rope_theta": 10000.0,
}
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    dummy = DummyCheckpoint(define(model_spec(CONFIG, "test")).tensors, CONFIG, "test", 0)
    save_file({name: dummy.get(name) for name in dummy.names()}, tmp_path / "model.safetensors")
    return tmp_path


def refused(model: Path, message: str) -> str:
    with pytest.raises(CheckpointError, match=message) as error:
        load(model, bind("cpu", "reference"))
    assert str(model) in error.value.message
    return error.value.message


def change_tensors(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(model / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, model / "model.safetensors")


def change_config(model: Path, **values: Any) -> None:
    (model / "config.json").write_text(json.dumps({**CONFIG, **values}))


def change_header(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = model / "model.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + raw[8 + length :])


def test_the_undamaged_model_loads(model: Path) -> None:
    loaded = load(model, bind("cpu", "reference"))
    assert loaded.num_params == sum(t.numel() for t in load_file(model / "model.safetensors").values())


def test_a_missing_tensor_is_named(model: Path) -> None:
    change_tensors(model, lambda tensors: tensors.pop(UP))
    refused(model, f"1 missing tensor: {UP}")


def test_of_many_missing_tensors_ten_are_named(model: Path) -> None:
    change_config(model, num_hidden_layers=4)
    message = refused(model, "18 missing tensors: ")
    assert message.count("model.layers.") == 10


def test_an_unexpected_tensor_is_named(model: Path) -> None:
    change_tensors(model, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}))
    refused(model, r"1 unexpected tensor: model\.layers\.0\.self_attn\.q_proj\.bias")


def test_a_wrong_shape_is_named(model: Path) -> None:
    change_tensors(model, lambda tensors: tensors.update({UP: torch.ones(32, 64)}))
    refused(model, rf"{UP}.*\[32, 64\], not \[64, 32\]")


def test_a_tensor_without_values_is_named(model: Path) -> None:
    change_tensors(model, lambda tensors: tensors.update({UP: torch.empty(0, 32)}))
    refused(model, rf"{UP}.*\[0, 32\], not \[64, 32\]")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [UP, "model.norm.weight", "lm_head.weight"])
def test_a_value_that_is_not_finite_is_refused(name: str, value: float, model: Path) -> None:
    change_tensors(model, lambda tensors: tensors[name].view(-1)[5:6].fill_(value))
    refused(model, f"{name}.*NaN or infinite")


def test_an_overflow_by_the_dtype_flag_is_refused(model: Path) -> None:
    change_tensors(model, lambda tensors: tensors[UP].view(-1)[5:6].fill_(1e6))
    load(model, bind("cpu", "reference"))
    with pytest.raises(CheckpointError, match=f"{UP}.*NaN or infinite"):
        load(model, bind("cpu", "reference"), dtype="float16")


def test_tensors_that_follow_from_the_configuration_may_be_there(model: Path) -> None:
    change_tensors(
        model, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    )
    load(model, bind("cpu", "reference"))
    change_config(model, tie_word_embeddings=True)
    assert load(model, bind("cpu", "reference")).spec.tie_word_embeddings


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_cut_file_is_refused(keep: int, model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(model, "damaged safetensors" if keep else "empty")


def set_field(name: str, field: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[name].update({field: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_field(UP, "shape", [-64, 32]), UP),
        (set_field(UP, "shape", [2**62, 2**62]), UP),
        (set_field(UP, "shape", "x"), UP),
        (set_field(UP, "shape", [True, 2048]), UP),
        (set_field(UP, "dtype", "F31"), f"{UP}.*'F31'"),
        (set_field(UP, "dtype", "F16"), UP),
        (set_field(UP, "data_offsets", [0, 8192]), "does not begin where the one before it ends"),
        (set_field(UP, "data_offsets", [8192, 0]), UP),
        (set_field(UP, "data_offsets", [0, 2**63]), f"{UP}.*truncated"),
        (set_field(UP, "data_offsets", None), UP),
        (lambda header: header.update({UP: 5}), UP),
        (lambda header: header.pop(UP), "does not begin|file at"),
        (
            lambda header: header.update({"big": {"dtype": "U8", "shape": [9], "data_offsets": [2**40, 2**40 + 9]}}),
            "big",
        ),
    ],
)
def test_a_wrong_header_names_the_tensor(change: Any, message: str, model: Path) -> None:
    change_header(model, change)
    refused(model, message)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 200_000_000, 3])
def test_a_wrong_header_length_is_refused(length: int, model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    refused(model, "header")


def test_integers_are_no_weights(model: Path) -> None:
    change_tensors(model, lambda tensors: tensors.update({UP: torch.ones(64, 32, dtype=torch.int8)}))
    refused(model, f"{UP}.*int8")


def shard(model: Path, weight_map: dict[str, Any] | None = None) -> None:
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, model / file)
    placed = {name: file for file, part in parts.items() for name in part}
    (model / "model.safetensors").unlink()
    index = {"weight_map": {**placed, **(weight_map or {})}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_load_and_a_missing_one_is_named(model: Path) -> None:
    shard(model)
    load(model, bind("cpu", "reference"))
    (model / "b.safetensors").unlink()
    refused(model, r"b\.safetensors: this shard is missing")


@pytest.mark.parametrize(
    ("placed", "message"),
    [
        ({UP: "../a.safetensors"}, r"'\.\./a\.safetensors' is not the name of a file beside it"),
        ({"ghost": "a.safetensors"}, "'ghost' is not in it"),
        ({UP: ""}, "this shard is missing"),
        ({UP: ".."}, "this shard is missing"),
        ({UP: 5}, "weight_map"),
    ],
)
def test_a_wrong_index_is_refused(placed: dict[str, Any], message: str, model: Path) -> None:
    shard(model, placed)
    refused(model, message)


def test_a_pickle_that_is_none_is_refused(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    refused(model, r"pytorch_model\.bin: ")


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(content: str, model: Path) -> None:
    (model / "config.json").write_text(content)
    refused(model, r"config\.json: not")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["RwkvForCausalLM"]}, "RwkvForCausalLM"),
        ({"architectures": [["x"]]}, "no causal language model"),
        ({"architectures": None, "model_type": "bert"}, "bert"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"head_dim": 514}, "head_dim"),
        ({"head_dim": 15}, "head_dim"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"hidden_act": "xielu"}, "hidden_act.*xielu"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"architectures": ["Lfm2ForCausalLM"], "layer_types": [["conv"], "conv"]}, "layer_types.*conv"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_scaling": {"type": "spiral", "factor": 2.0}}, "spiral"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "default", "beta_fast": 2}}, "beta_fast"),
        ({"rope_scaling": "x"}, "rope_scaling"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (
            {
                "architectures": ["Gemma3ForCausalLM"],
                "rope_parameters": {"full_attention": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}},
            },
            "full_attention: partial_rotary_factor",
        ),
        ({"architectures": ["GPT2LMHeadModel"], "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse"),
        (
            {"architectures": ["GPT2LMHeadModel"], "n_positions": 0, "max_position_embeddings": None},
            "n_positions = '0'",
        ),
        ({"architectures": ["BloomForCausalLM"], "apply_residual_connection_post_layernorm": True}, "post_layernorm"),
        ({"architectures": ["GPTNeoXForCausalLM"], "rotary_pct": 1.5}, "rotary_pct"),
        ({"architectures": ["GPTNeoXForCausalLM"], "rotary_pct": 0.01}, "rotary_pct"),
        (
            {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 5},
            "experts_per_tok",
        ),
        ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 10**6}, "num_local_experts"),
        ({"architectures": ["Phi3ForCausalLM"], "rope_scaling": {"type": "su", "short_factor": [1.0]}}, "long_factor"),
        ({"quantization_config": {"quant_method": "nonesuch"}}, "quantization_config"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(values: dict[str, Any], message: str, model: Path) -> None:
    change_config(model, **values)
    refused(model, message)


def test_code_of_the_model_directory_is_never_imported(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    (model / "evil.py").write_text("raise SystemExit('imported')")
    change_config(model, auto_map={"AutoModelForCausalLM": "evil.Model"}, trust_remote_code=True)
    with caplog.at_level(logging.WARNING, "octavo.models"):
        load(model, bind("cpu", "reference"))
    assert "auto_map is ignored" in caplog.text
    assert "evil" not in sys.modules


def test_the_load_format_must_fit_the_files(model: Path) -> None:
    with pytest.raises(CheckpointError, match="--load-format gguf"):
        load(model, bind("cpu", "reference"), load_format="gguf")
