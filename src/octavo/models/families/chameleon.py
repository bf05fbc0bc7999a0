"""Chameleon: Llama with layer norms of each head of q and k, and the codes of pictures among its tokens, which it reads
and never writes. With `swin_norm` its norms are of what blocks add."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import PostNorm
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.layout import Layout, Split
from octavo.models.spec import ModelSpec, NormSpec

_DEFAULTS: Final[dict[str, Any]] = {
    "vocab_size": 65536, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
}  # fmt: skip
HF: Final = Layout(splits=(Split(r"(.*self_attn\.[qk]_norm)\.(weight|bias)", (r"\1.#.\2",), "stack"),))
_HEAD_NORM: Final = NormSpec(eps=1e-5, kind="layer", bias=True)
#: What the names of the tokens of codes begin with; then come digits as letters, A for 0, and a letter of no meaning.
_CODE: Final = "IMGIMG"
_DIGITS: Final = str.maketrans("ABCDEFGHIJ", "0123456789")


def spec(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(_DEFAULTS)
    common = read_common(config)
    bias = config.flag("attention_bias", False)
    layer: Any = llama_layer(
        common, bias=bias, o_bias=bias, qk_norm=_HEAD_NORM, qk_norm_of="each head",
        mlp_bias=config.flag("mlp_bias", False),
    )  # fmt: skip
    if config.flag("swin_norm", False):
        names = ("input_layernorm", "post_attention_layernorm")
        layer = PostNorm(attention=layer.attention, mlp=layer.mlp, norm=layer.norm, names=names)
    return common.decoder([layer] * common.num_layers, unused_ids=tuple(sorted(code_tokens(config).values())))


def code_tokens(config: ConfigReader) -> dict[int, int]:
    """The tokens of codes by their numbers."""
    vocabulary = config.get("vocabulary_map")
    if not isinstance(vocabulary, dict):
        raise config.fail("vocabulary_map", "does not name the tokens of pictures")
    size, found = config.integer("vocab_size", _DEFAULTS["vocab_size"]), {}
    for name, token in vocabulary.items():
        if name.startswith(_CODE):
            number = name[len(_CODE) : -1].translate(_DIGITS)
            if not number.isdecimal() or type(token) is not int or not 0 <= token < size:
                raise config.section("vocabulary_map").fail(name, "is no token of a code")
            found[int(number)] = token
    return found
