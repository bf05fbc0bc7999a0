"""Llama 3.2 with its vision, the decoder: Llama's layers, and between them some that see rows of pictures beside the
text, each of whose parts has a gate. Without pictures these layers change nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from octavo.models.blocks import Block
from octavo.models.builder import Builder
from octavo.models.common import Common, read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.encoder import CrossAttention
from octavo.models.families.llama import llama_layer
from octavo.models.gates import Gated
from octavo.models.spec import ModelSpec, NormSpec
from octavo.ops.operands import Buffer
from octavo.ops.operations import Add, ReplaceRows

#: Tokens behind the vocabulary, that of pictures among them: they have rows in the embedding, and in no other matrix.
_MARKS: Final = 8
_CROSSED: Final = [3, 8, 13, 18, 23, 28, 33, 38]
_DEFAULTS: Final = {
    "vocab_size": 128_256, "hidden_size": 4096, "hidden_act": "silu", "num_hidden_layers": 40,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14_336, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131_072, "rope_theta": 500_000.0,
}  # fmt: skip


@dataclass(frozen=True)
class Skipped:
    """A layer that sees pictures, where there are none."""

    def emit(self, build: Builder, residual: Buffer) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True)
class PictureLayer:
    """The MLP adds nothing to rows that the step has rows of zeros for: no picture stands before them."""

    cross: Block
    mlp: Block
    norm: NormSpec

    def emit(self, build: Builder, residual: Buffer) -> None:
        x = build.norm(residual, self.norm, "input_layernorm", "attn_norm")
        build.ops.append(Add(residual=residual, x=Gated(block=self.cross, name="cross_attn_attn_gate").emit(build, x)))
        x = build.norm(residual, self.norm, "post_attention_layernorm", "ffn_norm")
        out = Gated(block=self.mlp, name="cross_attn_mlp_gate").emit(build, x)
        build.ops += [ReplaceRows(x=out), Add(residual=residual, x=out)]


def spec(config: ConfigReader) -> ModelSpec:
    """The text alone, for which layers that see pictures are skipped."""
    common, crossed = _read(config)
    layer = llama_layer(common)
    vocab = common.vocab_size
    return replace(common, vocab_size=vocab + _MARKS).decoder(
        [Skipped() if number in crossed else layer for number in range(common.num_layers)],
        missing_outputs=_MARKS,
        unused_ids=tuple(range(vocab, vocab + _MARKS)),
        unused=tuple(rf"model\.layers\.{number}\..*" for number in sorted(crossed)),
    )


def seeing(config: ConfigReader, spec: ModelSpec) -> ModelSpec:
    """With the layers that see pictures."""
    common, crossed = _read(config)
    plain = llama_layer(common)
    cross = CrossAttention(
        heads=common.heads, scale=common.heads.head_dim**-0.5, qk_norm=common.norm, name="cross_attn", gguf="cross_attn"
    )
    assert plain.mlp is not None
    layer = PictureLayer(cross=cross, mlp=plain.mlp, norm=common.norm)
    return replace(
        spec, layers=tuple(layer if number in crossed else plain for number in range(common.num_layers)), unused=()
    )


def _read(config: ConfigReader) -> tuple[Common, set[int]]:
    config = config.with_defaults(_DEFAULTS)
    config.refuse_unless("tie_word_embeddings", (False,))
    common = read_common(config)
    found = config.get("cross_attention_layers")
    found = _CROSSED if found is None else found
    if not isinstance(found, list) or not all(type(each) is int and 0 <= each < common.num_layers for each in found):
        raise config.fail("cross_attention_layers", f"is not a list of numbers of the {common.num_layers} layers")
    if not found or len(set(found)) == common.num_layers:
        raise config.fail("cross_attention_layers", "leaves no layer of one of the two kinds")
    return common, set(found)
