"""Bias, penalties and masks of a step's rows, from the slots that have some, into the host's sampling batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from octavo.ops.sampling_batch import SamplingBatch, csr_offsets
from octavo.worker.request_states import PenaltyState, RequestStates, Rows, SlotParams

_NO_IDS = np.zeros(0, np.int32)

#: Of each row: the entry of its slot, or None.
Special = Sequence[SlotParams | None]


def fill_bias(batch: SamplingBatch, special: Special) -> None:
    biases = [(s.params.logit_bias or {}) if s else {} for s in special]
    ids = [token_id for bias in biases for token_id in bias]
    values = [value for bias in biases for value in bias.values()]
    batch.bias.set_values(
        csr_offsets([len(bias) for bias in biases]), np.array(ids, np.int32), np.array(values, np.float32)
    )


def fill_penalties(batch: SamplingBatch, special: Special, states: RequestStates, rows: Rows) -> None:
    lengths: list[int] = []
    ids: list[int] = []
    counts: list[int] = []
    in_prompt: list[int] = []
    for entry, slot, num_tokens in zip(special, rows.slots.tolist(), rows.num_tokens.tolist(), strict=True):
        state = entry.penalties if entry else None
        if entry is None or state is None:
            lengths.append(0)
            continue
        if entry.params.repeat_last_n > 0:
            state = _last_tokens(states, slot, num_tokens, entry.params.repeat_last_n)
            output_counts = state.output_counts
        else:
            output_counts = state.output_counts
            if draft := states.draft_before(slot, num_tokens):
                output_counts = Counter(output_counts) + Counter(draft)
        seen = state.prompt_ids | output_counts.keys()
        lengths.append(len(seen))
        ids += seen
        counts += [output_counts.get(i, 0) for i in seen]
        in_prompt += [i in state.prompt_ids for i in seen]
    batch.penalties.set_counts(
        csr_offsets(lengths), np.array(ids, np.int32), np.array(counts, np.int32), np.array(in_prompt, np.int32)
    )


def _last_tokens(states: RequestStates, slot: int, num_tokens: int, last_n: int) -> PenaltyState:
    """The state of a request that had begun `last_n` tokens ago; drafts included."""
    first = max(int(states.num_virtual_tokens[slot]), num_tokens - last_n)
    num_prompt = int(states.num_prompt_tokens[slot])
    tokens = states.token_ids[slot]
    return PenaltyState(tokens[first : max(first, num_prompt)], tokens[max(first, num_prompt) : num_tokens])


def fill_masks(
    batch: SamplingBatch, special: Special, states: RequestStates, rows: Rows, at_end: Collection[int]
) -> None:
    """`at_end`: rows that can only end, although they are shorter than they should be."""
    masks = [_NO_IDS] * len(special)
    for row, entry in enumerate(special):
        if entry is not None and entry.mask is not None:
            output = states.output_tokens(int(rows.slots[row]), int(rows.num_tokens[row]))
            masks[row] = entry.mask.ids(output, may_end=row in at_end)
    batch.masks.set(csr_offsets([len(mask) for mask in masks]), np.concatenate(masks))
