"""What families with Mamba's layers say alike: how their checkpoints hold them, and the keys of the second Mamba."""

from __future__ import annotations

import math
from typing import Any, Final

from octavo.models.config_reader import MAX_STATE_SIZE, MAX_TAPS, ConfigReader
from octavo.models.layout import Layout, Split
from octavo.models.spec import NormSpec
from octavo.models.state_blocks import Mamba2

MAMBA_HF: Final = Layout(
    renames=((r"\.mamba\.dt_layernorm\.", ".mamba.dt_in_layernorm."), (r"\.mamba\.(A_log|D)$", r".mamba.\1.weight")),
    splits=(
        Split(r"(.*\.mamba\.)in_proj\.(\w+)", (r"\1in_proj.\2", r"\1gate_proj.\2")),
        Split(r"(.*\.mamba\.)x_proj\.weight", (r"\1dt_in_proj.weight", r"\1b_proj.weight", r"\1c_proj.weight")),
    ),
    transposed=r".*\.mamba\.(?:conv1d|A_log)\.weight",
)
MAMBA_GGUF: Final = Layout(
    renames=((r"\.ssm_dt_norm\.", ".ssm_dt_in_norm."), (r"\.ssm_([ad])$", r".ssm_\1.weight")),
    splits=(
        Split(r"(blk\.\d+\.ssm_)in\.(\w+)", (r"\1in.\2", r"\1gate.\2")),
        Split(r"(blk\.\d+\.ssm_)x\.weight", (r"\1dt_in.weight", r"\1b.weight", r"\1c.weight")),
    ),
    transposed=r"blk\.\d+\.ssm_(?:conv1d|a)\.weight",
    minus_exp=r"blk\.\d+\.ssm_a\.weight",
)

#: Names of what one tensor of Mamba 2's holds, one below the other.
_INSIDE: Final = ("gate", "in", "b", "c", "dt")
_CONVOLVED: Final = ("in", "b", "c")
MAMBA2_HF: Final = Layout(
    renames=((r"\.mamba\.dt_bias$", ".mamba.dt_proj.bias"), (r"\.mamba\.(A_log|D)$", r".mamba.\1.weight")),
    splits=(
        Split(r"(.*\.mamba\.)in_proj\.weight", tuple(rf"\1{name}_proj.weight" for name in _INSIDE)),
        Split(r"(.*\.mamba\.)conv1d\.(weight)", tuple(rf"\1conv_{name}.\2" for name in _CONVOLVED), "turned"),
        Split(r"(.*\.mamba\.)conv1d\.(bias)", tuple(rf"\1conv_{name}.\2" for name in _CONVOLVED)),
    ),
)
MAMBA2_GGUF: Final = Layout(
    renames=((r"\.ssm_([ad])$", r".ssm_\1.weight"),),
    splits=(
        Split(r"(blk\.\d+\.ssm_)in\.weight", tuple(rf"\1{name}.weight" for name in _INSIDE)),
        Split(r"(blk\.\d+\.ssm_)conv1d\.(weight)", tuple(rf"\1conv_{name}.\2" for name in _CONVOLVED), "turned"),
        Split(r"(blk\.\d+\.ssm_)conv1d\.(bias)", tuple(rf"\1conv_{name}.\2" for name in _CONVOLVED)),
    ),
    minus_exp=r"blk\.\d+\.ssm_a\.weight",
)


def mamba_width(config: ConfigReader) -> int:
    """Channels of a layer: `mamba_d_ssm`, or so many times the hidden size."""
    if config.get("mamba_d_ssm") is not None:
        return config.integer("mamba_d_ssm")
    return config.integer("hidden_size") * config.integer("mamba_expand", 2, 64)


def read_mamba2(config: ConfigReader, norm: NormSpec | None, width: int, **options: Any) -> Mamba2:
    """Of the keys mamba_n_heads, mamba_n_groups, mamba_d_head, mamba_d_state, mamba_d_conv and mamba_conv_bias.

    `options`: fields of the block. Raises CheckpointError for what is not implemented.
    """
    config.refuse_unless("hidden_act", ("silu", "swish"))
    config.refuse_unless("mamba_proj_bias", (False,))
    config.refuse_unless("time_step_limit", ([0.0, math.inf], [0.0, {"__float__": "Infinity"}]))
    num_heads, num_groups = config.integer("mamba_n_heads", 128, width), config.integer("mamba_n_groups", 1, width)
    if width % num_heads:
        raise config.fail("mamba_n_heads", f"does not divide the {width} channels")
    config.refuse_unless("mamba_d_head", ("auto", width // num_heads))
    if num_heads % num_groups:
        raise config.fail("mamba_n_groups", f"does not divide the {num_heads} heads")
    return Mamba2(
        num_heads=num_heads, width=width, num_groups=num_groups, norm=norm,
        state_size=config.integer("mamba_d_state", 256, MAX_STATE_SIZE),
        taps=config.integer("mamba_d_conv", 4, MAX_TAPS, low=2), conv_bias=config.flag("mamba_conv_bias", True),
        **options,
    )  # fmt: skip
