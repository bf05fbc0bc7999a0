"""A loaded model: its program, run through the `Ops` table, and the output matrix behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from octavo.models.decoder import Definition
from octavo.ops.lora import bank_name
from octavo.ops.operands import Heads, Latent
from octavo.ops.program import Program
from octavo.ops.step import KVCaches, StepTensors
from octavo.ops.table import Ops
from octavo.ops.workspace import Workspace


class Transformer:
    """Not to be used by two threads at once: the workspace is one step's.

    `weights`: what was packed, by the names of the program's weights. `max_num_batched_tokens`: what the workspace is
    made for; it grows if a step is larger.
    """

    def __init__(
        self, definition: Definition, ops: Ops, weights: Mapping[str, Any], max_num_batched_tokens: int
    ) -> None:
        self.definition = definition
        self.spec = definition.spec
        self.weights = weights
        self._ops = ops
        self._lm_head = None if definition.lm_head is None else weights[definition.lm_head.name]
        self._unused_ids = torch.tensor(self.spec.unused_ids, dtype=torch.int64, device=ops.torch_device)
        #: Output matrices in place of the model's, packed, by the slots of the adapters that have one; and the slots of
        #: those that change the model's.
        self.heads: dict[int, Any] = {}
        self.head_deltas: set[int] = set()
        #: Of tokens that adapters add: output matrices, packed, with their numbers of rows, by slots.
        self.extra_heads: dict[int, tuple[Any, int]] = {}
        self._logits = self._empty_logits(0)
        self._runner = ops.program_runner(ops, definition.program, weights)
        self._workspace = self._new_workspace(max_num_batched_tokens)

    #: Whether a step is nothing but launches, always at the same places.
    can_be_captured = True

    @property
    def program(self) -> Program:
        """As the table runs it, which may have rewritten the definition's."""
        return self._runner.program

    @property
    def attention_shapes(self) -> tuple[Heads | Latent, ...]:
        """Those of the attentions over the tokens, each once: layers of one shape plan a step alike."""
        return tuple(dict.fromkeys(cache.heads for cache in self.definition.program.caches if not cache.of_encoder))

    def forward(self, step: StepTensors, kv_caches: KVCaches, needed: Tensor | None = None) -> Tensor:
        """Run the step's tokens; their keys and values go to the caches, one (k, v) for each of the program's.

        Returns the hidden states behind the final norm, [T, H] of the table's type, or [S, H] for the rows `needed`,
        int64 [S] in rising order: a view, valid until the next call.
        """
        if len(step.token_ids) > self._workspace.capacity:
            self._workspace = self._new_workspace(len(step.token_ids))
        hidden: Tensor = self._runner.run(self._workspace, step, kv_caches, needed)
        return hidden

    def logits(self, rows: Tensor, adapter_slots: Tensor | None = None) -> Tensor:
        """float32 [S, V] for rows [S, H] of `forward`'s result: a view, valid until the next call, may be modified.
        Where adapters may add tokens, these are the last columns, -inf for rows whose adapter does not have them.

        `adapter_slots`: int32 [S], -1: none; None: no row runs with an adapter.
        """
        assert self._lm_head is not None, "the model gives vectors"
        num_rows = len(rows)
        if num_rows > len(self._logits):
            # Grown by need: for all sequences a step may hold, it would often be the largest tensor of all.
            self._logits = self._empty_logits(max(num_rows, 2 * len(self._logits)))
        logits = self._logits[:num_rows]
        if self.definition.extra_tokens:
            logits = logits.new_empty(num_rows, self.spec.vocab_size)
        self._ops.linear(logits, rows, self._lm_head)
        if adapter_slots is not None:
            self._adapt(logits, rows, adapter_slots)
        cap = self.spec.logit_softcap
        if cap:
            self._ops.soft_cap_(logits, cap)
        if self.spec.unused_ids:
            logits.index_fill_(1, self._unused_ids, -math.inf)
        return self._widened(logits, rows, adapter_slots) if self.definition.extra_tokens else logits

    def _widened(self, logits: Tensor, rows: Tensor, slots: Tensor | None) -> Tensor:
        """With the columns of tokens that adapters add."""
        found, width = self._logits[: len(logits)], logits.shape[1]
        found[:, :width] = logits
        found[:, width:] = -math.inf
        if slots is None:
            return found
        for slot, (head, count) in self.extra_heads.items():
            mine = (slots == slot).nonzero()[:, 0]
            if len(mine):
                own = torch.empty(len(mine), count, device=logits.device)
                self._ops.linear(own, rows[mine], head)
                if self.spec.logit_softcap:
                    self._ops.soft_cap_(own, self.spec.logit_softcap)
                found[mine, width : width + count] = own
        return found

    def _adapt(self, logits: Tensor, rows: Tensor, slots: Tensor) -> None:
        if self.head_deltas and self.definition.lm_head is not None:
            bank = self.weights[bank_name(self.definition.lm_head)]
            self._ops.lora_delta(logits, rows.contiguous(), slots, bank)
        for slot, head in self.heads.items():
            mine = (slots == slot).nonzero()[:, 0]
            if len(mine):
                own = torch.empty(len(mine), logits.shape[1], device=logits.device)
                self._ops.linear(own, rows[mine], head)
                logits[mine] = own

    def reserve(self, num_tokens: int, num_rows: int) -> None:
        """Make room for steps of `num_tokens` tokens and the logits of `num_rows` rows, so that up to these sizes all
        buffers keep their addresses."""
        if num_tokens > self._workspace.capacity:
            self._workspace = self._new_workspace(num_tokens)
        if num_rows > len(self._logits):
            self._logits = self._empty_logits(num_rows)

    def step_bytes(self, num_tokens: int, num_rows: int) -> int:
        """What the buffers take in a step of `num_tokens` tokens with the logits of `num_rows` rows, at most."""
        workspace = Workspace(self._runner.program, num_tokens, self._ops.activation_dtype, torch.device("meta"))
        # Logits grow by doubling.
        return workspace.num_bytes + 2 * num_rows * self.definition.num_ids * self._logits.itemsize

    def _new_workspace(self, num_tokens: int) -> Workspace:
        return Workspace(self._runner.program, num_tokens, self._ops.activation_dtype, self._ops.torch_device)

    def _empty_logits(self, num_rows: int) -> Tensor:
        return torch.empty(num_rows, self.definition.num_ids, device=self._ops.torch_device)
