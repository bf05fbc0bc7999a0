"""A decoder as data: what a family's function makes of a configuration.

Layers are made of blocks (`blocks`), of which a model has few different ones. Nobody but the family's function
interprets the configuration; what the blocks need stands in them, in the same terms for all families.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from octavo.base.params import PoolingKind
from octavo.ops.operations import Activation, MergeKind, NormKind

if TYPE_CHECKING:
    from octavo.models.blocks import Layer
    from octavo.models.builder import Builder
    from octavo.models.encoder import EncoderSpec, FramesSpec
    from octavo.models.resampler import ResamplerSpec
    from octavo.ops.operands import Buffer

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "factors", "longrope", "proportional", "steps"]


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary embedding of a head. Fields beyond the first three belong to the kind named.

    The operations rotate whole heads with halves as the pairs; rows of q and k are brought into that order at load.
    """

    theta: float
    kind: RopeKind = "default"
    rotary_dim: int = 0  # of each head so many are rotated; 0: all
    factor: float = 1.0  # linear, dynamic, llama3, yarn, proportional
    share: float = 1.0  # proportional: of the frequencies so many, those that turn fastest, are not 0
    original_max_position_embeddings: int = 0  # dynamic, llama3, yarn, longrope, steps
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float = 1.0  # yarn, longrope: multiplies cos and sin
    truncate: bool = True  # yarn
    #: Where a position has several parts: how many pairs of a head are turned by each, in their order.
    sections: tuple[int, ...] = ()
    is_axial: bool = False  # the frequencies of all sections are the same
    takes_turns: bool = False  # pairs are of the sections in turn as far as these reach, then of the first; axial ones
    # have their frequencies in turn
    factors: tuple[float, ...] = ()  # factors, longrope: what each of the frequencies is divided by
    long_factors: tuple[float, ...] = ()  # longrope: the same where contexts may be longer than the original ones


@dataclass(frozen=True, kw_only=True)
class AlibiSpec:
    """In place of a rotation: what lies far away weighs less, by a slope for each head that falls geometrically."""

    num_heads: int
    max_bias: float = 8.0  # slope of head i of n: scale * 2^(-max_bias (i + 1) / n)
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RelativeSpec:
    """A number a head that is added to a score, by how far the key lies in front of the query or behind it. Distances
    share numbers, the more the larger they are: half of `num_buckets` are for either side, of these half for a distance
    each, and the others up to `max_distance`, from which on it is the last. All layers have the same table."""

    num_buckets: int
    max_distance: int = 128


@dataclass(frozen=True, kw_only=True)
class QScaleSpec:
    """What queries are multiplied by, which grows with their position: 1 + beta log(1 + floor(p / original)), with
    p = position + offset."""

    beta: float
    original_max_position_embeddings: int
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class LogQScaleSpec:
    """What queries are multiplied by from position `original` on, counted from 0: the logarithm of how many tokens they
    see, to the base of `original`."""

    original_max_position_embeddings: int


@dataclass(frozen=True, kw_only=True)
class ConstantSpec:
    """A vector of the same values, or of those given."""

    values: tuple[float, ...]


#: What tensors follow from.
DerivedSpec = RopeSpec | AlibiSpec | QScaleSpec | LogQScaleSpec | ConstantSpec


@dataclass(frozen=True, kw_only=True)
class NormSpec:
    """`octavo.ops.operations.NormKind`, with offset + weight for its weight."""

    eps: float
    kind: NormKind = "rms"
    bias: bool = False  # of layer norms
    has_weight: bool = True  # False: its weights are 1
    offset: float = 0.0  # 0: what the checkpoint stores is the weight itself


@dataclass(frozen=True, kw_only=True)
class ProjectorSpec:
    """From rows of a tower to rows of the language model: one matrix, or two with an activation between."""

    norm: NormSpec | None = None  # in front
    inner_norm: NormSpec | None = None  # behind the activation
    last_norm: NormSpec | None = None  # behind all
    is_gated: bool = False  # a third matrix makes what the activation's result is multiplied by
    merges_by_matrix: bool = False  # then a matrix that makes rows that were merged as wide as each of them was
    inner_size: int = 0  # 0: one matrix
    middle_size: int = 0  # of a matrix between the two, with the activation behind it; 0: there is none
    activation: Activation = "gelu"
    bias: bool = True


class Projector(Protocol):
    """What a family may have in the place of a `ProjectorSpec`."""

    def emit(self, build: Builder, rows: Buffer, width: int, name: str) -> Buffer:
        """From rows that were merged to rows of `width`. `name`: where those of its tensors begin."""
        ...


