"""BERT and those built like it: every token sees the whole text, and each sum is normed. RoBERTa and XLM-R count
positions from their padding token on, and so does MPNet, whose scores also know how far apart two tokens are;
DistilBERT has no table of the two texts' types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from octavo.base.params import PoolingKind
from octavo.models.blocks import MLP, Attention, Block, NormedSum
from octavo.models.common import head_rope, read_activation
from octavo.models.config_reader import MAX_HEAD_DIM, MAX_LAYERS, MAX_POSITIONS, ConfigReader, flat_rope
from octavo.models.layout import Layout
from octavo.models.pooling import classes_of
from octavo.models.spec import HeadSpec, ModelSpec, NormSpec, PoolingSpec, RelativeSpec, RopeSpec
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
MPNET_HF: Final = Layout(
    ignored=_OTHER_HEADS,
    renames=(
        *_OLD_NORMS, (r"^mpnet\.", ""), *_EMBEDDINGS, (r"^encoder\.relative_", "model.relative_"),
        (r"^encoder\.layer\.", "model.layers."), (r"\.attention\.attn\.(q|k|v|o)\.", r".self_attn.\1_proj."),
        (r"\.attention\.LayerNorm\.", ".input_layernorm."), (r"\.intermediate\.dense\.", ".mlp.up_proj."),
        (r"\.output\.dense\.", ".mlp.down_proj."), (r"\.output\.LayerNorm\.", ".post_attention_layernorm."),
    ),
    skipped=((r"model\.embed_positions\.weight", 2),),
)  # fmt: skip
#: The pooler of BERT works on the first row, in front of classes alone.
UNUSED: Final = (r"pooler\..*", r"classifier\..*", r"pre_classifier\..*")
_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2, "max_position_embeddings": 512,
}  # fmt: skip
#: Positions begin behind that of the padding token, which is the second.
_ROBERTA_FIRST: Final = 2
_MPNET_BUCKETS: Final = 32


def bert(config: ConfigReader) -> ModelSpec:
    return _learned(config.with_defaults(_DEFAULTS), [pooler(config)], "classifier")


def roberta(config: ConfigReader) -> ModelSpec:
    refuse_adapters(config)
    config = _behind_padding(config.with_defaults({**_DEFAULTS, "type_vocab_size": 1}))
    size = config.integer("hidden_size")
    head = HeadSpec(name="classifier.dense", gguf="cls", size=size, activation="tanh")
    return _learned(config, [head], "classifier.out_proj")


def mpnet(config: ConfigReader) -> ModelSpec:
    config = _behind_padding(config.with_defaults(_DEFAULTS).replaced(type_vocab_size=0))
    config.refuse_unless("relative_attention_num_buckets", (_MPNET_BUCKETS,))
    size = config.integer("hidden_size")
    head = HeadSpec(name="classifier.dense", gguf="cls", size=size, activation="tanh")
    return _learned(config, [head], "classifier.out_proj", relative=RelativeSpec(num_buckets=_MPNET_BUCKETS))


def distilbert(config: ConfigReader) -> ModelSpec:
    config.refuse_unless("sinusoidal_pos_embds", (False, True))
    config = config.aliased(
        hidden_size="dim", num_hidden_layers="n_layers", num_attention_heads="n_heads", intermediate_size="hidden_dim",
        hidden_act="activation",
    ).with_defaults(_DEFAULTS)  # fmt: skip
    head = HeadSpec(name="pre_classifier", gguf="cls", size=config.integer("hidden_size"), activation="relu")
    return _learned(config.replaced(type_vocab_size=0), [head], "classifier")


def _behind_padding(config: ConfigReader) -> ConfigReader:
    config = config.with_defaults({"pad_token_id": _ROBERTA_FIRST - 1})
    config.refuse_unless("pad_token_id", (_ROBERTA_FIRST - 1,))
    positions = config.integer("max_position_embeddings", low=_ROBERTA_FIRST + 1, high=MAX_POSITIONS)
    return config.replaced(max_position_embeddings=positions - _ROBERTA_FIRST)


def _learned(config: ConfigReader, heads: Sequence[HeadSpec], classifier: str, **attention: Any) -> ModelSpec:
    """With a table of positions."""
    config.refuse_unless("position_embedding_type", ("absolute",))
    mlp = MLP(size=config.integer("intermediate_size"), activation=read_activation(config, "hidden_act"), bias=True)
    return normed_sums(
        config, [mlp], heads, classifier, learned_positions=True, attention={"bias": True, "o_bias": True, **attention}
    )


def refuse_adapters(config: ConfigReader) -> None:
    """Of the authors' files of Jina's version 3, which say that they are XLM-R: see `task_checkpoint`."""
    if config.get("lora_adaptations"):
        why = 'are adapters of tasks, of which one is served: --hf-overrides \'{"lora_adaptation": "..."}\' names it'
        raise config.fail("lora_adaptations", why)


def pooler(config: ConfigReader) -> HeadSpec:
    return HeadSpec(name="pooler.dense", gguf="cls", size=config.integer("hidden_size"), activation="tanh")


def encoder_heads(config: ConfigReader) -> Heads:
    """As many heads of keys as of queries."""
    hidden, count = config.integer("hidden_size"), config.integer("num_attention_heads")
    if hidden % count:
        raise config.fail("num_attention_heads", f"does not divide hidden_size {hidden}")
    head_dim = config.integer("head_dim", hidden // count, MAX_HEAD_DIM)
    return Heads(num_heads=count, num_kv_heads=count, head_dim=head_dim)


def encoder_rope(config: ConfigReader, theta: float) -> RopeSpec:
    """`theta`: where the configuration says none."""
    positions = config.integer("max_position_embeddings", high=MAX_POSITIONS)
    return head_rope(flat_rope(config, theta), encoder_heads(config).head_dim, positions, config=config)


def normed_sums(
    config: ConfigReader,
    mlps: Sequence[Block],
    heads: Sequence[HeadSpec],
    classifier: str,
    *,
    attention: dict[str, Any],
    learned_positions: bool = False,
    kind: PoolingKind = "cls",
) -> ModelSpec:
    """Layers whose sums are normed. `mlps`: of the layers in turn. `attention`: fields of `Attention`. `heads`: in
    front of the classifier. `kind`: the pooling where no file says one."""
    config.refuse_unless("is_decoder", (False,))
    norm = NormSpec(eps=config.number("layer_norm_eps"), kind="layer", bias=True)
    head = encoder_heads(config)
    attends = Attention(heads=head, scale=head.head_dim**-0.5, causal=False, **attention)
    layers = [NormedSum(attention=attends, mlp=mlp, norm=norm) for mlp in mlps]
    count = config.integer("num_hidden_layers", high=MAX_LAYERS)
    classes = classes_of(config, HeadSpec(name=classifier, gguf="cls.output", size=1), tuple(heads))
    return ModelSpec(
        model_type=str(config.get("model_type")),
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        max_position_embeddings=config.integer("max_position_embeddings", high=MAX_POSITIONS),
        layers=tuple(layers[number % len(layers)] for number in range(count)),
        norm=None,
        embedding_norm=norm,
        learned_positions=learned_positions,
        token_types=config.integer("type_vocab_size", low=0),
        bidirectional=True,
        pooling=PoolingSpec(kind=kind) if classes is None else classes,
        unused=UNUSED if classes is None else (),
    )
