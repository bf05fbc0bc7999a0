"""Whisper: an encoder of a sound's frames, and a decoder that sees its rows; learned positions, norms in front of the
blocks and behind the stacks, and biases everywhere but in the keys."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Sequential
from octavo.models.common import Common, read_common
from octavo.models.config_reader import MAX_LAYERS, ConfigReader
from octavo.models.encoder import CrossAttention, Crossed, EncoderSpec, FramesSpec
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec, NormSpec

_NORM: Final = NormSpec(eps=1e-5, kind="layer", bias=True)
_MAX_CHANNELS: Final = 1024
#: What configurations leave out, since it is transformers' default.
_DEFAULTS: Final[dict[str, Any]] = {
    "num_mel_bins": 80, "max_source_positions": 1500, "max_target_positions": 448, "tie_word_embeddings": True,
    "activation_function": "gelu", "decoder_start_token_id": 50257, "is_encoder_decoder": True,
}  # fmt: skip
HF: Final = Layout(
    # The output matrix is that of the embeddings.
    ignored=(r"proj_out\.weight",),
    renames=(
        (r"coder\.layer_norm\.", "coder.norm."), (r"^model\.decoder\.", "model."),
        (r"\.self_attn_layer_norm\.", ".input_layernorm."), (r"\.final_layer_norm\.", ".post_attention_layernorm."),
        (r"\.out_proj\.", ".o_proj."), (r"\.fc1\.", ".mlp.up_proj."), (r"\.fc2\.", ".mlp.down_proj."),
    ),
    flattened=r"model\.encoder\.conv[12]\.weight",
)  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(_DEFAULTS)
    for key in ("tie_word_embeddings", "is_encoder_decoder"):
        config.refuse_unless(key, (True,))
    config.refuse_unless("scale_embedding", (False,))
    encoder, decoder = (_stack(config, *names) for names in (("encoder", "source"), ("decoder", "target")))
    heads = decoder.heads
    cross = CrossAttention(heads=heads, scale=heads.head_dim**-0.5, bias=True, o_bias=True)
    layer = Crossed(attention=_attention(decoder), cross=cross, mlp=_mlp(decoder), norm=_NORM, norms_sums=False)
    plain = Sequential(attention=_attention(encoder, causal=False), mlp=_mlp(encoder), norm=_NORM)
    return decoder.decoder(
        [layer] * decoder.num_layers,
        norm=_NORM,
        learned_positions=True,
        encoder=EncoderSpec(
            hidden_size=encoder.hidden_size,
            max_positions=encoder.max_position_embeddings,
            layers=(plain,) * encoder.num_layers,
            norm=_NORM,
            learned_positions=True,
            frames=FramesSpec(channels=config.integer("num_mel_bins", high=_MAX_CHANNELS), activation="gelu"),
        ),
        decoder_start_token_ids=(config.integer("decoder_start_token_id", low=0, high=decoder.vocab_size - 1),),
    )


def _stack(config: ConfigReader, name: str, positions: str) -> Common:
    """What there is of the encoder or of the decoder, under the keys that all families share."""
    layers, heads = config.integer(f"{name}_layers", 4, MAX_LAYERS), config.get(f"{name}_attention_heads")
    return read_common(
        config.aliased(
            hidden_size="d_model",
            intermediate_size=f"{name}_ffn_dim",
            num_attention_heads=f"{name}_attention_heads",
            hidden_act="activation_function",
            max_position_embeddings=f"max_{positions}_positions",
        ).replaced(num_hidden_layers=layers, num_attention_heads=heads)
    )


def _attention(stack: Common, *, causal: bool = True) -> Attention:
    heads = stack.heads
    return Attention(heads=heads, scale=heads.head_dim**-0.5, bias=True, k_bias=False, o_bias=True, causal=causal)


def _mlp(stack: Common) -> MLP:
    return MLP(size=stack.intermediate_size, activation=stack.activation, bias=True)
