"""How a family's checkpoints hold the tensors that its blocks declare: other names, several in one, rows otherwise.

All of it is data of the family; what is found is handed out as declared, so that nobody else knows the difference.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from octavo.errors import CheckpointError
from octavo.models.checkpoint import Checkpoint
from octavo.models.decoder import Definition
from octavo.models.params import TensorDecl
from octavo.quant.packed import QuantizedWeight

logger = logging.getLogger("octavo.models")

Weight = Tensor | QuantizedWeight

_NAMES_LISTED: Final = 10
#: Buffers that old exports carry; they follow from the configuration.
_ALWAYS_IGNORED: Final = (r".*\.rotary_emb\.inv_freq",)


@dataclass(frozen=True)
class Layout:
    """Patterns are regular expressions over whole names."""

    ignored: tuple[str, ...] = ()  # buffers, which follow from the configuration
    renames: tuple[tuple[str, str], ...] = ()  # pattern, replacement; all that match, in order


class TensorSource:
    """The tensors that a model declares, as a checkpoint holds them."""

    def __init__(self, checkpoint: Checkpoint, layout: Layout, definition: Definition) -> None:
        """Raises CheckpointError unless the checkpoint has the tensors declared, in their shapes, and no others."""
        self._checkpoint = checkpoint
        self._declared = {self._key(tensor): tensor for tensor in definition.tensors.values()}
        self._places: dict[str, str] = {}  # declared name -> the checkpoint's
        for name in checkpoint.names():
            if not any(re.fullmatch(pattern, name) for pattern in (*_ALWAYS_IGNORED, *layout.ignored)):
                self._places[_renamed(name, layout)] = name
        if definition.spec.tie_word_embeddings and "lm_head.weight" in self._places:
            # Some exports save the tied matrix twice.
            logger.info("%s: lm_head.weight is ignored: the embeddings are tied", checkpoint.source)
            del self._places["lm_head.weight"]
        self._check_names(definition.spec.model_type)
        for name, tensor in self._declared.items():
            found = checkpoint.shape(self._places[name])
            if found != tensor.shape:
                raise CheckpointError(
                    f"{checkpoint.source}: tensor {self._places[name]!r} has the shape {list(found)}, "
                    f"not {list(tensor.shape)}"
                )

    def __len__(self) -> int:
        return len(self._declared)

    def name(self, tensor: TensorDecl) -> str:
        """In the checkpoint, for messages."""
        return self._places[self._key(tensor)]

    def get(self, tensor: TensorDecl) -> Weight:
        """As declared. A float tensor may be a view of the file and must not be written to."""
        weight = self._checkpoint.get(self.name(tensor))
        if tensor.order is None:
            return weight
        num_heads, order = tensor.shape[0] // tensor.head_dim, torch.tensor(tensor.order)
        return _select(weight, (torch.arange(num_heads)[:, None] * tensor.head_dim + order).flatten())

    def _key(self, tensor: TensorDecl) -> str:
        return tensor.gguf if self._checkpoint.is_gguf else tensor.name

    def _check_names(self, model_type: str) -> None:
        complaints = []
        declared, found = set(self._declared), set(self._places)
        for what, wrong in (("missing", declared - found), ("unexpected", found - declared)):
            if wrong:
                listed = ", ".join(sorted(wrong)[:_NAMES_LISTED]) + (", ..." if len(wrong) > _NAMES_LISTED else "")
                complaints.append(f"{len(wrong)} {what} tensor{'s' if len(wrong) > 1 else ''}: {listed}")
        if complaints:
            raise CheckpointError(
                f"{self._checkpoint.source}: not a complete {model_type} model: {'; '.join(complaints)}"
            )


def _renamed(name: str, layout: Layout) -> str:
    for pattern, replacement in layout.renames:
        name = re.sub(f"^(?:{pattern})$", replacement, name)
    return name


def _select(weight: Weight, rows: Tensor) -> Weight:
    return weight.select_rows(rows) if isinstance(weight, QuantizedWeight) else weight[rows]
