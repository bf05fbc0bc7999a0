"""A step of a model whose modules are transformers'."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from octavo.models.bridge.attention import Step, running
from octavo.models.bridge.declare import BridgedDefinition
from octavo.models.bridge.modules import ByRow, Layout, attach, take_shortcuts
from octavo.models.bridge.proof import proven
from octavo.models.bridge.refusal import Refusal, refused
from octavo.models.transformer import Transformer
from octavo.ops.operands import Heads
from octavo.ops.program import Program
from octavo.ops.step import KVCaches, StepTensors
from octavo.ops.table import Ops


class BridgedModel(Transformer):
    """As `Transformer`, of a tree that runs over all tokens of a step as one sequence, [1, T]: what belongs to which
    request is known to the attention alone."""

    definition: BridgedDefinition
    #: Modules look at values, and allocate what they need.
    can_be_captured = False

    def __init__(self, definition: BridgedDefinition, ops: Ops, weights: Mapping[str, Any]) -> None:
        """A definition whose attentions are not known yet is tried out first. Raises CheckpointError for a model that
        cannot be served, with the reason."""
        self._ops = ops
        self._tree = definition.skeleton.make()
        self._num_rows = 0  # of what runs
        attach(self._tree, definition, ops, weights)
        self._base = self._tree.base_model
        self._head = _without_base(self._tree)
        self._logits_by_row = False
        if not definition.calls:
            try:
                definition = proven(self, self._tree, definition, ops)
            except Refusal as error:
                raise refused(definition.skeleton.source, type(self._tree).__name__, error) from None
        else:
            self.run_by_row(definition.row_wise)
        take_shortcuts(self._tree)
        self.definition, self.spec = definition, definition.spec

    @property
    def program(self) -> Program:
        return self.definition.program

    def run_by_row(self, layouts: Mapping[str, Layout | None]) -> None:
        """From here on modules run one token after the other, by their paths; "": what makes logits of hidden states.
        None: the layout of the arguments is that of the next step."""
        for path, layout in layouts.items():
            module: Any = self._tree.get_submodule(path)
            if path == "":
                self._logits_by_row = True
            elif not isinstance(module.forward, ByRow):
                module.forward = ByRow(module.forward, lambda: self._num_rows, layout)

    def layouts(self, paths: Iterable[str]) -> dict[str, Layout]:
        """Of modules that run one token after the other, after a step."""
        found: dict[str, Layout] = {}
        for path in paths:
            forward: Any = self._tree.get_submodule(path).forward
            found[path] = (forward.layout or {}) if isinstance(forward, ByRow) else {}
        return found

    def forward(self, step: StepTensors, kv_caches: KVCaches, needed: Tensor | None = None) -> Tensor:
        current = Step(self._ops, step, kv_caches, self.definition.calls)
        with running(current):
            hidden = self.hidden(step)
        assert current.done == len(current.calls), "a step has called other attentions than the first one"
        return hidden.clone() if needed is None else hidden[needed]

    def hidden(self, step: StepTensors) -> Tensor:
        """[T, H] behind the final norm: of what `running` says."""
        self._num_rows = len(step.token_ids)
        with torch.inference_mode():
            output = self._base(
                input_ids=step.token_ids.long().unsqueeze(0),
                position_ids=step.positions.long().unsqueeze(0),
                use_cache=False,
            )
        hidden: Tensor = output[0]
        return hidden.reshape(len(step.token_ids), -1).to(self._ops.activation_dtype)

    def logits(self, rows: Tensor, adapter_slots: Tensor | None = None) -> Tensor:
        if self._logits_by_row and len(rows) > 1:
            return torch.cat([self.logits(rows[i : i + 1]) for i in range(len(rows))])
        self._num_rows = len(rows)
        base: Any = self._head.base_model
        base.hidden = rows.unsqueeze(0)
        with torch.inference_mode():
            logits: Tensor = self._head(
                input_ids=torch.zeros(1, len(rows), dtype=torch.int64, device=rows.device)
            ).logits
        base.hidden = None
        return logits.reshape(len(rows), -1).float().clone()

    def reserve(self, num_tokens: int, num_rows: int) -> None:
        """Nothing: a tree's buffers are torch's."""

    def step_bytes(self, num_tokens: int, num_rows: int) -> int:
        """About: what a tree allocates is known to nobody. Several of its widest results live at a time."""
        widths = [linear.weight.shape[0] for linear in self.program.ops if hasattr(linear, "weight")]
        widths += [cache.heads.qkv_size for cache in self.program.caches if isinstance(cache.heads, Heads)]
        row = 6 * max(widths, default=0) * self._ops.activation_dtype.itemsize
        return num_tokens * row + 3 * num_rows * self.spec.vocab_size * torch.float32.itemsize


class _Hidden(nn.Module):
    """In the base model's place: its result is what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> _Output:
        return _Output(self.hidden)


class _Output:
    """A base model's, of which only the hidden states are there."""

    def __init__(self, hidden: Tensor | None) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


def _without_base(tree: Any) -> Any:
    """The tree's way from hidden states to logits: scales and bounds are in its own code."""
    head, hidden = copy.copy(tree), _Hidden()
    head._modules = {**tree._modules, tree.base_model_prefix: hidden}
    decoder = tree.get_decoder()
    for name, module in tree.base_model.named_children():
        if module is decoder:  # which some call past the base model
            hidden.__dict__[name] = hidden
    return head