class InnerMerger(Protocol):
    """What makes fewer rows of those within a tower: `count` rows see each other, and one takes their place."""

    @property
    def behind(self) -> int:
        """The layer that it stands behind."""
        ...

    @property
    def count(self) -> int: ...

    def emit_attention(self, build: Builder, residual: Buffer) -> None:
        """Of `count` rows with each other."""
        ...

    def emit_merged(self, build: Builder, residual: Buffer) -> Buffer:
        """What is added to the means of `count` rows each."""
        ...


@dataclass(frozen=True, kw_only=True)
class QueriesSpec:
    """Learned rows that read a picture's: they see each other, and in layers with cross attention a tower's rows."""

    number: int  # of a picture's
    hidden_size: int
    norm: NormSpec  # in front of the layers
    layers: tuple[Layer, ...]


@dataclass(frozen=True, kw_only=True)
class CodesSpec:
    """Convolutions that make of a picture codes: of each place the number of the nearest of some vectors. Rows are the
    embeddings of the codes' tokens."""

    side: int  # of pictures
    code_size: int  # of the vectors
    latent_channels: int
    base_channels: int
    multipliers: tuple[int, ...]  # of the channels of each level; a level is half as high and wide as the one before
    num_blocks: int  # of each level
    attended: frozenset[int]  # levels whose blocks have an attention behind them
    attends_last: bool  # behind the last level
    token_ids: tuple[int, ...]  # of each code


@dataclass(frozen=True, kw_only=True)
class TowerSpec:
    """What makes rows of the language model of pictures: patches -> layers that see all of a picture -> projector.

    A patch is what a family's processor makes of it, `patch_values` numbers. Its position is a row of a learned table.
    """

    patch_values: int
    hidden_size: int
    num_positions: int  # of the table; that of the class token is the first. 0: there is none
    layers: tuple[Layer, ...]
    channels_last: bool = False  # a patch's values are by line, column and channel; else by channel, line and column
    has_class_token: bool = False  # in front of the patches of each picture
    class_is_last: bool = False  # in the stored table of positions
    keeps_class: bool = False  # its row is the first of a picture's
    patch_bias: bool = True
    patch_norm: NormSpec | None = None  # of patches, before their positions are added
    pre_norm: NormSpec | None = None  # before the layers
    post_norm: NormSpec | None = None  # behind them
    frames: int = 1  # of a patch: a picture is as many equal ones
    inner: InnerMerger | None = None
    merge: int = 1  # so many rows, one behind the other, are one row of the projector
    merge_kind: MergeKind = "rows"
    projector: ProjectorSpec = ProjectorSpec()
    own_projector: Projector | None = None  # in its place
    queries: QueriesSpec | None = None  # what they read is projected; None: its rows are
    codes: CodesSpec | None = None  # in the place of all layers
    is_projected: bool = True  # else there is no projector: its rows are the language model's
    is_interpolated: bool = False  # positions lie between rows of the table, which are mixed
    windowed: frozenset[int] = frozenset()  # layers whose rows see those of their part of the picture alone
    #: Layers whose rows, behind a projector each, are added to the language model's behind its first layers.
    taps: tuple[int, ...] = ()
    tap_projector: ProjectorSpec = ProjectorSpec()
    #: So many layers have changed the rows that stand beside each other in front of the projector; none: those of all.
    joined: tuple[int, ...] = ()
    has_newline: bool = False  # a row of its own, which stands at the end of each line of a picture
    resampler: ResamplerSpec | None = None  # in the place of the projector
    num_separators: int = 0  # the same of rows in front of the projector, which is then run on rows in their order
    row_scale: float = 1.0  # of what the projector gives, where the language model scales all rows that it reads
    whole_spans: bool = False  # in the language model the rows of a span see all of it
    whole_prompts: bool = False  # and here all tokens of a prompt see all of it
    kinds: tuple[str, ...] = ("image",)
    #: Of a tower that hears, in the place of patches. `num_positions` is then the most rows of a piece of a sound.
    sound: FramesSpec | None = None

    @property
    def drops_rows(self) -> bool:
        """Of a picture, that of the class token."""
        return self.has_class_token and not self.keeps_class


