"""Options of models with Mamba 2 that are not implemented are refused by their names."""

from __future__ import annotations

from typing import Any

import pytest

from models.family_cases import HYBRID, SIZES
from octavo.base.errors import CheckpointError
from octavo.models.registry import model_spec

GRANITE: dict[str, Any] = {**SIZES, **HYBRID, "architectures": ["GraniteMoeHybridForCausalLM"], "num_local_experts": 0}
NEMOTRON: dict[str, Any] = {
    **SIZES, "architectures": ["NemotronHForCausalLM"], "mamba_num_heads": 4, "mamba_head_dim": 20, "n_groups": 2,
    "hybrid_override_pattern": "M-*M", "num_hidden_layers": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mamba_proj_bias": True}, "mamba_proj_bias"),
        ({"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type"),
        ({"layer_types": ["mamba"] * 3}, "layer_types.*no attention"),
        ({"layer_types": None}, "layer_types"),
        ({"mamba_n_heads": 5}, "mamba_n_heads"),
        ({"mamba_d_head": 16}, "mamba_d_head"),
        ({"mamba_n_groups": 3}, "mamba_n_groups"),
    ],
)
def test_options_of_granite(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        model_spec({**GRANITE, **changes}, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hybrid_override_pattern": "M-*E"}, "layer_types: 'moe'"),
        ({"hybrid_override_pattern": "MMMM"}, "no attention"),
        ({"use_bias": True}, "use_bias"),
        ({"attention_bias": True}, "attention_bias"),
        ({"sliding_window": 8}, "sliding_window"),
    ],
)
def test_options_of_nemotron_h(changes: dict[str, Any], message: str) -> None:
    model_spec(NEMOTRON, "test")
    with pytest.raises(CheckpointError, match=message):
        model_spec({**NEMOTRON, **changes}, "test")
