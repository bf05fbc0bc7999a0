"""Scores of prompts in the worker: which row scores which token, and how few rows are in memory at once."""

from __future__ import annotations

import pytest
import torch

from octavo.base.config import LogprobsMode
from octavo.base.params import SamplingParams
from octavo.ops.table import bind
from octavo.wire.step import CachedRequestData, NewRequestData
from octavo.worker.input_batch import build_batch
from octavo.worker.request_states import RequestStates
from octavo.worker.scores import PROMPT_ROWS, PromptScorer
from worker.devices import HostDevice

VOCAB, WIDTH = 20, 6
HEAD = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1))


class Model:
    """Logits of rows; remembers how many were asked for at once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def logits(self, rows: torch.Tensor, adapter_slots: None = None) -> torch.Tensor:
        self.sizes.append(len(rows))
        return rows @ HEAD.T


def new(slot: int, tokens: list[int], num_prompt: int | None = None, scores: int | None = 2) -> NewRequestData:
    return NewRequestData(
        slot=slot,
        request_id=slot,
        prompt_token_ids=tokens,
        num_prompt_tokens=len(tokens) if num_prompt is None else num_prompt,
        params=SamplingParams(prompt_logprobs=scores),
        eos_token_ids=(),
        block_ids=[[1, 2, 3, 4, 5, 6, 7]],
        num_computed_tokens=0,
        sample_index=0,
        sampling_seed=0,
    )


def states() -> RequestStates:
    return RequestStates(max_num_seqs=4, max_model_len=128, block_size=16, vocab_size=VOCAB)


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"])
def test_s19_each_row_scores_the_token_behind_it(mode: LogprobsMode) -> None:
    tokens = [(7 * i) % VOCAB for i in range(2 * PROMPT_ROWS + 5)]
    known = states()
    known.add(new(3, [1] * 5, scores=None))
    known.add(new(2, tokens))
    hidden = torch.randn(5 + len(tokens), WIDTH, generator=torch.Generator().manual_seed(2))
    model = Model()
    scorer = PromptScorer(model, bind("cpu", "reference"), HostDevice(), mode)  # type: ignore[arg-type]
    scores = scorer.score(known, build_batch(known, {3: 5, 2: len(tokens)}, 16), hidden)()
    values = hidden[5:] @ HEAD.T
    if mode.endswith("logprobs"):
        values = values.log_softmax(-1)
    assert list(scores) == [2]
    assert len(scores[2]) == len(tokens) - 1
    for i, entry in enumerate(scores[2]):
        assert entry.logprob == pytest.approx(float(values[i, tokens[i + 1]]), abs=1e-5)
        assert entry.rank == int((values[i] > values[i, tokens[i + 1]]).sum()) + 1
        assert entry.top_logprobs == pytest.approx(values[i].topk(2).values.tolist(), abs=1e-5)
    assert model.sizes == [PROMPT_ROWS, PROMPT_ROWS, 4]


def test_chunks_give_what_the_whole_gives() -> None:
    tokens = [(3 * i) % VOCAB for i in range(50)]
    hidden = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(2))
    scorer = PromptScorer(Model(), bind("cpu", "reference"), HostDevice(), "raw_logprobs")  # type: ignore[arg-type]
    known = states()
    known.add(new(0, tokens))
    whole = scorer.score(known, build_batch(known, {0: 50}, 16), hidden)()[0]
    parts = []
    for start, end in ((0, 20), (20, 49), (49, 50)):
        known.update(CachedRequestData(0, [], start))
        parts += scorer.score(known, build_batch(known, {0: end - start}, 16), hidden[start:end])().get(0, [])
    assert [entry.top_ids for entry in parts] == [entry.top_ids for entry in whole]
    assert [entry.logprob for entry in parts] == pytest.approx([entry.logprob for entry in whole])


def test_a_request_that_comes_back_with_output_is_not_scored_again() -> None:
    known = states()
    known.add(new(0, [1, 2, 3, 4], num_prompt=3))
    assert known.prompt_logprobs == {}
