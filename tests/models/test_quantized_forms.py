"""Models in the forms of younger tools: found by their files, and the same logits as the weights they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.running import load, prompt_logits
from models.test_quantized import IDS, LLAMA, PHI, change_tensors, divergence, plain, refused
from octavo.base.errors import CheckpointError, InvalidConfig
from octavo.ops.table import Ops, bind
from support import quantized_checkpoints as q
from support import quantized_forms as f

pytestmark = pytest.mark.usefixtures("one_torch_thread")

AO = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {}}}}
OPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
#: quanto's library writes no more than a list of modules, which is beside the files.
QMAP = {"model.layers.0.self_attn.q_proj": {"weights": "qint4", "activations": "none"}}


@pytest.fixture(scope="module")
def native() -> Ops:
    return bind("cpu")


@pytest.mark.parametrize(
    ("config", "writer", "method", "about", "summary"),
    [
        (LLAMA, f.quanto, {}, None, "quanto 4 bits x14"),
        # One matrix of the file is several of the model, and its shape is known from them alone.
        (PHI, lambda w: f.quanto(w, 2), {}, None, "quanto 4 bits x8"),
        (LLAMA, f.ao_int4, AO, f.about("Int4Tensor"), "torchao 4 bits x14"),
        (LLAMA, f.ao_nvfp4, AO, f.about("NVFP4Tensor"), "torchao 4 bits x14"),
        (LLAMA, f.modelopt_nvfp4, OPT, None, "modelopt 4 bits x14"),
        (LLAMA, lambda w: f.modelopt_int4(w, smooth=True), {**OPT, "quant_algo": "W4A16_AWQ"}, None,
         "modelopt 32 bits x14"),
        (LLAMA, f.ct_mx, {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}, None,
         "compressed-tensors 5 bits x14"),
        (LLAMA, f.sparse, {"quant_method": "gptq_marlin_24", "bits": 4}, None, "gptq_marlin_24 4 bits x14"),
        (LLAMA, q.awq, {"quant_method": "intel/auto-round", "packing_format": "auto_round:auto_awq"}, None,
         "auto-round 4 bits x14"),
    ],
)  # fmt: skip
def test_logits_are_those_of_the_weights_it_means(
    config: dict[str, Any],
    writer: q.Writer,
    method: dict[str, Any],
    about: str | None,
    summary: str,
    tmp_path: Path,
    native: Ops,
) -> None:
    path = q.write(plain(tmp_path / "plain", config), tmp_path / "quantized", writer, method, about=about)
    if not method:
        (path / "quanto_qmap.json").write_text(json.dumps(QMAP))
    reference = bind("cpu", "reference")
    expected = prompt_logits(load(path / "dense", reference), reference, [IDS])[0]
    found = prompt_logits(load(path, reference), reference, [IDS])[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    loaded = load(path, native)
    assert loaded.quantization == summary
    assert divergence(prompt_logits(loaded, native, [IDS])[0], expected) < 2e-3


def test_modelopt_may_say_what_it_is_in_a_file_of_its_own(tmp_path: Path, native: Ops) -> None:
    path = q.write(plain(tmp_path / "plain", LLAMA), tmp_path / "quantized", q.float8, {})
    says = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    (path / "hf_quant_config.json").write_text(json.dumps(says))
    assert load(path, native, quantization="modelopt").quantization == "modelopt 8 bits x14"
    with pytest.raises(InvalidConfig, match="are quantized already, as modelopt"):
        load(path, native, quantization="gptq")


def test_damaged_metadata_and_values_of_torchao_name_the_tensor(tmp_path: Path) -> None:
    path = q.write(plain(tmp_path / "plain", LLAMA), tmp_path / "q", f.ao_int4, AO, about=f.about("Int4Tensor"))
    up = "model.layers.1.mlp.up_proj"
    tensors = load_file(path / "model.safetensors")
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path / "model.safetensors")
    refused(path, "the file's metadata do not say of which kind")
    tensors.pop(f"{up}._weight_zero_point")
    metadata = {f"model.layers.{i}.{m}.weight": f.about("Int4Tensor") for i in (0, 1) for m in MATRICES}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path / "model.safetensors", metadata)
    refused(path, f"tensor '{up}._weight_zero_point' is missing")


MATRICES = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]


def test_values_of_quanto_must_be_as_many_as_the_model_has(tmp_path: Path) -> None:
    path = q.write(plain(tmp_path / "plain", LLAMA), tmp_path / "quantized", f.quanto, {})
    (path / "quanto_qmap.json").write_text(json.dumps(QMAP))
    up = "model.layers.1.mlp.up_proj.weight"
    change_tensors(path, **{f"{up}._data._data": torch.zeros(5, 64, dtype=torch.uint8),
                            f"{up}._scale": torch.ones(10, 1), f"{up}._shift": torch.ones(10, 1)})  # fmt: skip
    refused(path, rf"tensor '{up}' has the shape \[10, 64\], not \[192, 128\]")


def test_pickles_of_torchao_are_refused_by_name(tmp_path: Path) -> None:
    """They are subclasses of tensors, which torch makes again by running code of torchao."""
    path = plain(tmp_path / "plain", LLAMA)
    (path / "model.safetensors").unlink()
    pickled = b"\x80\x02ctorchao.dtypes.affine_quantized_tensor\nAffineQuantizedTensor\nq\x00."
    (path / "pytorch_model.bin").write_bytes(pickled)
    with pytest.raises(CheckpointError, match="torchao.*save it again as safetensors"):
        load(path, bind("cpu", "reference"))
