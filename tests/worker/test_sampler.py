"""The sampler's glue: every parameter of a request reaches its own row, and only that row."""

import math
from typing import get_args

import numpy as np
import pytest
import torch

from octavo.base.config import LogprobsMode
from octavo.base.params import SamplingParams
from octavo.ops.table import bind
from octavo.wire.step import NewRequestData, TokenMasks
from octavo.worker.request_states import RequestStates, Rows
from octavo.worker.sampler import Sampler, SamplerResult
from worker.devices import HostDevice

VOCAB = 8


def sample(
    requests: list[NewRequestData],
    logits: list[list[float]],
    outputs: dict[int, list[int]],
    mode: LogprobsMode = "raw_logprobs",
    masks: dict[int, np.ndarray] | None = None,
) -> SamplerResult:
    states = RequestStates(max_num_seqs=8, max_model_len=64, block_size=16, vocab_size=VOCAB)
    for request in requests:
        states.add(request)
        for token_id in outputs.get(request.slot, []):
            states.append_token(request.slot, token_id)
    sampler = Sampler(bind("cpu", "reference"), HostDevice(), 8, mode)  # type: ignore[arg-type]
    made = TokenMasks(list(masks), bytearray(np.concatenate([*masks.values()]))) if masks else None
    rows = rows_of(states, [request.slot for request in requests])
    return sampler.collect(sampler.sample(torch.tensor(logits), states, rows, made, draws_of(states, rows)))


def draws_of(states: RequestStates, rows: Rows) -> torch.Tensor:
    return torch.from_numpy(states.draw_positions(rows))


def rows_of(states: RequestStates, slots: list[int]) -> Rows:
    """One row a slot."""
    index = np.array(slots, np.int64)
    return Rows(index, states.num_tokens[index], [])


def request(slot: int, prompt: tuple[int, ...] = (1,), seed: int = 0, **params: object) -> NewRequestData:
    return NewRequestData(
        slot=slot,
        request_id=slot,
        prompt_token_ids=list(prompt),
        num_prompt_tokens=len(prompt),
        params=SamplingParams(**({"temperature": 0.0} | params)),  # type: ignore[arg-type]
        eos_token_ids=(7,),
        block_ids=[[1]],
        num_computed_tokens=0,
        sample_index=0,
        sampling_seed=seed,
    )


ROW = [0.0, 1.0, 2.0, 3.0, 0.5, 0.0, 0.0, 2.9]


def test_each_row_gets_its_own_parameters() -> None:
    requests = [
        request(5),
        request(3, logit_bias={0: 100.0}),
        request(0, presence_penalty=2.0),
        request(1, frequency_penalty=2.0),
        request(2, prompt=(3,), repetition_penalty=4.0),
        request(4, min_tokens=2, logit_bias={7: 1.0}),
        request(6, min_tokens=1, logit_bias={7: 1.0}),
    ]
    outputs = {0: [3], 1: [3, 7], 4: [1], 6: [1]}
    result = sample(requests, [ROW] * 7, outputs)
    # plain | bias | 3 penalised | 3 and 7 penalised | 3 divided | end of sequence masked | no longer masked
    assert result.token_ids.tolist() == [3, 0, 7, 2, 7, 3, 7]
    assert result.errors == {}


def test_a_slot_that_changes_hands_and_rows_that_change_places_take_their_parameters_along() -> None:
    states = RequestStates(max_num_seqs=8, max_model_len=64, block_size=16, vocab_size=VOCAB)
    sampler = Sampler(bind("cpu", "reference"), HostDevice(), 8)  # type: ignore[arg-type]
    flat, slots = torch.zeros(2, VOCAB), [0, 1]

    def drawn(order: list[int]) -> list[int]:
        rows = rows_of(states, order)
        tokens = sampler.sample(flat.clone(), states, rows, None, draws_of(states, rows))
        return sampler.collect(tokens).token_ids.tolist()

    states.add(request(0))
    states.add(request(1, temperature=1.0, seed=6))
    draw = drawn(slots)[1]
    assert draw != 0, "a seed that draws the greedy token shows nothing"
    assert drawn(slots) == [0, draw]
    assert drawn(slots[::-1]) == [draw, 0]
    states.add(request(1))
    assert drawn(slots) == [0, 0]
    states.append_token(0, 3)
    states.add(request(0, temperature=1.0, seed=6))
    assert drawn(slots) == [draw, 0]


