"""BERT and those built like it: every token sees the whole text, and each sum is normed. RoBERTa and XLM-R count
positions from their padding token on; DistilBERT has no table of the two texts' types."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP, Attention, NormedSum
from octavo.models.common import read_activation
from octavo.models.config_reader import MAX_LAYERS, MAX_POSITIONS, ConfigReader
from octavo.models.layout import Layout
from octavo.models.pooling import classes_of
from octavo.models.spec import HeadSpec, ModelSpec, NormSpec, PoolingSpec
from octavo.ops.operands import Heads

#: What is left of heads that other tasks have, and of heads that this one has no use for.
_OTHER_HEADS: Final = (
    r"cls\..*", r"lm_head\..*", r"qa_outputs\..*", r"vocab_\w+\..*", r"model\.position_ids", r".*\.position_ids",
)  # fmt: skip
_OLD_NORMS: Final = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
_EMBEDDINGS: Final = (
    (r"^embeddings\.word_embeddings\.", "model.embed_tokens."),
    (r"^embeddings\.position_embeddings\.", "model.embed_positions."),
    (r"^embeddings\.token_type_embeddings\.", "model.token_types."),
    (r"^embeddings\.LayerNorm\.", "model.embed_norm."),
)
_RENAMES: Final = (
    *_OLD_NORMS, (r"^(bert|roberta|xlm_roberta)\.", ""), *_EMBEDDINGS, (r"^encoder\.layer\.", "model.layers."),
    (r"\.attention\.self\.query\.", ".self_attn.q_proj."), (r"\.attention\.self\.key\.", ".self_attn.k_proj."),
    (r"\.attention\.self\.value\.", ".self_attn.v_proj."), (r"\.attention\.output\.dense\.", ".self_attn.o_proj."),
    (r"\.attention\.output\.LayerNorm\.", ".input_layernorm."), (r"\.intermediate\.dense\.", ".mlp.up_proj."),
    (r"\.output\.dense\.", ".mlp.down_proj."), (r"\.output\.LayerNorm\.", ".post_attention_layernorm."),
)  # fmt: skip
HF: Final = Layout(ignored=_OTHER_HEADS, renames=_RENAMES)
ROBERTA_HF: Final = Layout(ignored=_OTHER_HEADS, renames=_RENAMES, skipped=((r"model\.embed_positions\.weight", 2),))
DISTILBERT_HF: Final = Layout(
    ignored=_OTHER_HEADS,
    renames=(
        *_OLD_NORMS, (r"^distilbert\.", ""), *_EMBEDDINGS, (r"^transformer\.layer\.", "model.layers."),
        (r"\.attention\.(q|k|v)_lin\.", r".self_attn.\1_proj."), (r"\.attention\.out_lin\.", ".self_attn.o_proj."),
        (r"\.sa_layer_norm\.", ".input_layernorm."), (r"\.ffn\.lin1\.", ".mlp.up_proj."),
        (r"\.ffn\.lin2\.", ".mlp.down_proj."), (r"\.output_layer_norm\.", ".post_attention_layernorm."),
    ),
)  # fmt: skip
#: The pooler of BERT works on the first row, in front of classes alone.
_UNUSED: Final = (r"pooler\..*", r"classifier\..*", r"pre_classifier\..*")
_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2, "max_position_embeddings": 512,
}  # fmt: skip
#: Positions begin behind that of the padding token, which is the second.
_ROBERTA_FIRST: Final = 2


def bert(config: ConfigReader) -> ModelSpec:
    heads = (HeadSpec(name="pooler.dense", gguf="cls", size=config.integer("hidden_size"), activation="tanh"),)
    return _spec(config.with_defaults(_DEFAULTS), heads, "classifier", "cls.output")


def roberta(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults({**_DEFAULTS, "type_vocab_size": 1, "pad_token_id": _ROBERTA_FIRST - 1})
    config.refuse_unless("pad_token_id", (_ROBERTA_FIRST - 1,))
    positions = config.integer("max_position_embeddings", low=_ROBERTA_FIRST + 1, high=MAX_POSITIONS)
    config = config.replaced(max_position_embeddings=positions - _ROBERTA_FIRST)
    size = config.integer("hidden_size")
    heads = (HeadSpec(name="classifier.dense", gguf="cls", size=size, activation="tanh"),)
    return _spec(config, heads, "classifier.out_proj", "cls.output")


def distilbert(config: ConfigReader) -> ModelSpec:
    config.refuse_unless("sinusoidal_pos_embds", (False, True))
    config = config.aliased(
        hidden_size="dim", num_hidden_layers="n_layers", num_attention_heads="n_heads", intermediate_size="hidden_dim",
        hidden_act="activation",
    ).with_defaults(_DEFAULTS)  # fmt: skip
    heads = (HeadSpec(name="pre_classifier", gguf="cls", size=config.integer("hidden_size"), activation="relu"),)
    return _spec(config.replaced(type_vocab_size=0), heads, "classifier", "cls.output")


def _spec(config: ConfigReader, heads: tuple[HeadSpec, ...], classifier: str, gguf: str) -> ModelSpec:
    config.refuse_unless("is_decoder", (False,))
    config.refuse_unless("position_embedding_type", ("absolute",))
    hidden = config.integer("hidden_size")
    count = config.integer("num_attention_heads")
    if hidden % count:
        raise config.fail("num_attention_heads", f"does not divide hidden_size {hidden}")
    norm = NormSpec(eps=config.number("layer_norm_eps"), kind="layer", bias=True)
    head = Heads(num_heads=count, num_kv_heads=count, head_dim=hidden // count)
    layer = NormedSum(
        attention=Attention(heads=head, scale=head.head_dim**-0.5, bias=True, o_bias=True, causal=False),
        mlp=MLP(
            size=config.integer("intermediate_size"), activation=read_activation(config, "hidden_act"), bias=True
        ),
        norm=norm,
    )  # fmt: skip
    classes = classes_of(config, HeadSpec(name=classifier, gguf=gguf, size=1), heads)
    return ModelSpec(
        model_type=str(config.get("model_type")),
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        max_position_embeddings=config.integer("max_position_embeddings", high=MAX_POSITIONS),
        layers=(layer,) * config.integer("num_hidden_layers", high=MAX_LAYERS),
        norm=None,
        embedding_norm=norm,
        learned_positions=True,
        token_types=config.integer("type_vocab_size", low=0),
        bidirectional=True,
        pooling=PoolingSpec(kind="cls") if classes is None else classes,
        unused=_UNUSED if classes is None else (),
    )
