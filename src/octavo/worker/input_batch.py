"""The tensors of one step."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from octavo.worker.request_states import Draft, RequestStates, Rows


@dataclass(slots=True)
class HostBatch:
    """One step on the host. T tokens of B requests, S of which sample; G groups of layers.

    Sequences that decode, with one token that was generated, come first: a prompt's tokens are computed by other
    kernels than these, also where a step holds only one of them. Where those kernels round differently, a draft is as
    many sequences that decode as it has rows, so that each row is what it would have been without a draft: all keys
    and values of a step are written before any is read.
    """

    slots: np.ndarray  # int64 [B]: the request of each sequence of the batch
    num_decodes: int
    num_scheduled: np.ndarray  # int64 [B]
    token_ids: np.ndarray  # int32 [T]; -1 - slot: what was sampled last in that slot, and is not on the host yet
    positions: np.ndarray  # int32 [T]
    slot_mapping: np.ndarray  # int64 [G, T], block * block_size + offset: where each token's key and value go
    query_start_loc: np.ndarray  # int32 [B + 1]
    seq_lens: np.ndarray  # int32 [B], context including this step's tokens
    block_tables: np.ndarray  # int32 [G, B, most blocks of any request in the batch]
    logits_rows: np.ndarray  # int64 [S], rows of the T whose logits are needed
    rows: Rows
    draw_positions: np.ndarray  # int64 [S], of each row's token among those that its request generates
    #: Where layers see an encoder: int32 [B], the rows of each sequence's; [E, B, most blocks of any], of E groups.
    encoder_lens: np.ndarray | None = None
    encoder_tables: np.ndarray | None = None
    muted_rows: np.ndarray | None = None  # int64, rising: tokens before the first picture, where layers see pictures
    position_parts: np.ndarray | None = None  # int32 [3, T], where a token's position has several
    adapter_slots: np.ndarray | None = None  # int32 [T], -1: none; None: no token has an adapter
    #: Tokens that read rows of prompt adapters, the slots of these, and the rows' numbers, all int64 [R].
    virtual: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None


class RowTensors(NamedTuple):
    """What sampling reads of a step's rows, on the device, int64 [S] each: it travels with the step's inputs."""

    slots: torch.Tensor
    draw_positions: torch.Tensor


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
    state_slots: torch.Tensor | None = None  # int32 [B], where layers have a state
    input_rows: torch.Tensor | None = None
    key_ends: torch.Tensor | None = None
    encoder_lens: torch.Tensor | None = None
    encoder_plan: Any = None
    position_parts: torch.Tensor | None = None  # int32 [parts, T], where some of the tokens have a position in parts
    adapter_slots: torch.Tensor | None = None
    replaced_index: torch.Tensor | None = None  # int64 [R]: tokens that read rows of media, or of adapters
    replaced_rows: torch.Tensor | None = None  # [R, width]
    #: Of each group of layers: block tables [B, blocks], slots [T].
    cache_groups: list[tuple[torch.Tensor, torch.Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self.cache_groups = list(zip(self.block_tables.unbind(), self.slot_mapping.unbind(), strict=True))

    def give_rows(self, index: torch.Tensor, rows: torch.Tensor) -> None:
        """Let tokens, int64 [R] rising, read rows [R, width] in the place of embeddings. None of them does so yet."""
        if self.replaced_index is not None and self.replaced_rows is not None:
            index, rows = torch.cat([self.replaced_index, index]), torch.cat([self.replaced_rows, rows])
            order = index.argsort()
            index, rows = index[order], rows[order]
        self.replaced_index, self.replaced_rows = index, rows

    def add_encoder(self, lens: torch.Tensor, tables: torch.Tensor, plan: Any) -> None:
        """What layers see of encoders: int32 [B], [E, B, blocks]; and the attention's plan of it."""
        self.encoder_lens, self.encoder_plan = lens, plan
        # Behind the groups of the tokens, which write nothing to them.
        self.cache_groups += [(table, self.slot_mapping[0]) for table in tables.unbind()]


