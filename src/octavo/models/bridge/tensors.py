"""The tensors of a tree, as a checkpoint of any age holds them: transformers' own table says what was renamed, stacked
or cut since it was written."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.models.bridge.declare import BridgedDefinition
from octavo.models.checkpoint import Checkpoint, complaints, listed
from octavo.models.layout import ALWAYS_IGNORED, Weight
from octavo.models.params import TensorDecl
from octavo.models.quantized_checkpoint import QuantizedCheckpoint
from octavo.quant.packed import QuantizedWeight, as_floats

logger = logging.getLogger("octavo.models")


class BridgedTensors:
    """As `layout.TensorSource`, for a tree."""

    def __init__(self, checkpoint: Checkpoint, definition: BridgedDefinition) -> None:
        """Raises CheckpointError unless the checkpoint has the tree's tensors, in their shapes, and no others."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key

        self._checkpoint, self._definition = checkpoint, definition
        self._model = definition.skeleton.make()
        self._shapes = {name: tuple(tensor.shape) for name, tensor in self._model.state_dict().items()}
        transforms = get_model_conversion_mapping(self._model)
        self._renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        self._converters = [each for each in transforms if isinstance(each, WeightConverter)]
        #: By the tree's name: the one tensor of the checkpoint that it is, or a converter that makes it.
        self._plain: dict[str, str] = {}
        self._made_by: dict[str, _Conversion] = {}
        self._kept: dict[str, Tensor] = {}  # what a converter made, until it is taken
        self._open: dict[str, tuple[Weight, int]] = {}  # stacked tensors, and how many experts are left in each
        self._unexpected: list[str] = []
        if checkpoint.naming == "declared":
            return
        for name in sorted(checkpoint.names(), key=dot_natural_key):
            if not any(re.fullmatch(pattern, name) for pattern in ALWAYS_IGNORED):
                self._find(name)
        self._check()

    def __len__(self) -> int:
        return len(self._definition.tensors)

    def num_bytes(self, float_bytes: int | None) -> int:
        """Of all tensors of the checkpoint; see `Checkpoint.nbytes`."""
        return sum(self._checkpoint.nbytes(name, float_bytes) for name in self._checkpoint.names())

    def name(self, tensor: TensorDecl) -> str:
        """For messages: in the checkpoint, where it is one tensor there."""
        place = self._definition.places[tensor.name].name
        return self._plain.get(place, place)

    def get(self, tensor: TensorDecl) -> Weight:
        """As declared. A float tensor may be a view of the file and must not be written to."""
        if self._checkpoint.naming == "declared":
            return self._checkpoint.get(tensor.name)
        place = self._definition.places[tensor.name]
        if place.number is None:
            weight = self._whole(place.name)
        else:
            weight = self._expert(place.name, place.number)
        return as_floats(weight).t() if place.transposed else weight

    def _expert(self, name: str, number: int) -> Weight:
        """One of a stack, which may come with its first two dimensions as one."""
        count, *shape = self._shapes[name]
        weight, left = self._open.pop(name, (None, count))
        if weight is None:
            weight = self._whole(name)
        if left > 1:
            self._open[name] = weight, left - 1
        if isinstance(weight, QuantizedWeight):
            return weight.select_rows(torch.arange(number * shape[0], (number + 1) * shape[0]))
        return weight.reshape(count, *shape)[number]

    def _whole(self, name: str) -> Weight:
        if name in self._plain:
            return self._checkpoint.get(self._plain[name])
        if name not in self._kept:
            self._kept |= self._made_by[name].run(self._checkpoint, self._model, self._shapes)
        return self._kept.pop(name)

    def _find(self, name: str) -> None:
        """Note what a tensor of the checkpoint is, by transformers' rules."""
        from transformers.core_model_loading import rename_source_key

        base = self._model.base_model_prefix
        renamed, pattern = rename_source_key(name, self._renamings, self._converters, base, self._shapes)
        if renamed not in self._shapes and name in self._shapes:
            renamed, pattern = rename_source_key(name, [], [], base, self._shapes)
        if renamed not in self._shapes:
            self._unexpected.append(name)
        elif pattern is None:
            if renamed in self._plain:
                both = f"{self._plain[renamed]!r} and {name!r}"
                raise CheckpointError(f"{self._checkpoint.source}: the tensors {both} are both {renamed!r}")
            self._plain[renamed] = name
        else:
            converter = next(each for each in self._converters if pattern in each.source_patterns)
            if renamed not in self._made_by:
                made = _Conversion(renamed, converter)
                self._made_by |= {each: made for each in made.targets() if each in self._shapes}
            self._made_by[renamed].sources.append((name, pattern))

    def _check(self) -> None:
        source, tied = self._checkpoint.source, self._definition.tied
        if tied is not None:
            self._check_tied(tied)
        needed = {place.name for place in self._definition.places.values()}
        ignorable = self._model._keys_to_ignore_on_load_unexpected or ()
        unexpected = [name for name in self._unexpected if not any(re.search(each, name) for each in ignorable)]
        missing = sorted(needed - set(self._plain) - set(self._made_by))
        if told := complaints(missing, unexpected):
            raise CheckpointError(f"{source}: not a complete {type(self._model).__name__}: {told}")
        for name, own in self._plain.items():
            if isinstance(self._checkpoint, QuantizedCheckpoint):
                self._checkpoint.settle(own, self._shapes[name])
            found = self._checkpoint.shape(own)
            if found != self._shapes[name]:
                raise CheckpointError(
                    f"{source}: tensor {own!r} has the shape {list(found)}, not {list(self._shapes[name])}"
                )

    def _check_tied(self, head: str) -> None:
        """Of a tied matrix either name will do."""
        embedding = next(p.parts[0].name for p in self._definition.params if p.packing == "tied")
        output = self._plain.pop(head, None)
        if output is not None and embedding not in self._plain:
            self._plain[embedding] = output
        elif output is not None:
            logger.info("%s: %s is ignored: the embeddings are tied", self._checkpoint.source, output)


class _Conversion:
    """Tensors of the checkpoint that a converter makes one or several of the tree's of."""

    def __init__(self, target: str, converter: Any) -> None:
        self.sources: list[tuple[str, str]] = []  # name, and the pattern that found it
        self._target, self._converter = target, converter

    def targets(self) -> list[str]:
        first, *others = self._converter.target_patterns
        return [self._target, *(self._target.replace(first, each) for each in others)]

    def run(self, checkpoint: Checkpoint, model: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """By the tree's names. `shapes`: of the tree's tensors."""
        converter = deepcopy(self._converter)
        for name, pattern in self.sources:
            converter.add_tensor(self._target, name, pattern, as_floats(checkpoint.get(name)))
        try:
            made = converter.convert(self._target, model=model, config=model.config)
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            names = listed([name for name, _ in self.sources])
            raise CheckpointError(f"{checkpoint.source}: {self._target} cannot be made of {names}: {error}") from error
        found = {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
        for name, value in found.items():
            wanted = shapes.get(name, value.shape)
            if value.shape != wanted:
                raise CheckpointError(
                    f"{checkpoint.source}: {name} comes out as {list(value.shape)}, not {list(wanted)}"
                )
        return found
