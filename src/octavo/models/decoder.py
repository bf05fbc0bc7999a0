"""From a `ModelSpec` to what is loaded and run: the program, and the parameters that it names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from octavo.cache.spec import CacheGroup, EncoderKV, FullKV, LayerKV, WindowKV, cache_groups
from octavo.models.builder import Builder
from octavo.models.encoder import EncoderDefinition, define_encoder
from octavo.models.params import Matrix, Param, TensorDecl
from octavo.models.pictures import PicturesDefinition, define_pictures
from octavo.models.spec import DerivedSpec, ModelSpec, PoolingSpec
from octavo.models.tower import TowerDefinition, define_tower
from octavo.ops.operands import Buffer, Cache, Weight
from octavo.ops.operations import (
    Add,
    CacheOp,
    Embed,
    Experts,
    Op,
    ReplaceRows,
)
from octavo.ops.program import Program, program

EMBEDDING: Final = "embedding"
LM_HEAD: Final = "lm_head"


@dataclass(frozen=True, eq=False)
class Definition:
    """A model before its weights are there."""

    spec: ModelSpec
    program: Program  # from token ids to the hidden states behind the last norm
    params: tuple[Param, ...]  # in the order in which they are packed
    derived: dict[Weight, DerivedSpec]  # weights that follow from the configuration
    lm_head: Weight | None  # None: it gives vectors
    cache_groups: tuple[CacheGroup, ...]  # of the program's caches, by their index
    tower: TowerDefinition | None = field(default=None, kw_only=True)  # of a model that also sees
    encoder: EncoderDefinition | None = field(default=None, kw_only=True)
    extra_tokens: int = field(default=0, kw_only=True)  # ids behind the vocabulary, which adapters give a meaning
    pictures: PicturesDefinition | None = field(default=None, kw_only=True)  # in the place of an encoder
    crossing: Program | None = field(
        default=None, kw_only=True
    )  # from the encoder's rows to the caches of those that see them, in their order

    @property
    def num_ids(self) -> int:
        """Of tokens, and columns of the logits."""
        return self.spec.vocab_size + self.extra_tokens

    @property
    def windows(self) -> tuple[int, ...]:
        """Of each group of caches of its own tokens, 0: all keys. Behind them come the encoder's groups."""
        return tuple(group.window for group in self.cache_groups if not isinstance(group.kind, EncoderKV))

    @property
    def num_encoder_groups(self) -> int:
        return len(self.cache_groups) - len(self.windows)

    @cached_property
    def tensors(self) -> dict[str, TensorDecl]:
        """What a checkpoint must hold, no more and no less, by Hugging Face's names."""
        return {tensor.name: tensor for param in self.params for tensor in param.tensors}

    @property
    def layer_ops_per_token(self) -> int:
        """Sums and products of the layers' matrices for one token."""
        return self.program.matrix_ops

    @property
    def expert_share(self) -> float:
        """Of its experts what one token goes through: the mean of all layers that have some; 0: none has."""
        found = [op.top_k / op.gate_up_weight.shape[0] for op in self.program.ops if isinstance(op, Experts)]
        return sum(found) / len(found) if found else 0.0

    @property
    def attention_ops_per_key(self) -> int:
        """Sums and products of all layers' attentions for one key that one token sees."""
        return self.program.attention_ops


def define(spec: ModelSpec) -> Definition:
    """Raises ProgramError if the blocks of a family do not fit together."""
    build = Builder(spec.max_position_embeddings, keeps=not spec.bidirectional)
    if spec.encoder is not None or spec.pictures is not None:
        width = spec.hidden_size if spec.encoder is None else spec.encoder.hidden_size
        build.encoder_rows = Buffer("encoder_rows", width)
    lm_head = _embeddings(build, spec)
    residual = Buffer("residual", spec.hidden_size)
    embedding = build.params[0].weight
    if spec.embedding_size:
        narrow = Buffer("embedded", spec.embedding_size)
        build.ops.append(Embed(out=narrow, weight=embedding, scale=spec.embedding_scale))
        wide = Matrix(name="model.project_in", gguf="project_in", rows=spec.hidden_size)
        residual = build.linear(narrow, "project_in", [wide], None)
    else:
        build.ops.append(Embed(out=residual, weight=embedding, scale=spec.embedding_scale))
    if spec.tower is not None:
        build.ops.append(ReplaceRows(x=residual))
    if spec.learned_positions:
        _add_positions(build, spec, residual)
    if spec.embedding_norm is not None:
        residual = build.norm(residual, spec.embedding_norm, "model.embed_norm", "token_embd_norm")
    for part in spec.before:
        part.emit(build, residual)
    for number, layer in enumerate(spec.layers):
        build.layer(number)
        layer.emit(build, residual)
        if spec.tower is not None and number < len(spec.tower.taps):
            build.ops.append(ReplaceRows(x=residual, first=(number + 1) * spec.hidden_size, adds=True))
    build.top()
    for part in spec.after:
        part.emit(build, residual)
    output = residual
    if spec.norm is not None:
        output = build.norm(residual, spec.norm, "model.norm", "output_norm", spec.logit_scale)
    if spec.embedding_size:
        back = Matrix(name="model.project_out", gguf="project_out", rows=spec.embedding_size)
        output = build.linear(output, "project_out", [back], None)
    if spec.pooling is not None:
        _add_heads(build, spec.pooling, output.width)
    derived = {weight: each for (each, _), weight in build.derived.items()}
    ops, groups = (build.ops, ()) if spec.bidirectional else grouped(build.ops)
    made = Definition(spec, program(ops, output), tuple(build.params), derived, lm_head, groups)
    return _with_others(made, build)


