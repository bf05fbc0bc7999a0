"""Models that give vectors: which a configuration describes, and what is made of the rows of a sequence."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, Final, Literal

from octavo.base.config import ModelConfig
from octavo.base.errors import CheckpointError
from octavo.base.params import PoolingKind
from octavo.models.blocks import Attention
from octavo.models.config_reader import ConfigReader
from octavo.models.spec import HeadSpec, ModelSpec, PoolingSpec
from octavo.models.token_scores import scores_by_tokens, token_scores

#: Of an architecture's name what stands in the place of `ForCausalLM`.
_CLASSIFIER: Final = "ForSequenceClassification"
_BARE: Final = "Model"
#: Above any real model.
MAX_LABELS: Final = 100_000


def causal_name(name: str, known: Any) -> str:
    """The architecture of the decoder that another is made of; the name itself where there is none."""
    for ending in (_CLASSIFIER, "ForRewardModel", "TextModel", _BARE):
        if name.endswith(ending) and name not in known:
            stem = name.removesuffix(ending)
            for found in (f"{stem}ForCausalLM", f"{stem}LMHeadModel"):
                if found in known:
                    return found
    return name


def classes_of(config: ConfigReader, head: HeadSpec, before: tuple[HeadSpec, ...] = ()) -> PoolingSpec | None:
    """The pooling of a classifier, whose last head is `head`, as wide as there are labels; None: it is none."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not str(names[0]).endswith(_CLASSIFIER):
        return None
    labels = _labels(config)
    return PoolingSpec(
        kind="cls", heads=(*before, replace(head, size=len(labels))), classes=_classes(config, labels), labels=labels
    )


def _labels(config: ConfigReader) -> tuple[str, ...]:
    found = config.get("id2label")
    if isinstance(found, dict) and found:
        try:
            ordered = sorted((int(key), str(value)) for key, value in found.items())
        except ValueError:
            raise config.fail("id2label", "has keys that are no numbers") from None
        if [number for number, _ in ordered] != list(range(len(ordered))):
            raise config.fail("id2label", "does not name labels 0, 1, ...")
        return tuple(label for _, label in ordered)
    return tuple(f"LABEL_{i}" for i in range(config.integer("num_labels", 2, MAX_LABELS)))


def _classes(config: ConfigReader, labels: tuple[str, ...]) -> Literal["softmax", "sigmoid", "none"]:
    """A cross-encoder of sentence-transformers says which; else the kind of problem does."""
    for key in ("sentence_transformers", "sbert_ce_default_activation_function"):
        value = config.get(key)
        value = value.get("activation_fn") if isinstance(value, dict) else value
        if isinstance(value, str):
            name = value.rpartition(".")[2].lower()
            kinds: dict[str, Literal["softmax", "sigmoid", "none"]] = {
                "sigmoid": "sigmoid", "identity": "none", "softmax": "softmax",
            }  # fmt: skip
            if name not in kinds:
                raise config.fail(key, "names an activation that is not supported")
            return kinds[name]
    if config.get("problem_type") == "regression":
        return "none"
    is_apart = len(labels) == 1 or config.get("problem_type") == "multi_label_classification"
    return "sigmoid" if is_apart else "softmax"


def is_classifier(values: dict[str, Any]) -> bool:
    names = values.get("architectures")
    return isinstance(names, list) and bool(names) and str(names[0]).endswith(_CLASSIFIER)


def gives_vectors(values: dict[str, Any], model: ModelConfig, known: Collection[str], *, has_modules: bool) -> bool:
    """Whether a decoder's checkpoint is served for its vectors. `known`: architectures that generate, whatever their
    names end with. `has_modules`: it has sentence-transformers' files."""
    if model.task != "auto":
        return model.task != "generate"
    names = values.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    pooling_type = values.get("pooling_type")  # of a file of GGUF; 0: none
    if has_modules or scores_by_tokens(values) or (type(pooling_type) is int and pooling_type > 0):
        return True
    return name not in known and name.endswith((_CLASSIFIER, "TextModel", _BARE))


def pooled(spec: ModelSpec, values: dict[str, Any], model: ModelConfig, source: str) -> ModelSpec:
    """A decoder as a model that gives vectors: without its output matrix, and with its classifier where it has one."""
    if spec.encoder is not None or spec.embedding_size:
        raise CheckpointError(f"{source}: models of this family give no vectors; --task generate serves them")
    pooling = token_scores(values, spec, source, model.task) or _plain(values, spec)
    if model.task in ("classify", "reward") and not pooling.classes:
        raise CheckpointError(
            f"{source}: --task {model.task} needs a model with a classifier, and this one has none; --task embed gives "
            "vectors, of which /score makes similarities"
        )
    tables = [head.of_table.name for head in pooling.heads if head.of_table is not None]
    unused = (*spec.unused, *(() if "lm_head" in tables else UNUSED))
    # A factor of the logits has no place in vectors.
    scale = spec.logit_scale if tables else 1.0
    spec = replace(spec, pooling=pooling, tie_word_embeddings=False, logit_scale=scale, unused=unused)
    return _both_ways(spec, source) if values.get("is_causal") is False and not spec.bidirectional else spec


def _plain(values: dict[str, Any], spec: ModelSpec) -> PoolingSpec:
    """A classifier with a matrix of its own, or vectors."""
    kind: PoolingKind = "mean" if spec.bidirectional else "last"
    classes = classes_of(ConfigReader(values), HeadSpec(name="score", gguf="cls", size=1, bias=False))
    if classes is not None:
        return replace(classes, kind=kind)
    sizes = values.get("pooled_dense") or ()  # of files of GGUF
    heads = tuple(
        HeadSpec(name=f"dense_{number}", gguf=f"dense_{number}", size=size, bias=False)
        for number, size in enumerate(sizes, 2)
    )
    return PoolingSpec(kind=kind, heads=heads)


#: What a checkpoint may have of an output matrix.
UNUSED: Final = (r"lm_head\..*", r"output\.(weight|bias)")


def _both_ways(spec: ModelSpec, source: str) -> ModelSpec:
    """The decoder whose tokens see all of their sequence, as some that were made for vectors do."""
    layers = []
    for layer in spec.layers:
        attention = getattr(layer, "attention", None)
        if not isinstance(attention, Attention) or attention.window or attention.alibi is not None:
            raise CheckpointError(f"{source}: is_causal false is not supported for models of this kind")
        layers.append(replace(layer, attention=replace(attention, causal=False)))  # type: ignore[type-var]
    return replace(spec, layers=tuple(layers), bidirectional=True)
