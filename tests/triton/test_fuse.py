"""Which operations of a program become one on a GPU, by the weights' kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.family_cases import make_model
from models.running import load
from octavo.ops.table import Binding, bind

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
BEGIN = ["Embed", "Norm", "Linear", "RotatingAttend", "KeepRows", "Linear"]


#: Options of the table; all others are the model's.
TABLE = ("quantization", "batch_invariant")


def operations(directory: Path, family: str, **options: Any) -> list[str]:
    """The names of the operations that a GPU would run of a small model."""
    make_model(directory, family, SIZES | {key: value for key, value in options.items() if key not in TABLE})
    options = {key: value for key, value in options.items() if key in TABLE}
    binding = Binding(
        torch_device=torch.device("cpu"), activation_dtype=torch.bfloat16, to_device=lambda weight: weight, **options
    )
    return [type(op).__name__ for op in load(directory, bind("cuda", binding=binding)).model.program.ops]


def test_norms_and_gated_activations_join_products_and_the_rotation_joins_attention(tmp_path: Path) -> None:
    found = operations(tmp_path, "Llama", head_dim=80, num_hidden_layers=2)
    layer = ["RotatingAttend", "JoinedNorm", "JoinedNorm"]
    assert found == ["Embed", "JoinedNorm", *layer, "RotatingAttend", "KeepRows", "JoinedNorm", "Linear", "AddNorm"]


def test_what_is_switched_off_is_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.ops.triton.fuse.is_on", lambda switch: False)
    begin = ["Embed", "Norm", "Linear", "RopeWrite", "Attend", "KeepRows", "Linear"]
    assert operations(tmp_path, "Llama", head_dim=80) == [*begin, "AddNorm", "LinearAct", "Linear", "AddNorm"]


def test_one_form_of_each_product_where_bits_must_not_depend_on_the_batch(tmp_path: Path) -> None:
    found = operations(tmp_path, "Llama", head_dim=80, batch_invariant=True)
    begin = ["Embed", "Norm", "Linear", "RopeWrite", "Attend", "KeepRows", "Linear"]
    assert found == [*begin, "AddNorm", "Linear", "Act", "Linear", "AddNorm"]


def test_narrow_heads_are_rotated_by_themselves(tmp_path: Path) -> None:
    assert operations(tmp_path, "Llama", head_dim=64)[2:4] == ["RopeWrite", "Attend"]


def test_a_norm_that_others_read_too_stays(tmp_path: Path) -> None:
    """Of experts and their router; the one in front of attention joins."""
    found = operations(tmp_path, "Mixtral", head_dim=80, num_local_experts=4, num_experts_per_tok=2)
    assert found[1] == "JoinedNorm" and found[4:7] == ["Linear", "AddNorm", "Linear"]


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_quantized_matrices_get_their_input_from_what_is_in_front(quantization: str, tmp_path: Path) -> None:
    found = operations(tmp_path, "Llama", head_dim=80, quantization=quantization)
    assert found == [*BEGIN, "AddNormQuant", "LinearQuant", "ActQuant", "LinearQuant", "AddNorm"]


def test_what_is_not_fused_stays_as_it_is(tmp_path: Path) -> None:
    """Layer norms and plain activations."""
    found = operations(tmp_path, "GPT2", quantization="int8")
    assert found == [
        "Embed",
        "Embed",
        "AddNorm",
        "Linear",
        "RopeWrite",
        "Attend",
        "KeepRows",
        "Linear",
        "AddNorm",
        "Linear",
        "Act",
        "Linear",
        "AddNorm",
    ]
