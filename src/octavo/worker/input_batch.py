"""The tensors of one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from octavo.worker.request_states import RequestStates


@dataclass(slots=True)
class HostBatch:
    """One step on the host. T tokens of B requests, S of which sample.

    Sequences that decode, with one token that was generated, come first: a prompt's tokens are computed by other
    kernels than these, also where a step holds only one of them.
    """

    slots: np.ndarray  # int64 [B]: the request of each sequence of the batch
    num_decodes: int
    num_scheduled: np.ndarray  # int64 [B]
    token_ids: np.ndarray  # int32 [T]; -1 - slot: what was sampled last in that slot, and is not on the host yet
    positions: np.ndarray  # int32 [T]
    slot_mapping: np.ndarray  # int64 [T], block * block_size + offset: where each token's key and value go
    query_start_loc: np.ndarray  # int32 [B + 1]
    seq_lens: np.ndarray  # int32 [B], context including this step's tokens
    block_tables: np.ndarray  # int32 [B, most blocks of any request in the batch]
    logits_rows: np.ndarray  # int64 [S], rows of the T whose logits are needed
    sampling_slots: np.ndarray  # int64 [S]


@dataclass(slots=True)
class InputBatch:
    """What the model reads in one step, on the device; shapes as in `HostBatch`. Valid until the step has ended."""

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_tables: torch.Tensor
    attention_plan: Any = None  # the table's own, where its attention wants one

    @property
    def cache_groups(self) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """Block tables and slots of each group of caches: all layers are one."""
        return ((self.block_tables, self.slot_mapping),)


def build_batch(states: RequestStates, num_scheduled: dict[int, int], block_size: int) -> HostBatch:
    """Gather a step from the slot states: one vectorised path for prefill, decode and any mix.

    `num_scheduled`: slot -> tokens to compute now; each count at least 1.
    """
    num_seqs = len(num_scheduled)
    slots = np.fromiter(num_scheduled.keys(), np.int64, num_seqs)
    counts = np.fromiter(num_scheduled.values(), np.int64, num_seqs)
    starts = states.num_computed[slots]
    is_decode = (counts == 1) & (starts >= states.num_prompt_tokens[slots])
    num_decodes = int(is_decode.sum())
    if 0 < num_decodes < num_seqs and not is_decode[:num_decodes].all():
        order = np.argsort(~is_decode, kind="stable")
        slots, counts, starts = slots[order], counts[order], starts[order]
    ends = starts + counts
    query_start_loc = np.zeros(num_seqs + 1, np.int32)
    np.cumsum(counts, out=query_start_loc[1:])
    num_tokens = int(query_start_loc[-1])

    if num_tokens == num_seqs:  # one token each
        rows, positions = slots, starts
    else:
        rows = np.repeat(slots, counts)
        positions = np.arange(num_tokens, dtype=np.int64)
        positions += np.repeat(starts - query_start_loc[:-1], counts)
    indices, offsets = np.divmod(positions, block_size)
    max_blocks = int((ends.max() + block_size - 1) // block_size)
    samples = ends == states.num_tokens[slots]
    return HostBatch(
        slots=slots,
        num_decodes=num_decodes,
        num_scheduled=counts,
        token_ids=states.token_ids[rows, positions],
        positions=positions.astype(np.int32),
        slot_mapping=states.block_tables[rows, indices] * np.int64(block_size) + offsets,
        query_start_loc=query_start_loc,
        seq_lens=ends.astype(np.int32),
        block_tables=states.block_tables[slots, :max_blocks],
        logits_rows=query_start_loc[1:][samples].astype(np.int64) - 1,
        sampling_slots=slots[samples],
    )