def test_a_row_that_is_not_numbers_fails_alone() -> None:
    result = sample([request(0), request(1), request(2)], [ROW, [math.nan] * VOCAB, ROW], {})
    assert list(result.errors) == [1]
    assert (result.token_ids[0], result.token_ids[2]) == (3, 3)


def test_logprobs_are_the_models_own_before_penalties() -> None:
    result = sample([request(0), request(1, logprobs=2, logit_bias={0: 100.0}), request(2, logprobs=0)], [ROW] * 3, {})
    expected = torch.tensor(ROW).log_softmax(-1)
    assert set(result.logprobs) == {1, 2}
    entry = result.logprobs[1]
    assert entry.logprob == pytest.approx(float(expected[0]))
    assert entry.top_ids == [3, 7]
    assert entry.top_logprobs == pytest.approx([float(expected[3]), float(expected[7])])
    bare = result.logprobs[2]
    assert (bare.rank, bare.top_ids) == (1, [])


def test_a_seeded_draw_does_not_depend_on_its_company() -> None:
    flat = [0.0] * VOCAB
    alone = [sample([request(0, seed=s, temperature=1.0)], [flat], {}).token_ids[0] for s in range(20)]
    for s in range(20):
        crowd = [request(4, seed=99, temperature=1.5), request(2, seed=s, temperature=1.0), request(1)]
        assert sample(crowd, [flat, flat, ROW], {}).token_ids[1] == alone[s]
    assert len(set(alone)) > 3


def test_s27_only_allowed_tokens_are_chosen() -> None:
    requests = [request(0, allowed_token_ids=(5, 2, 2)), request(1), request(2, allowed_token_ids=(7, 0), min_tokens=1)]
    result = sample(requests, [ROW] * 3, {})
    assert result.token_ids.tolist() == [2, 3, 0]  # 7 ends the text, and min_tokens forbids that


def test_bad_words_forbid_the_token_that_would_complete_one() -> None:
    words = ((3,), (1, 2, 7), (4, 5))
    outputs = {1: [1, 2], 2: [2], 3: [6, 1, 2]}
    result = sample([request(slot, bad_word_token_ids=words, ignore_eos=True) for slot in range(4)], [ROW] * 4, outputs)
    assert result.token_ids.tolist() == [7, 2, 7, 2]


def test_a_word_begun_in_the_prompt_is_not_forbidden() -> None:
    assert sample([request(0, prompt=(1, 2), bad_word_token_ids=((2, 3),))], [ROW], {}).token_ids == [3]


def test_the_logits_are_whole_again_after_overlapping_masks() -> None:
    requests = [
        request(
            0, allowed_token_ids=(1,), bad_word_token_ids=((3,), (4,)), min_tokens=1, logprobs=1, logit_bias={3: 9.0}
        )
    ]
    result = sample(requests, [ROW], {})
    assert result.logprobs[0].top_ids == [3]


INF = math.inf


@pytest.mark.parametrize(
    ("mode", "greedy", "sampled"),
    [
        ("raw_logits", [3.0, 2.9, 2.0], [3.0, 2.9, 2.0]),
        ("processed_logits", [9.0, 3.0, 2.9], [6.0, 5.8, -INF]),
        ("raw_logprobs", torch.tensor(ROW).log_softmax(-1)[[3, 7, 2]].tolist(), None),
        ("processed_logprobs", None, [*torch.tensor([6.0, 5.8]).log_softmax(-1).tolist(), -INF]),
    ],
)
def test_s18_the_mode_says_what_is_told(
    mode: LogprobsMode, greedy: list[float] | None, sampled: list[float] | None
) -> None:
    requests = [
        request(0, logprobs=3, logit_bias={0: 9.0}),
        request(1, logprobs=3, temperature=0.5, top_k=2),
        request(2, logprobs=1, temperature=0.5, top_k=2),
    ]
    result = sample(requests, [ROW] * 3, {}, mode)
    first, second, third = (result.logprobs[slot] for slot in range(3))
    if greedy is not None:
        assert first.top_logprobs == pytest.approx(greedy)
    if sampled is not None:
        assert second.top_logprobs == pytest.approx(sampled)
        assert second.top_ids[:2] == [3, 7]
        assert second.logprob == pytest.approx(sampled[second.rank - 1])
    assert (third.top_ids, third.top_logprobs) == (second.top_ids[:1], second.top_logprobs[:1])


