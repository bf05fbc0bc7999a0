"""What families with gated delta nets share: how checkpoints hold them, and what configurations say of them."""

from __future__ import annotations

from typing import Final

from octavo.models.config_reader import MAX_HEAD_DIM, MAX_LAYERS, MAX_SIZE, MAX_TAPS, ConfigReader
from octavo.models.layout import GGUF_EXPERTS, STACKED_EXPERTS, Layout, Split
from octavo.models.spec import NormSpec
from octavo.models.state_blocks import GatedDeltaNet

_INSIDE: Final = tuple(rf"\1{name}_proj.weight" for name in "qkv")
_FILTERS: Final = tuple(rf"\1conv_{name}.weight" for name in "qkv")
_QKV: Final = tuple(rf"\1ssm_{name}.weight" for name in "qkv")
#: Guesses of further tokens.
_DRAFTS: Final = (r"(model\.)?mtp\..*",)
HF: Final = Layout(
    ignored=_DRAFTS,
    renames=(
        (r"(\.linear_attn\.)dt_bias$", r"\1a_proj.bias"), (r"(\.linear_attn\.)A_log$", r"\1A_log.weight"),
        (r"(\.linear_attn\.)in_proj_([ab])\.", r"\1\2_proj."), (r"(\.linear_attn\.)in_proj_z\.", r"\1gate_proj."),
    ),
    splits=(
        # Of each key head what belongs to it stands together.
        Split(r"(.*\.linear_attn\.)in_proj_qkvz\.weight", (*_INSIDE, r"\1gate_proj.weight"), "heads"),
        Split(r"(.*\.linear_attn\.)in_proj_ba\.weight", (r"\1b_proj.weight", r"\1a_proj.weight"), "heads"),
        Split(r"(.*\.linear_attn\.)in_proj_qkv\.weight", _INSIDE),
        Split(r"(.*\.linear_attn\.)conv1d\.weight", _FILTERS, "turned"),
        Split(r"(.*\.self_attn\.)q_proj\.(\w+)", (r"\1q_proj.\2", r"\1gate_proj.\2"), "heads"),
        *STACKED_EXPERTS,
    ),
)  # fmt: skip
GGUF: Final = Layout(
    has_draft_layers=True,
    renames=(
        (r"\.post_attention_norm\.", ".ffn_norm."), (r"\.ssm_a$", ".ssm_a.weight"),
        (r"\.ssm_dt\.bias$", ".ssm_alpha.bias"),
    ),
    splits=(
        Split(r"(blk\.\d+\.)attn_qkv\.weight", _QKV),
        Split(r"(blk\.\d+\.)ssm_in\.weight", (*_QKV, r"\1attn_gate.weight"), "heads"),  # of older files
        Split(r"(blk\.\d+\.)ssm_ba\.weight", (r"\1ssm_beta.weight", r"\1ssm_alpha.weight"), "heads"),
        Split(r"(blk\.\d+\.)ssm_conv1d\.weight", tuple(rf"\1ssm_conv_{name}.weight" for name in "qkv"), "turned"),
        Split(r"(blk\.\d+\.)attn_q\.(\w+)", (r"\1attn_q.\2", r"\1attn_gate.\2"), "heads"),
        GGUF_EXPERTS,
    ),
    minus_exp=r"blk\.\d+\.ssm_a\.weight",
)  # fmt: skip
#: So that all of them together are no wider than anything else.
_MAX_HEADS: Final = MAX_SIZE // MAX_HEAD_DIM


def read_delta(config: ConfigReader, norm: NormSpec, beta_scale: float = 1.0) -> GatedDeltaNet:
    """`linear_heads_tiled` is no key of Hugging Face's: some files of GGUF have heads in another order."""
    config.refuse_unless("hidden_act", ("silu", "swish"))  # that of the convolution, too
    num_heads = config.integer("linear_num_value_heads", high=_MAX_HEADS)
    num_key_heads = config.integer("linear_num_key_heads", high=_MAX_HEADS)
    if num_heads % num_key_heads:
        raise config.fail("linear_num_key_heads", f"does not divide the {num_heads} heads of values")
    return GatedDeltaNet(
        num_heads=num_heads, num_key_heads=num_key_heads, norm=norm, beta_scale=beta_scale,
        key_dim=config.integer("linear_key_head_dim", high=MAX_HEAD_DIM),
        value_dim=config.integer("linear_value_head_dim", high=MAX_HEAD_DIM),
        taps=config.integer("linear_conv_kernel_dim", high=MAX_TAPS, low=2),
        tiled=config.flag("linear_heads_tiled", False),
    )  # fmt: skip


def delta_kinds(config: ConfigReader, num_layers: int) -> list[str]:
    """`layer_types`; unless they are told, every `full_attention_interval`-th layer has attention."""
    interval = config.integer("full_attention_interval", 4, MAX_LAYERS)
    kinds = ["linear_attention" if (number + 1) % interval else "full_attention" for number in range(num_layers)]
    config = config.with_defaults({"layer_types": kinds})
    return config.layer_kinds(num_layers, ("linear_attention", "full_attention"))
