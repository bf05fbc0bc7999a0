"""BART and mBART: an encoder and a decoder that sees its rows; learned positions, of which the first is number 2, layer
norms and biases. BART norms its sums, mBART what goes into its blocks, and its stacks end with a norm."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Layer, NormedSum, Sequential
from octavo.models.common import Common, read_common
from octavo.models.config_reader import MAX_LAYERS, ConfigReader
from octavo.models.encoder import CrossAttention, Crossed, EncoderSpec
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec, NormSpec

_NORM: Final = NormSpec(eps=1e-5, kind="layer", bias=True)
#: What configurations leave out, since it is transformers' default.
_DEFAULTS: Final[dict[str, Any]] = {
    "max_position_embeddings": 1024, "tie_word_embeddings": True, "activation_function": "gelu",
    "decoder_start_token_id": 2,
}  # fmt: skip
HF: Final = Layout(
    ignored=(r"model\.(encoder|decoder)\.embed_tokens\.weight",),
    renames=(
        (r"^model\.shared\.", "model.embed_tokens."), (r"^final_logits_bias$", "model.embed_tokens.bias"),
        (r"\.layernorm_embedding\.", ".embed_norm."), (r"coder\.layer_norm\.", "coder.norm."),
        (r"^model\.decoder\.", "model."),
        (r"\.self_attn_layer_norm\.", ".input_layernorm."), (r"\.final_layer_norm\.", ".post_attention_layernorm."),
        (r"\.out_proj\.", ".o_proj."), (r"\.fc1\.", ".mlp.up_proj."), (r"\.fc2\.", ".mlp.down_proj."),
    ),
    # The first token is at position 2.
    skipped=((r"model\.(encoder\.)?embed_positions\.weight", 2),),
)  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    return _spec(config.with_defaults({"bos_token_id": 0}), norms_sums=True)


def mbart(config: ConfigReader) -> ModelSpec:
    """The decoder's first token names the language, and none stands between it and the text."""
    return _spec(config.without("bos_token_id"), norms_sums=False)


def _spec(config: ConfigReader, *, norms_sums: bool) -> ModelSpec:
    config = config.with_defaults(_DEFAULTS)
    for key in ("tie_word_embeddings", "is_encoder_decoder"):
        config.refuse_unless(key, (True,))
    encoder, decoder = (_stack(config, name) for name in ("encoder", "decoder"))
    scale = decoder.hidden_size**0.5 if config.flag("scale_embedding", False) else 1.0
    shared: dict[str, Any] = {
        "norm": None if norms_sums else _NORM, "embedding_scale": scale, "learned_positions": True,
        "embedding_norm": _NORM,
    }  # fmt: skip
    plain = (NormedSum if norms_sums else Sequential)(
        attention=_attention(encoder, causal=False), mlp=_mlp(encoder), norm=_NORM
    )
    heads = decoder.heads
    cross = CrossAttention(heads=heads, scale=heads.head_dim**-0.5, bias=True, k_bias=True, o_bias=True)
    layer: Layer = Crossed(
        attention=_attention(decoder), cross=cross, mlp=_mlp(decoder), norm=_NORM, norms_sums=norms_sums
    )
    return decoder.decoder(
        [layer] * decoder.num_layers,
        tied_bias=True,
        encoder=EncoderSpec(
            hidden_size=encoder.hidden_size,
            max_positions=encoder.max_position_embeddings,
            layers=(plain,) * encoder.num_layers,
            **shared,
        ),
        decoder_start_token_ids=_start(config, decoder.vocab_size),
        **shared,
    )


def _start(config: ConfigReader, vocab_size: int) -> tuple[int, ...]:
    """What the decoder begins with. A token that transformers forces to come first is no choice of the model's: it
    stands there, too."""
    first = "forced_bos_token_id" if config.get("forced_bos_token_id") is not None else "bos_token_id"
    keys = ["decoder_start_token_id", *([first] if config.get(first) is not None else [])]
    return tuple(config.integer(key, low=0, high=vocab_size - 1) for key in keys)


def _stack(config: ConfigReader, name: str) -> Common:
    """What there is of the encoder or of the decoder, under the keys that all families share."""
    layers = config.integer(f"{name}_layers", 12, MAX_LAYERS)
    return read_common(
        config.aliased(
            hidden_size="d_model",
            intermediate_size=f"{name}_ffn_dim",
            num_attention_heads=f"{name}_attention_heads",
            hidden_act="activation_function",
        ).replaced(num_hidden_layers=layers, num_attention_heads=config.get(f"{name}_attention_heads"))
    )


def _attention(stack: Common, *, causal: bool = True) -> Attention:
    heads = stack.heads
    return Attention(heads=heads, scale=heads.head_dim**-0.5, bias=True, o_bias=True, causal=causal)


def _mlp(stack: Common) -> MLP:
    return MLP(size=stack.intermediate_size, activation=stack.activation, bias=True)
