"""Drafts in the worker: which rows a step has, what each of them sees, and what comes of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from octavo.ops.table import bind
from octavo.wire.step import CachedRequestData, TokenMasks
from octavo.worker.input_batch import HostBatch, build_batch
from octavo.worker.model_runner import verified
from octavo.worker.request_states import Draft, RequestStates
from octavo.worker.sampler import Sampler, SamplerResult
from worker.devices import HostDevice
from worker.test_input_batch import BLOCK_SIZE, new_request
from worker.test_sampler import ROW, VOCAB
from worker.test_sampler import request as sampled_request


def states_with(*requests: Any) -> RequestStates:
    states = RequestStates(max_num_seqs=4, max_model_len=32, block_size=BLOCK_SIZE, vocab_size=VOCAB)
    for request in requests:
        states.add(request)
    return states


def decoding_beside_a_prompt() -> RequestStates:
    """Slot 1 has two tokens of output and a draft of three; slot 2 decodes one token; slot 0 is a prompt."""
    states = states_with(
        new_request(0, [1, 2, 3, 4, 5, 6], [5, 6]), new_request(1, [1, 2], [1, 2]), new_request(2, [3], [4])
    )
    for slot, token_id in ((1, 3), (1, 4), (2, 7)):
        states.append_token(slot, token_id)
    states.update(CachedRequestData(1, [], 3, draft_token_ids=[5, 6, 7]))
    states.update(CachedRequestData(2, [], 1))
    return states


def check_rows(batch: HostBatch, first_row: int) -> None:
    rows = batch.rows
    assert rows.slots[first_row : first_row + 4].tolist() == [1] * 4
    assert rows.num_tokens[first_row : first_row + 4].tolist() == [4, 5, 6, 7]
    assert batch.token_ids[batch.logits_rows][first_row : first_row + 4].tolist() == [4, 5, 6, 7]
    assert batch.positions[batch.logits_rows][first_row : first_row + 4].tolist() == [3, 4, 5, 6]
    slots = batch.slot_mapping[0, batch.logits_rows][first_row : first_row + 4]
    assert slots.tolist() == [1 * 4 + 3, 2 * 4, 2 * 4 + 1, 2 * 4 + 2]
    (draft,) = rows.drafts
    assert (draft.slot, draft.first_row, draft.token_ids) == (1, first_row, [5, 6, 7])
    assert rows.plain is not None
    assert sorted([*rows.plain.tolist(), *range(first_row, first_row + 4)]) == list(range(len(rows.slots)))


def test_a_draft_is_a_sequence_with_several_rows() -> None:
    batch = build_batch(decoding_beside_a_prompt(), {1: 4, 0: 5, 2: 1}, BLOCK_SIZE)
    assert batch.slots.tolist() == [2, 1, 0] and batch.num_decodes == 1
    assert batch.query_start_loc.tolist() == [0, 1, 5, 10]
    assert batch.seq_lens.tolist() == [2, 7, 5]
    assert batch.logits_rows.tolist() == [0, 1, 2, 3, 4]  # none of the prompt, which is not whole
    check_rows(batch, 1)


def test_a_draft_is_split_into_sequences_that_decode() -> None:
    batch = build_batch(decoding_beside_a_prompt(), {1: 4, 0: 6, 2: 1}, BLOCK_SIZE, splits_drafts=True)
    assert batch.slots.tolist() == [1, 1, 1, 1, 2, 0] and batch.num_decodes == 5
    assert batch.num_scheduled.tolist() == [1, 1, 1, 1, 1, 6]
    assert batch.seq_lens.tolist() == [4, 5, 6, 7, 2, 6]
    assert batch.block_tables[0, :4].tolist() == [[1, 2]] * 4
    assert batch.logits_rows.tolist() == [0, 1, 2, 3, 4, 10]
    check_rows(batch, 0)


def test_a_draft_is_gone_with_its_step() -> None:
    states = decoding_beside_a_prompt()
    build_batch(states, {1: 4}, BLOCK_SIZE)
    states.take_tokens(Draft(1, int(states.generation[1]), 0, [5, 6, 7]), [5, 2])
    assert states.output_tokens(1).tolist() == [3, 4, 5, 2]
    states.update(CachedRequestData(1, [], 5))
    batch = build_batch(states, {1: 1}, BLOCK_SIZE)
    assert (batch.token_ids.tolist(), batch.rows.num_tokens.tolist(), batch.rows.drafts) == ([2], [6], [])


def test_what_came_of_a_draft_is_not_given_to_the_next_request_in_its_slot() -> None:
    states = decoding_beside_a_prompt()
    (draft,) = build_batch(states, {1: 4}, BLOCK_SIZE).rows.drafts
    states.remove(1)
    states.add(new_request(1, [9], [1]))
    states.take_tokens(draft, [5, 6])
    assert states.token_ids[1, : states.num_tokens[1]].tolist() == [9]


@pytest.mark.parametrize(
    ("ids", "errors", "taken"),
    [
        ([5, 6, 7, 8], (), [5, 6, 7, 8]),
        ([5, 6, 9, 8], (), [5, 6, 9]),
        ([1, 6, 7, 8], (), [1]),
        ([5, 6, 7, -1], (13,), [5, 6, 7]),
        ([5, -1, 7, 8], (11,), [5]),
        ([1, -1, 7, 8], (11,), [1]),
    ],
)
def test_tokens_are_taken_as_long_as_the_draft_is_right(
    ids: list[int], errors: tuple[int, ...], taken: list[int]
) -> None:
    draft = Draft(slot=1, generation=0, first_row=10, token_ids=[5, 6, 7])
    assert verified(draft, [0] * 10 + ids, errors) == taken


def sample_draft(
    draft: list[int],
    logits: list[list[float]],
    output: list[int] | None = None,
    masks: np.ndarray | None = None,
    **params: Any,
) -> SamplerResult:
    """The result of a slot whose prompt is [1], beside a plain one in front of it."""
    states = states_with(sampled_request(0), sampled_request(3, seed=5, **params))
    states.append_token(0, 2)
    states.update(CachedRequestData(0, [], 1))
    for token_id in output or []:
        states.append_token(3, token_id)
    num_known = int(states.num_tokens[3])
    states.update(CachedRequestData(3, [], num_known - 1, draft_token_ids=draft))
    batch = build_batch(states, {0: 1, 3: 1 + len(draft)}, BLOCK_SIZE)
    sampler = Sampler(bind("cpu", "reference"), HostDevice(), 2)  # type: ignore[arg-type]
    made = None if masks is None else TokenMasks([3] * len(masks), bytearray(masks.astype("<i4").tobytes()))
    assert batch.rows.slots.tolist() == [0] + [3] * (1 + len(draft))
    draws = torch.from_numpy(batch.draw_positions)
    return sampler.collect(sampler.sample(torch.tensor([ROW, *logits]), states, batch.rows, made, draws))


def test_penalties_of_a_row_count_the_draft_before_it() -> None:
    rows = [ROW] * 4
    # 3 is best; once seen 7 is, then 2, then 1: the tokens of the draft count one row after the other.
    result = sample_draft([3, 7, 2], rows, frequency_penalty=2.0)
    assert result.token_ids.tolist() == [3, 3, 7, 2, 1]
    assert sample_draft([3, 3, 3], rows, presence_penalty=0.95).token_ids.tolist() == [3, 3, 7, 7, 7]


def test_bad_words_and_min_tokens_of_a_row_see_the_draft_before_it() -> None:
    result = sample_draft([6, 4, 6], [ROW] * 4, bad_word_token_ids=((6, 3),))
    assert result.token_ids.tolist() == [3, 3, 7, 3, 7]
    end = [*ROW[:-1], 9.0]
    assert sample_draft([0, 0, 0], [end] * 4, output=[5], min_tokens=3).token_ids.tolist() == [3, 3, 3, 7, 7]


def test_each_row_has_its_own_draw_and_its_own_log_probabilities() -> None:
    flat = [0.0] * VOCAB
    whole = sample_draft([2, 4, 6], [flat] * 4, output=[5], temperature=1.0, logprobs=1)
    assert len(set(whole.token_ids[1:].tolist())) > 1 and list(whole.logprobs) == [1, 2, 3, 4]
    for i in range(4):
        one = sample_draft([], [flat], output=[5, 2, 4, 6][: 1 + i], temperature=1.0, logprobs=1)
        assert one.token_ids[1] == whole.token_ids[1 + i] and one.logprobs[1] == whole.logprobs[1 + i]


def test_each_row_has_its_own_mask() -> None:
    masks = np.array([[0b1000], [0b0100], [0b0000]])
    result = sample_draft([3, 2], [ROW] * 3, masks=masks, logprobs=0)
    assert result.token_ids.tolist()[:3] == [3, 3, 2]
    assert list(result.errors) == [3]  # a row that admits nothing; the first of a slot is an error of its request
    assert not any(math.isinf(entry.logprob) for entry in result.logprobs.values())


def test_a_mask_that_admits_the_end_only_wins_over_min_tokens_in_its_own_row() -> None:
    masks = np.array([[0b1000_1000], [0b1000_0000]])
    assert sample_draft([3], [ROW] * 2, masks=masks, min_tokens=3).token_ids.tolist() == [3, 3, 7]