def build_batch(
    states: RequestStates, num_scheduled: dict[int, int], block_size: int, *, splits_drafts: bool = False
) -> HostBatch:
    """Gather a step from the slot states: one vectorised path for prefill, decode and any mix.

    `num_scheduled`: slot -> tokens to compute now; each count at least 1. `splits_drafts`: each row of a draft is a
    sequence of its own.
    """
    num_seqs = len(num_scheduled)
    slots = np.fromiter(num_scheduled.keys(), np.int64, num_seqs)
    counts = np.fromiter(num_scheduled.values(), np.int64, num_seqs)
    starts = states.num_computed[slots]
    states.leave_blocks(slots)
    num_rows = np.maximum(starts + counts + 1 - states.num_tokens[slots], 0)
    drafted = slots[num_rows > 1]
    if splits_drafts and len(drafted):
        slots, counts, starts, num_rows = _split(slots, counts, starts, num_rows)
    if states.views:
        slots, counts, starts, num_rows = _cut(states, slots, counts, starts, num_rows)
    is_decode = (counts == 1) & (starts >= states.num_prompt_tokens[slots])
    num_decodes = int(is_decode.sum())
    if 0 < num_decodes < len(slots) and not is_decode[:num_decodes].all():
        order = np.argsort(~is_decode, kind="stable")
        slots, counts, starts, num_rows = slots[order], counts[order], starts[order], num_rows[order]
    ends = starts + counts
    query_start_loc = np.zeros(len(slots) + 1, np.int32)
    np.cumsum(counts, out=query_start_loc[1:])
    num_tokens = int(query_start_loc[-1])

    if num_tokens == len(slots):  # one token each
        token_slots, positions = slots, starts
    else:
        token_slots = np.repeat(slots, counts)
        positions = np.arange(num_tokens, dtype=np.int64)
        positions += np.repeat(starts - query_start_loc[:-1], counts)
    indices, offsets = np.divmod(positions, block_size)
    max_blocks = int((ends.max() + block_size - 1) // block_size)
    logits_rows = _last_of_each(query_start_loc[1:].astype(np.int64), num_rows)
    sampling_slots = token_slots[logits_rows]
    rows = Rows(sampling_slots, positions[logits_rows] + 1, _drafts(states, drafted, sampling_slots))
    draw_positions = states.draw_positions(rows)
    told = positions if not states.position_parts else positions.copy()
    parts = _position_parts(states, slots, query_start_loc, told)
    host = HostBatch(
        slots=slots,
        num_decodes=num_decodes,
        num_scheduled=counts,
        token_ids=states.token_ids[token_slots, positions],
        positions=told.astype(np.int32),
        # Kernels read slots and tables as they stand in memory; numpy may have gathered them in another order.
        slot_mapping=np.ascontiguousarray(
            states.block_tables[:, token_slots, indices] * np.int64(block_size) + offsets
        ),
        query_start_loc=query_start_loc,
        seq_lens=ends.astype(np.int32),
        block_tables=np.ascontiguousarray(states.block_tables[:, slots, :max_blocks]),
        logits_rows=logits_rows,
        rows=rows,
        draw_positions=draw_positions,
        position_parts=parts,
    )
    if states.num_virtual_tokens.any():
        (at,) = (positions < states.num_virtual_tokens[token_slots]).nonzero()
        if len(at):
            host.virtual = at, states.prompt_slots[token_slots[at]], positions[at]
    adapter_slots = states.adapter_slots[token_slots]
    if (adapter_slots >= 0).any():
        host.adapter_slots = adapter_slots
    if states.views:
        _see_pictures(states, host, starts)
    elif len(states.encoder_tables):
        host.encoder_lens = states.encoder_lens[slots]
        most = -(-int(host.encoder_lens.max()) // block_size)
        host.encoder_tables = np.ascontiguousarray(states.encoder_tables[:, slots, :most])
    return host


def _position_parts(
    states: RequestStates, slots: np.ndarray, query_start_loc: np.ndarray, positions: np.ndarray
) -> np.ndarray | None:
    """The parts of all tokens, int32 [3, T], if some have different ones. Where a token's parts are one number, that is
    put into `positions` int64 [T]."""
    if not states.position_parts:
        return None
    parts = np.tile(positions.astype(np.int32), (3, 1))
    for at, slot in enumerate(slots.tolist()):
        if slot in states.position_parts:
            tokens = slice(int(query_start_loc[at]), int(query_start_loc[at + 1]))
            parts[:, tokens] = states.position_parts[slot].of(positions[tokens])
    positions[:] = parts[0]
    return parts if (parts[0] != parts[1]).any() or (parts[0] != parts[2]).any() else None


def _split(
    slots: np.ndarray, counts: np.ndarray, starts: np.ndarray, num_rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sequences of which every token is a row, as one sequence a row; the others as they are."""
    parts = np.where(counts == num_rows, counts, 1)
    index = np.repeat(np.arange(len(slots)), parts)
    part = _index_within(parts)
    is_split = parts[index] > 1
    return (
        slots[index],
        np.where(is_split, 1, counts[index]),
        starts[index] + part,
        np.where(is_split, 1, num_rows[index]),
    )


def _cut(
    states: RequestStates, slots: np.ndarray, counts: np.ndarray, starts: np.ndarray, num_rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sequences whose tokens see different pictures, as one sequence for each view; the rows are the last one's."""
    cut: list[tuple[int, int, int, int]] = []
    for slot, count, start, rows in zip(*(each.tolist() for each in (slots, counts, starts, num_rows)), strict=True):
        places = [view.first_token for view in states.views[slot] if start < view.first_token < start + count]
        bounds = [start, *places, start + count]
        cut += [(slot, end - first, first, 0) for first, end in pairwise(bounds)]
        cut[-1] = (*cut[-1][:3], rows)
    found = np.array(cut, np.int64)
    return found[:, 0].copy(), found[:, 1].copy(), found[:, 2].copy(), found[:, 3].copy()


def _see_pictures(states: RequestStates, host: HostBatch, starts: np.ndarray) -> None:
    """What layers see of pictures: the view of each sequence. `starts` int64 [B]: the number of its first token."""
    views = [
        next(view for view in reversed(states.views[slot]) if view.first_token <= start)
        for slot, start in zip(host.slots.tolist(), starts.tolist(), strict=True)
    ]
    most = max(len(view.blocks) for view in views)
    host.encoder_lens = np.array([view.num_rows for view in views], np.int32)
    host.encoder_tables = np.zeros((len(states.encoder_tables), len(views), most), np.int32)
    for at, view in enumerate(views):
        host.encoder_tables[:, at, : len(view.blocks)] = states.encoder_tables[:, host.slots[at], list(view.blocks)]
    muted = [
        np.arange(host.query_start_loc[at], host.query_start_loc[at + 1], dtype=np.int64)
        for at, view in enumerate(views)
        if view.is_muted
    ]
    host.muted_rows = np.concatenate(muted) if muted else None


def _index_within(lengths: np.ndarray) -> np.ndarray:
    """int64: 0 .. length - 1 for each of `lengths`, one after the other."""
    ends = np.cumsum(lengths)
    result: np.ndarray = np.arange(int(ends[-1]), dtype=np.int64) - np.repeat(ends - lengths, lengths)
    return result


def _last_of_each(ends: np.ndarray, num_rows: np.ndarray) -> np.ndarray:
    """int64 [S]: of each sequence, whose tokens end before ends[i], the last num_rows[i]."""
    result: np.ndarray = ends[num_rows > 0] - 1
    if (num_rows > 1).any():
        result = np.repeat(ends - num_rows, num_rows) + _index_within(num_rows)
    return result


def _drafts(states: RequestStates, drafted: np.ndarray, sampling_slots: np.ndarray) -> list[Draft]:
    """`drafted` int64: the slots with more than one of the rows, which are those of `sampling_slots` int64 [S]."""
    drafts = []
    for slot in drafted.tolist():
        rows = (sampling_slots == slot).nonzero()[0]
        draft = states.draft_before(slot, int(states.num_tokens[slot]) + len(rows) - 1)
        drafts.append(Draft(slot, int(states.generation[slot]), int(rows[0]), draft))
    return drafts