def _with_others(made: Definition, build: Builder) -> Definition:
    """With what makes rows of other inputs than the decoder's tokens."""
    spec = made.spec
    if spec.tower is not None:
        tower = define_tower(spec.tower, spec.hidden_size, made.params[0].weight)
        made = replace(made, params=made.params + tower.params, derived=made.derived | tower.derived, tower=tower)
    if spec.encoder is not None:
        encoder = define_encoder(spec.encoder, made.params[0].weight)
        derived = made.derived | encoder.derived
        made = replace(made, params=made.params + encoder.params, derived=derived, encoder=encoder)
    if spec.pictures is not None:
        pictures = define_pictures(spec.pictures, spec.hidden_size)
        made = replace(made, params=made.params + pictures.params, pictures=pictures)
    return made if build.encoder_rows is None else _with_crossing(made, build)


def _with_crossing(made: Definition, build: Builder) -> Definition:
    assert build.encoder_rows is not None
    groups = [cache.group - len(made.windows) for cache in made.program.caches if cache.of_encoder]
    crossing = [
        replace(op, cache=replace(op.cache, group=groups[op.cache.index])) if isinstance(op, CacheOp) else op
        for op in build.crossing
    ]
    return replace(made, crossing=program(crossing, build.encoder_rows))


def _kind(cache: Cache) -> LayerKV:
    if cache.of_encoder:
        return EncoderKV()
    return WindowKV(cache.window) if cache.window else FullKV()


def grouped(ops: Sequence[Op]) -> tuple[list[Op], tuple[CacheGroup, ...]]:
    """The operations with the group of each cache, and the groups."""
    caches = {op.cache.index: op.cache for op in ops if isinstance(op, CacheOp)}
    ordered = [caches[index] for index in range(len(caches))]
    groups = cache_groups([_kind(cache) for cache in ordered], [cache.heads.cached_size for cache in ordered])
    group_of = {index: number for number, group in enumerate(groups) for index in group.layers}
    grouped = [
        replace(op, cache=replace(op.cache, group=group_of[op.cache.index])) if isinstance(op, CacheOp) else op
        for op in ops
    ]
    return grouped, groups


def _add_heads(build: Builder, pooling: PoolingSpec, width: int) -> None:
    """Weights that no operation of the program reads: those of one row."""
    for head in pooling.heads:
        build.pooled_head(head, width)
        width = head.size


def _token_types(build: Builder, spec: ModelSpec) -> None:
    """Have the rows of the types in the table that was declared last."""
    table = Matrix(name="model.token_types", gguf="token_types", rows=spec.token_types)
    build.params[-1] = replace(build.params[-1], added_rows=build.rows_of_table(table, spec.hidden_size))


def _add_positions(build: Builder, spec: ModelSpec, residual: Buffer) -> None:
    table = Matrix(name="model.embed_positions", gguf="position_embd", rows=spec.max_position_embeddings)
    weight = build.matrices("positions", [table], spec.hidden_size, None, "embedding")
    if spec.token_types:
        # Positions of tokens of the type t are those of a t-th copy.
        weight = Weight(weight.name, (spec.token_types * spec.max_position_embeddings, spec.hidden_size))
        build.params[-1] = replace(build.params[-1], weight=weight)
        _token_types(build, spec)
    out = build.buffer("positions", spec.hidden_size)
    build.ops.append(Embed(out=out, weight=weight, index="positions"))
    build.ops.append(Add(residual=residual, x=out))


def _embeddings(build: Builder, spec: ModelSpec) -> Weight | None:
    """Declares the table of the tokens, and the output matrix unless it is the same. Returns the latter's name."""
    table = Matrix(name="model.embed_tokens", gguf="token_embd", rows=spec.vocab_size, bias=spec.tied_bias)
    num_outputs = spec.vocab_size - spec.missing_outputs
    output = Matrix(name="lm_head", gguf="output", rows=num_outputs, bias=spec.lm_head_bias)
    columns = spec.embedding_size or spec.hidden_size
    if spec.pooling is not None:
        build.matrices(EMBEDDING, [replace(table, bias=False)], columns, None, "embedding")
        if spec.token_types and not spec.learned_positions:
            if spec.types_by_id:
                weight = Weight(EMBEDDING, (spec.token_types * spec.vocab_size, columns))
                build.params[-1] = replace(build.params[-1], weight=weight)
            _token_types(build, spec)
        return None
    if spec.tie_word_embeddings:
        build.matrices(EMBEDDING, [table], columns, None, "tied")
        return Weight(LM_HEAD, (spec.vocab_size, columns), 0)
    build.matrices(EMBEDDING, [table], columns, None, "embedding")
    weight = build.matrices(LM_HEAD, [output], columns, 0, "output", spec.unit_lm_head)
    if spec.missing_outputs:
        weight = Weight(LM_HEAD, (spec.vocab_size, columns), 0)
        build.params[-1] = replace(build.params[-1], weight=weight)
    return weight
