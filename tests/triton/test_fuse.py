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
BEGIN = ["Embed", "Norm", "Linear", "RopeWrite", "Attend", "KeepRows", "Linear"]


def operations(directory: Path, family: str, **options: Any) -> list[str]:
    """The names of the operations that a GPU would run of a small model."""
    make_model(directory, family, SIZES)
    binding = Binding(
        torch_device=torch.device("cpu"), activation_dtype=torch.bfloat16, to_device=lambda weight: weight, **options
    )
    return [type(op).__name__ for op in load(directory, bind("cuda", binding=binding)).model.program.ops]


def test_a_gated_activation_joins_the_product_before_it(tmp_path: Path) -> None:
    assert operations(tmp_path, "Llama") == [*BEGIN, "AddNorm", "LinearAct", "Linear", "AddNorm"]


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_quantized_matrices_get_their_input_from_what_is_in_front(quantization: str, tmp_path: Path) -> None:
    found = operations(tmp_path, "Llama", quantization=quantization)
    assert found == [*BEGIN, "AddNormQuant", "LinearQuant", "ActQuant", "LinearQuant", "AddNorm"]


def test_what_is_not_fused_stays_as_it_is(tmp_path: Path) -> None:
    """Layer norms and plain activations."""
    found = operations(tmp_path, "GPT2", quantization="int8")
    assert found == ["Embed", "Embed", "AddNorm", *BEGIN[2:], "AddNorm", "Linear", "Act", "Linear", "AddNorm"]