@dataclass(frozen=True, kw_only=True)
class PicturesSpec:
    """What makes rows of pictures that layers of the decoder see beside the text: `models.pictures`.

    A picture is cut into up to `num_tiles` tiles, in one of `num_ratios` grids, of which the first is none.
    """

    patch_values: int
    hidden_size: int
    tile_rows: int  # of a tile: its class and its patches
    num_tiles: int
    num_ratios: int
    layers: tuple[Layer, ...]
    taken: tuple[int, ...]  # numbers of layers whose rows stand behind those of the last global one
    global_layers: tuple[Layer, ...]
    outer_norm: NormSpec  # in front of the layers, and behind them

    @property
    def num_rows(self) -> int:
        """Of a picture, with those of the tiles that it has not."""
        return self.num_tiles * self.tile_rows


#: Of a head; "": none.
HeadActivation = Literal["", "tanh", "relu", "gelu", "silu", "sigmoid"]


@dataclass(frozen=True, kw_only=True)
class RowsOfTable:
    """Of a table of so many rows the difference of two, or one: scores of tokens are products with their rows."""

    name: str
    gguf: str
    count: int
    rows: tuple[int, ...]
    minus_rows: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """A product with a pooled row: norm(activation(weight x + bias))."""

    name: str  # of the checkpoint's tensors, as they are after the family's renames
    gguf: str
    size: int
    bias: bool = True
    activation: HeadActivation = ""
    norm: NormSpec | None = None  # a layer norm
    norm_name: str = ""
    norm_gguf: str = ""
    of_table: RowsOfTable | None = None  # what its weight is made of; None: it has a tensor of its own


@dataclass(frozen=True, kw_only=True)
class PoolingSpec:
    """What a model that gives vectors makes of a sequence's rows: one, on which `heads` work one after the other."""

    kind: PoolingKind
    heads: tuple[HeadSpec, ...] = ()
    #: What the last head's values mean: "" for a vector, else classes.
    classes: Literal["", "softmax", "sigmoid", "none"] = ""
    labels: tuple[str, ...] = ()  # of the classes
    pair_template: str = ""  # of two texts in one, as {query} and {document}; "": the tokenizer joins them


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Embedding, layers, norm, output matrix. All sizes are positive."""

    model_type: str
    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    layers: tuple[Layer, ...]
    before: tuple[Layer, ...] = ()  # what is done once in front of the layers, and behind them, is written as they are
    after: tuple[Layer, ...] = ()
    norm: NormSpec | None  # behind the layers
    usual_positions: int = 0  # so many are served unless more is asked for; 0: all
    embedding_size: int = 0  # of rows of the embeddings, which a matrix makes wide; 0: hidden_size
    embedding_norm: NormSpec | None = None
    learned_positions: bool = False  # a table with a row for each of the positions
    embedding_scale: float = 1.0
    given_scale: float = 1.0  # what the model multiplies rows by that are given in the place of the embedding's
    tie_word_embeddings: bool = False
    lm_head_bias: bool = False  # of an output matrix that is not tied
    unit_lm_head: bool = False  # its rows are brought to length 1
    logit_scale: float = 1.0  # the logits are multiplied by it; the norm behind the layers has it in its weights
    logit_softcap: float = 0.0  # 0: none
    tied_bias: bool = False  # of an output matrix that is tied
    unused_ids: tuple[int, ...] = ()  # tokens that are never sampled: their logits are -inf
    encoder: EncoderSpec | None = None  # whose rows layers see
    decoder_start_token_ids: tuple[int, ...] = ()  # of models with an encoder: what the decoder's tokens begin with
    tower: TowerSpec | None = None  # of a model that also sees
    pictures: PicturesSpec | None = None  # of one whose layers see rows of pictures beside the text
    missing_outputs: int = 0  # the last tokens, which have no row in the output matrix: they are never sampled
    token_types: int = 0  # rows of a table, of which one is added to each token's: in which text of a pair it stands
    #: Each token sees all of its sequence: the model keeps nothing between steps, and gives vectors only.
    bidirectional: bool = False
    pooling: PoolingSpec | None = None  # it gives vectors, and has no output matrix; None: it generates
    #: Tensors of the checkpoint that the configuration leaves without a use, as patterns of names behind the renames.
    unused: tuple[str, ...] = ()

    @property
    def types_by_id(self) -> bool:
        """Of a model that may read two texts in one, without a table of positions: tokens of the type t are those of a
        t-th copy of the table of tokens."""
        classes = self.pooling is not None and bool(self.pooling.classes)
        return classes and self.token_types > 1 and not self.learned_positions

    @property
    def default_positions(self) -> int:
        """How long sequences get where nothing is said."""
        return self.usual_positions or self.max_position_embeddings
