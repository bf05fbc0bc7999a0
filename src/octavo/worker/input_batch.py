"""The tensors of one step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from octavo.device.base import Device
from octavo.worker.request_states import RequestStates


@dataclass(slots=True)
class InputBatch:
    """What the model and the sampler read in one step. T tokens of B requests, S of which sample.

    The tensors belong to the batch's builder and are valid until the next call of `InputBatchBuilder.build`.
    """

    slots: np.ndarray  # int64 [B], host: the request of each sequence of the batch
    token_ids: torch.Tensor  # int32 [T]
    positions: torch.Tensor  # int32 [T]
    slot_mapping: torch.Tensor  # int64 [T], block * block_size + offset: where each token's key and value go
    query_start_loc: torch.Tensor  # int32 [B + 1]
    seq_lens: torch.Tensor  # int32 [B], context including this step's tokens
    block_tables: torch.Tensor  # int32 [B, most blocks of any request in the batch]
    logits_rows: torch.Tensor  # int64 [S], rows of the T whose logits are needed
    sampling_slots: np.ndarray  # int64 [S], host


class InputBatchBuilder:
    """Assembles `InputBatch` from the slot states: one vectorised path for prefill, decode and any mix."""

    def __init__(self, device: Device, block_size: int) -> None:
        self._device = device
        self._block_size = block_size

    def build(self, states: RequestStates, num_scheduled: dict[int, int]) -> InputBatch:
        """`num_scheduled`: slot -> tokens to compute now, in batch order; each count at least 1."""
        num_seqs = len(num_scheduled)
        slots = np.fromiter(num_scheduled.keys(), np.int64, num_seqs)
        counts = np.fromiter(num_scheduled.values(), np.int64, num_seqs)
        starts = states.num_computed[slots]
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
        indices, offsets = np.divmod(positions, self._block_size)
        slot_mapping = states.block_tables[rows, indices] * np.int64(self._block_size) + offsets
        max_blocks = int((ends.max() + self._block_size - 1) // self._block_size)

        samples = ends == states.num_tokens[slots]
        upload = self._device.upload
        return InputBatch(
            slots=slots,
            token_ids=upload(states.token_ids[rows, positions]),
            positions=upload(positions.astype(np.int32)),
            slot_mapping=upload(slot_mapping),
            query_start_loc=upload(query_start_loc),
            seq_lens=upload(ends.astype(np.int32)),
            block_tables=upload(states.block_tables[slots, :max_blocks]),
            logits_rows=upload(query_start_loc[1:][samples].astype(np.int64) - 1),
            sampling_slots=slots[samples],
        )
