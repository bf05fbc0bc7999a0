"""How a family's checkpoints hold the tensors that its blocks declare: other names, several in one, rows otherwise.

All of it is data of the family; what is found is handed out as declared, so that nobody else knows the difference.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, count, takewhile
from typing import Final, Literal

import torch
from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.models.checkpoint import Checkpoint, complaints
from octavo.models.decoder import Definition
from octavo.models.params import TensorDecl, head_order
from octavo.models.quantized_checkpoint import QuantizedCheckpoint
from octavo.quant.packed import QuantizedWeight, as_floats

logger = logging.getLogger("octavo.models")

Weight = Tensor | QuantizedWeight

SplitKind = Literal["parts", "heads", "stack", "pairs", "latent", "turned"]

_LAYER: Final = re.compile(r"(?:model\.layers|blk)\.(\d+)\.")
#: Buffers that old exports carry; they follow from the configuration.
ALWAYS_IGNORED: Final = (r".*\.rotary_emb\.inv_freq",)


@dataclass(frozen=True)
class Split:
    """A tensor that holds several: their names are replacements of `pattern`.

    parts: one below the other. heads: q, k and v by head of k and v: the heads of q that read it, its k, its v.
    stack: [E, rows, ...] or [E rows, ...], of each expert its parts one below the other; its number 0, 1, ... takes the
    place of `#` in the names. pairs: the same, or of one matrix, where the parts take turns row by row. latent: for
    each head, whose number takes the place of `#`, first what is declared as the transposed of its rows, then the
    second. turned: parts, each declared as the transposed of its rows.
    """

    pattern: str
    names: tuple[str, ...]
    kind: SplitKind = "parts"


@dataclass(frozen=True)
class Layout:
    """Patterns are regular expressions over whole names, tried behind the renames."""

    ignored: tuple[str, ...] = ()  # buffers, which follow from the configuration
    has_draft_layers: bool = False  # behind the model's own: they guess further tokens, and are ignored
    renames: tuple[tuple[str, str], ...] = ()  # pattern, replacement; of parts of a name, one after the other
    splits: tuple[Split, ...] = ()
    transposed: str = ""  # matrices that stand as [in, out]
    either_way: str = ""  # stacks of which some files have the matrices as [in, out]: where they fit no other way
    surplus: tuple[str, ...] = ()  # what is left out where the model has no use for it
    skipped: tuple[tuple[str, int], ...] = ()  # pattern, so many rows in front that the model has no use for
    minus_exp: str = ""  # vectors that stand as -exp(x) of what is declared
    flattened: str = ""  # filters that stand as [out, channels, ...], declared as matrices
    interleaved: bool = False  # of what is rotated in a head the pairs are (0, 1), (2, 3), ..., not the halves
    #: Where names of a part begin that has renames of its own, tried first, splits, and pairs in its own order.
    apart: str = ""
    renames_apart: tuple[tuple[str, str], ...] = ()
    splits_apart: tuple[Split, ...] = ()
    interleaved_apart: bool = False


@dataclass(frozen=True)
class Place:
    """Where a declared tensor is: the number-th of `siblings` in one tensor of the checkpoint."""

    name: str
    siblings: tuple[str, ...]
    number: int
    kind: SplitKind
    transposed: bool
    num_parts: int  # tensors of a group: of one expert or head, and otherwise all of them; groups are alike
    skipped: int

    @property
    def is_stack(self) -> bool:
        return self.kind in ("stack", "pairs")

    @property
    def is_turned(self) -> bool:
        """Whether the declared tensor is the transposed of its rows."""
        return self.turns(self.number)

    def turns(self, number: int) -> bool:
        return self.kind == "turned" or (self.kind == "latent" and number % 2 == 0)


#: q, k and v in one tensor, which renames have made `self_attn.qkv`.
QKV: Final = Split(r"(.*\.self_attn\.)qkv\.(\w+)", (r"\1q_proj.\2", r"\1k_proj.\2", r"\1v_proj.\2"))
QKV_BY_HEAD: Final = replace(QKV, kind="heads")
GATE_UP: Final = Split(r"(.*\.mlp\.)gate_up_proj\.(\w+)", (r"\1gate_proj.\2", r"\1up_proj.\2"))
#: The same in a file of GGUF.
GGUF_QKV: Final = Split(r"(blk\.\d+\.attn_)qkv\.(\w+)", (r"\1q.\2", r"\1k.\2", r"\1v.\2"))
GGUF_GATE_UP: Final = Split(r"(blk\.\d+\.ffn_)up\.(\w+)", (r"\1gate.\2", r"\1up.\2"))
#: Keys and values that files have of layers that see another's.
KV_SHARING: Final = (r".*\.self_attn\.(?:[kv]_proj|[kv]_norm)\.\w+", r"blk\.\d+\.attn_(?:k|v|k_norm)\.\w+")
#: Of AltUp, in a file of GGUF.
STACKED_ALTUP: Final = Split(r"(altup_(?:proj|unembd_proj))\.weight", (r"\1.#.weight",), "stack")
#: Experts of a file of GGUF.
GGUF_EXPERTS: Final = Split(r"(blk\.\d+\.ffn_(?:gate|up|down)_exps)\.(weight|bias)", (r"\1.#.\2",), "stack")
#: Experts that were saved as they are in memory.
STACKED_EXPERTS: Final = (
    Split(r"(.*\.mlp\.experts)\.gate_up_proj", (r"\1.#.gate_proj.weight", r"\1.#.up_proj.weight"), "stack"),
    Split(r"(.*\.mlp\.experts)\.down_proj", (r"\1.#.down_proj.weight",), "stack"),
)
#: What many families call the parts of a mixture of experts.
EXPERTS_HF: Final = Layout(
    renames=((r"\.e_score_correction_bias$", ".e_score_correction.bias"),), splits=STACKED_EXPERTS
)
EXPERTS_GGUF: Final = Layout(splits=(GGUF_EXPERTS,))
EXPERTS_INTERLEAVED_GGUF: Final = replace(EXPERTS_GGUF, interleaved=True)
QKV_GGUF: Final = Layout(splits=(GGUF_QKV,))
INTERLEAVED: Final = Layout(interleaved=True)


class Places:
    """Where the tensors that a model declares stand in files of one kind: by the files' names, and in which rows."""

    def __init__(self, layout: Layout, declared: Mapping[str, TensorDecl]) -> None:
        """`declared`: by the names of the files' kind, as they are behind the renames."""
        self._layout = layout
        self._declared = declared

    def declared(self, name: str) -> TensorDecl | None:
        return self._declared.get(name)

    def places_of(self, name: str) -> dict[str, Place]:
        """What a tensor of that name holds, by the declared names; it may be none of the model's."""
        renamed = self._renamed(name)
        transposed = bool(re.fullmatch(self._layout.transposed, renamed))
        skipped = next((rows for pattern, rows in self._layout.skipped if re.fullmatch(pattern, renamed)), 0)
        names: tuple[str, ...] = (renamed,)
        kind: SplitKind = "parts"
        num_parts = 1
        for split in self._layout.splits_apart if self._is_apart(renamed) else self._layout.splits:
            if match := re.fullmatch(split.pattern, renamed):
                kind, names = split.kind, tuple(match.expand(part) for part in split.names)
                num_parts = len(names)
                if kind in ("stack", "pairs", "latent"):
                    numbers = count() if "#" in names[0] else range(1)
                    numbered = ([part.replace("#", str(number)) for part in names] for number in numbers)
                    whole = takewhile(lambda parts: self._declared.keys() >= set(parts), numbered)
                    names = tuple(chain.from_iterable(whole)) or (renamed,)
        return {
            each: Place(name, names, number, kind, transposed, num_parts, skipped) for number, each in enumerate(names)
        }

    def _renamed(self, name: str) -> str:
        for pattern, replacement in self._layout.renames_apart:
            name = re.sub(pattern, replacement, name)
        if not self._is_apart(name):
            for pattern, replacement in self._layout.renames:
                name = re.sub(pattern, replacement, name)
        return name

    def _is_apart(self, name: str) -> bool:
        return bool(self._layout.apart) and name.startswith(self._layout.apart)

    def _shape(self, place: Place) -> tuple[int, ...]:
        """What the tensor of the checkpoint must have."""
        shapes = self._group_shapes(place)
        num_groups, rows = len(place.siblings) // place.num_parts, sum(rows for rows, *_ in shapes)
        shape = (place.skipped + (rows if place.is_stack else num_groups * rows), *shapes[0][1:])
        shape = shape[::-1] if place.transposed else shape
        return (num_groups, *shape) if place.is_stack else shape

    def _group_shapes(self, place: Place) -> list[tuple[int, ...]]:
        """Of the tensors of a group, as their rows stand in the tensor of the checkpoint. There may be hundreds of
        groups, and each of their tensors asks for it."""
        shapes = [self._declared[name].shape for name in place.siblings[: place.num_parts]]
        return [shape[::-1] if place.turns(number) else shape for number, shape in enumerate(shapes)]

    def ordered_rows(self, place: Place, tensor: TensorDecl, count: int) -> Tensor | None:
        """Which rows of the tensor of the checkpoint are the declared one, in the order of its pairs of a rotation.
        `count`: its rows, if they are all there are."""
        rows = self._rows(place)
        is_apart = self._is_apart(tensor.name)
        interleaved = self._layout.interleaved_apart if is_apart else self._layout.interleaved
        order = head_order(tensor, interleaved)
        if order is None:
            return rows
        heads = torch.arange(0, count if rows is None else len(rows), tensor.head_dim)
        turned = (heads[:, None] + torch.tensor(order)).flatten()
        return turned if rows is None else rows[turned]

    def _rows(self, place: Place) -> Tensor | None:
        """Which rows of the tensor of the checkpoint are the declared one; None: all."""
        if len(place.siblings) == 1 and not place.skipped:
            return None
        if place.kind == "heads":
            tensors = [self._declared[name] for name in place.siblings]
            groups = tensors[-1].shape[0] // tensors[-1].head_dim
            sizes = [tensor.shape[0] // groups for tensor in tensors]  # rows in a group
            first, turns = sum(sizes[: place.number]), torch.arange(sizes[place.number])
            return (torch.arange(groups)[:, None] * sum(sizes) + first + turns).flatten()
        lengths = [rows for rows, *_ in self._group_shapes(place)]
        group, part = divmod(place.number, place.num_parts)
        rows = lengths[part]
        if place.kind == "pairs":
            return place.num_parts * (group * rows + torch.arange(rows)) + part
        first = place.skipped + group * sum(lengths) + sum(lengths[:part])
        return torch.arange(first, first + rows)


class TensorSource(Places):
    """The tensors that a model declares, as a checkpoint holds them."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        layout: Layout,
        definition: Definition,
        declared: Iterable[TensorDecl] | None = None,
        what: str = "",
    ) -> None:
        """Raises CheckpointError unless the checkpoint has the tensors declared, in their shapes, and no others.

        `declared`: those of the definition's tensors that are here; None: all. `what`: the name of these in messages.
        """
        self._checkpoint = checkpoint
        tensors = definition.tensors.values() if declared is None else declared
        super().__init__(layout, {self._key(tensor): tensor for tensor in tensors})
        self._unused = definition.spec.unused
        self._places: dict[str, Place] = {}  # by the declared name
        #: Tensors of which not all parts were taken: the weight, and how many are left.
        self._open: dict[str, tuple[Weight, int]] = {}
        ignored = (*ALWAYS_IGNORED, *layout.ignored)
        for name in checkpoint.names():
            if layout.has_draft_layers and _layer(name) >= len(definition.spec.layers):
                continue
            if not any(re.fullmatch(pattern, name) for pattern in ignored):
                self._find(name)
        if definition.spec.tie_word_embeddings and "lm_head.weight" in self._places:
            # Some exports save the tied matrix twice.
            logger.info("%s: lm_head.weight is ignored: the embeddings are tied", checkpoint.source)
            del self._places["lm_head.weight"]
        for name in [name for name in self._places if name not in self._declared]:
            if any(re.fullmatch(pattern, name) for pattern in layout.surplus):
                del self._places[name]
        self._check_names(what or f"{definition.spec.model_type} model")
        if isinstance(checkpoint, QuantizedCheckpoint):
            for each in self._places.values():
                checkpoint.settle(each.name, self._shape(each))
        for place in self._places.values():
            found, expected = checkpoint.shape(place.name), self._shape(place)
            if re.fullmatch(layout.flattened, place.siblings[0]):
                found = (*found[:1], math.prod(found[1:]))
            if self._declared[place.siblings[0]].role == "norm" and math.prod(found) == math.prod(expected):
                continue  # of groups, a row each
            shapes = (expected, _folded(expected)) if place.is_stack else (expected,)
            if _squeezed(found) not in map(_squeezed, shapes):
                raise CheckpointError(
                    f"{checkpoint.source}: tensor {place.name!r} has the shape {list(found)}, not {list(expected)}"
                )

    def num_bytes(self, float_bytes: int | None) -> int:
        """Of all tensors that the model takes; see `Checkpoint.nbytes`."""
        names = {place.name for place in self._places.values()}
        return sum(self._checkpoint.nbytes(name, float_bytes) for name in names)

    def _find(self, name: str) -> None:
        """Note what a tensor of the checkpoint holds."""
        renamed = self._renamed(name)
        if any(re.fullmatch(pattern, renamed) for pattern in self._unused):
            return
        places = self.places_of(name)
        if re.fullmatch(self._layout.either_way, renamed) and self._declared.keys() >= set(places):
            stack, *shape = self._shape(replace(next(iter(places.values())), transposed=False))
            transposed = tuple(self._checkpoint.shape(name)) == (stack, *shape[::-1]) != (stack, *shape)
            places = {each: replace(place, transposed=transposed) for each, place in places.items()}
        for each, place in places.items():
            if each in self._places:
                both = f"{self._places[each].name!r} and {name!r}"
                raise CheckpointError(f"{self._checkpoint.source}: the tensors {both} are both {each!r} of the model")
            self._places[each] = place

    def __len__(self) -> int:
        return len(self._declared)

    def name(self, tensor: TensorDecl) -> str:
        """In the checkpoint, for messages."""
        return self._places[self._key(tensor)].name

    def get(self, tensor: TensorDecl) -> Weight:
        """As declared. A float tensor may be a view of the file and must not be written to."""
        found = self._stored(tensor)
        if re.fullmatch(self._layout.minus_exp, self._key(tensor)):
            return (-as_floats(found)).log()
        return found

    def _stored(self, tensor: TensorDecl) -> Weight:
        """The rows of the checkpoint that the declared tensor is made of."""
        place = self._places[self._key(tensor)]
        weight = self._whole(place)
        if tensor.role == "norm" and isinstance(weight, Tensor):
            weight = weight.flatten()  # of heads that have weights of their own, [heads, head_dim]
        rows = self.ordered_rows(place, tensor, weight.shape[0])
        if rows is None:
            return weight
        found = _taken(weight, rows)
        if place.is_turned:  # groups of quantized values would lie across its rows
            found = as_floats(found).t().contiguous()
        return found

    def stored_names(self) -> list[str]:
        """Of the checkpoint's tensors, those that hold declared ones."""
        return list(dict.fromkeys(place.name for place in self._places.values()))

    def declared_in(self, name: str) -> list[TensorDecl]:
        """What a tensor of the checkpoint holds."""
        place = next(place for place in self._places.values() if place.name == name)
        return [self._declared[each] for each in place.siblings]

    def assembled(self, name: str, weight_of: Callable[[TensorDecl], Weight]) -> Weight:
        """The tensor of the checkpoint that would be read as what `weight_of` gives: the inverse of `get`. Of a stack
        the first two dimensions are one. Floats, unless it holds a single matrix."""
        parts = self.declared_in(name)
        whole: Tensor | None = None
        for tensor in parts:
            place = self._places[self._key(tensor)]
            part = weight_of(tensor)
            if place.is_turned:
                part = as_floats(part).t()
            rows = self.ordered_rows(place, tensor, part.shape[0])
            if len(parts) == 1 and not place.skipped:
                found = part if rows is None else _taken(part, rows.argsort())
                return as_floats(found).t().contiguous() if place.transposed else found
            floats = as_floats(part)
            if whole is None:
                count = place.skipped + sum(shape[0] for shape in self._group_shapes(place)) * (
                    len(parts) // place.num_parts
                )
                whole = torch.zeros(count, *floats.shape[1:], dtype=floats.dtype)
            whole[slice(None) if rows is None else rows] = floats.to(whole.dtype)
        assert whole is not None
        if parts and self._places[self._key(parts[0])].transposed:
            return whole.t().contiguous()
        return whole

    def _whole(self, place: Place) -> Weight:
        """The tensor of the checkpoint, kept until all that it holds was taken. Of a stack the first two dimensions
        are one."""
        weight, left = self._open.pop(place.name, (None, len(place.siblings)))
        if weight is None:
            weight = self._checkpoint.get(place.name)
            if isinstance(weight, Tensor):
                weight = weight.view(self._shape(place))
                weight = weight.transpose(-2, -1) if place.transposed else weight
                weight = weight.flatten(0, 1) if place.is_stack else weight
        if left > 1:
            self._open[place.name] = weight, left - 1
        return weight

    def _key(self, tensor: TensorDecl) -> str:
        return tensor.gguf if self._checkpoint.naming == "gguf" else tensor.name

    def _check_names(self, what: str) -> None:
        declared, found = set(self._declared), set(self._places)
        if told := complaints(sorted(declared - found), sorted(found - declared)):
            raise CheckpointError(f"{self._checkpoint.source}: not a complete {what}: {told}")


def _taken(weight: Weight, rows: Tensor) -> Weight:
    return weight.select_rows(rows) if isinstance(weight, QuantizedWeight) else weight[rows]


def _layer(name: str) -> int:
    """The number of the layer that a tensor belongs to; -1: to none."""
    match = _LAYER.match(name)
    return -1 if match is None else int(match[1])


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Some files have a vector where others have a matrix of one row, and filters of a channel as [width, 1, taps]."""
    return tuple(size for size in shape if size != 1)


def _folded(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a stack whose experts stand one below the other."""
    return (shape[0] * shape[1], *shape[2:])
