"""Models of states alone: Mamba, FalconMamba, which norms what its scans take, and Mamba 2. There is no attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from octavo.models.blocks import Block, Sequential
from octavo.models.config_reader import MAX_LAYERS, MAX_POSITIONS, MAX_STATE_SIZE, MAX_TAPS, ConfigReader
from octavo.models.mamba import MAMBA2_HF, MAMBA_HF, mamba_width, read_mamba2
from octavo.models.spec import ModelSpec, NormSpec
from octavo.models.state_blocks import Mamba

_RENAMES: Final = (
    (r"^model\.(?=backbone\.|lm_head\.)", ""), (r"^backbone\.", "model."),
    (r"^model\.embeddings?\.", "model.embed_tokens."),
    (r"\.norm_f\.", ".norm."), (r"(\.layers\.\d+)\.norm\.", r"\1.input_layernorm."), (r"\.mixer\.", ".mamba."),
)  # fmt: skip
HF: Final = replace(MAMBA_HF, renames=(*_RENAMES, *MAMBA_HF.renames))
HF_2: Final = replace(MAMBA2_HF, renames=(*_RENAMES, *MAMBA2_HF.renames))
#: Where a configuration tells no longest context: a state is of one size however long a sequence is.
_POSITIONS: Final = 1 << 18


def spec(config: ConfigReader) -> ModelSpec:
    return _mamba(config, None)


def falcon_spec(config: ConfigReader) -> ModelSpec:
    """The norms of what a scan takes have no weights."""
    return _mamba(config, NormSpec(eps=config.number("mixer_rms_eps", 1e-6), has_weight=False))


def spec_2(config: ConfigReader) -> ModelSpec:
    config = config.aliased(
        mamba_n_heads="num_heads", mamba_n_groups="n_groups", mamba_d_state="state_size", mamba_d_head="head_dim",
        mamba_d_conv="conv_kernel", mamba_conv_bias="use_conv_bias", mamba_proj_bias="use_bias", mamba_expand="expand",
    ).with_defaults({"mamba_n_groups": 8, "mamba_d_state": 128, "tie_word_embeddings": False})  # fmt: skip
    norm = _norm(config)
    return _decoder(config, norm, read_mamba2(config, norm, mamba_width(config)))


def _mamba(config: ConfigReader, norm: NormSpec | None) -> ModelSpec:
    """`norm`: of what a scan takes."""
    config = config.aliased(mamba_d_ssm="intermediate_size", mamba_expand="expand")
    config.refuse_unless("hidden_act", ("silu", "swish"))
    rank = None if config.get("time_step_rank") == "auto" else config.get("time_step_rank")
    mamba = Mamba(
        width=mamba_width(config),
        state_size=config.integer("state_size", 16, MAX_STATE_SIZE),
        taps=config.integer("conv_kernel", 4, MAX_TAPS, low=2),
        dt_rank=-(-config.integer("hidden_size") // 16) if rank is None else config.integer("time_step_rank"),
        norm=norm, bias=config.flag("use_bias", False), conv_bias=config.flag("use_conv_bias", True),
    )  # fmt: skip
    return _decoder(config, _norm(config), mamba)


def _norm(config: ConfigReader) -> NormSpec:
    return NormSpec(eps=config.number("layer_norm_epsilon", 1e-5))


def _decoder(config: ConfigReader, norm: NormSpec, mixer: Block) -> ModelSpec:
    config.refuse_unless("quantization_config", ({},))
    layer = Sequential(norm=norm, attention=mixer, mlp=None)
    return ModelSpec(
        model_type=str(config.get("model_type")),
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        max_position_embeddings=config.integer("max_position_embeddings", _POSITIONS, MAX_POSITIONS),
        layers=(layer,) * config.integer("num_hidden_layers", high=MAX_LAYERS),
        norm=norm,
        tie_word_embeddings=config.flag("tie_word_embeddings", True),
    )