def test_of_equal_logits_the_lower_id_comes_first_in_every_mode() -> None:
    flat = [1.0] * VOCAB
    for mode in get_args(LogprobsMode):
        entry = sample([request(0, logprobs=4)], [flat], {}, mode).logprobs[0]
        assert (entry.rank, entry.top_ids) == (1, [0, 1, 2, 3])


def mask(*allowed: int) -> np.ndarray:
    """Two words, of which a row of the logits uses eight bits."""
    words = np.zeros(2, np.uint32)
    for token_id in allowed:
        words[token_id >> 5] |= np.uint32(1 << (token_id & 31))
    return words


def test_a_mask_forbids_in_its_own_row_and_leaves_the_logprobs_alone() -> None:
    requests = [request(0), request(1, logprobs=2), request(2, logit_bias={3: 100.0})]
    result = sample(requests, [ROW] * 3, {}, masks={1: mask(0, 5, 6, 40), 2: mask(1, 2)})
    assert result.token_ids.tolist() == [3, 0, 2]
    entry = result.logprobs[1]
    assert entry.top_ids == [3, 7]
    assert entry.logprob == pytest.approx(torch.log_softmax(torch.tensor(ROW), 0)[0].item(), abs=1e-5)


def test_a_mask_that_admits_the_end_only_wins_over_min_tokens() -> None:
    requests = [request(0, min_tokens=5), request(1, min_tokens=5)]
    result = sample(requests, [ROW] * 2, {}, masks={0: mask(7), 1: mask(1, 7)})
    assert result.token_ids.tolist() == [7, 1] and result.errors == {}


def test_a_mask_lifts_min_tokens_and_nothing_else() -> None:
    requests = [request(0, min_tokens=5, bad_word_token_ids=((7,),)), request(1)]
    result = sample(requests, [ROW] * 2, {}, masks={0: mask(7)})
    assert list(result.errors) == [0] and result.token_ids[1] == 3


def test_rows_that_are_shaped_on_the_host_keep_their_own_scores_and_leave_others_alone() -> None:
    requests = [
        request(0),
        request(1, temperature=1.0, mirostat=2, mirostat_tau=0.01, logprobs=2),
        request(2, prompt=(1, 3, 1), dry_multiplier=50.0, dry_allowed_length=1),
        request(3, temperature=1.0, top_n_sigma=0.1, logit_bias={4: 50.0}, min_tokens=3),
        request(4, prompt=(3, 0, 0), repetition_penalty=8.0, repeat_last_n=2),
    ]
    result = sample(requests, [ROW] * 5, {})
    assert result.token_ids.tolist() == [3, 3, 7, 4, 3]
    plain = sample([request(0, logprobs=2)], [ROW], {})
    assert result.logprobs[1] == plain.logprobs[0], "the model's own numbers"
    # One token is left of two: no surprise, so that the bound grows by eta times tau.
    assert result.sampler_states == {1: pytest.approx(2 * 0.01 + 0.1 * 0.01)}


def test_mirostat_goes_on_where_a_preempted_request_was() -> None:
    fresh = request(0, temperature=1.0, mirostat=2)
    kept = request(1, temperature=1.0, mirostat=2)
    kept.sampler_state = 0.5
    states = sample([fresh, kept], [ROW] * 2, {}).sampler_states
    assert states[0] != states[1]
    assert states[1] == pytest.approx(0.5 + 0.1 * 5.0), "of 0.5 bits one token is left"


@pytest.mark.parametrize("mode", get_args(LogprobsMode))
def test_log_probabilities_of_chosen_tokens_are_those_of_the_whole_row(mode: LogprobsMode) -> None:
    ids = (6, 3, 0)
    chosen = sample([request(0, logprobs=3, logprob_token_ids=ids), request(1, logprobs=1)], [ROW] * 2, {}, mode)
    whole = sample([request(0, logprobs=VOCAB)], [ROW], {}, mode).logprobs[0]
    numbers = dict(zip(whole.top_ids, whole.top_logprobs, strict=True))
    assert chosen.logprobs[0].top_ids == list(ids)
    assert chosen.logprobs[0].top_logprobs == pytest.approx([numbers[i] for i in ids], rel=1e-6)
    assert chosen.logprobs[0].logprob == whole.logprob and len(chosen.logprobs[1].top_ids) == 1
