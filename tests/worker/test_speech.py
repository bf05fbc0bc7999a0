"""What a decoder of speech may write, against transformers' processors of logits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import SuppressTokensLogitsProcessor, WhisperTimeStampLogitsProcessor

from octavo.base.errors import InvalidRequest
from octavo.base.params import SamplingParams, SpeechRules
from octavo.worker.speech import apply_rules, listed_ids

VOCAB, END, NO_TIMES, FIRST_TIME = 120, 50, 60, 61
RULES = SpeechRules(
    forbidden_ids=(3, 9), forbidden_start_ids=(7, END), end_id=END, first_time=FIRST_TIME, max_initial_time=20,
    no_speech_id=59,
)  # fmt: skip


def ours(logits: torch.Tensor, rules: SpeechRules, output: list[int]) -> torch.Tensor:
    found = logits.clone()
    apply_rules(found, rules, np.array(output, np.int32), torch.from_numpy(listed_ids(rules)))
    return found


def theirs(logits: torch.Tensor, output: list[int]) -> torch.Tensor:
    settings = SimpleNamespace(
        no_timestamps_token_id=NO_TIMES, eos_token_id=END, bos_token_id=END, max_initial_timestamp_index=20
    )
    times = WhisperTimeStampLogitsProcessor(settings, begin_index=1)
    ids = torch.tensor([[END + 1, *output]])
    # What steers the decoder is never written by ours, and may be by theirs.
    forbidden = [3, 9, *range(END + 1, FIRST_TIME), *([7, END] if not output else [])]
    scores = SuppressTokensLogitsProcessor(forbidden)(ids, logits[None].clone())
    return times(ids, scores)[0]


@pytest.mark.parametrize("seed", range(40))
def test_what_is_left_is_what_transformers_leaves(seed: int) -> None:
    """Along a text that is drawn from what is left, so that pairs of times and their order come up."""
    generator = torch.Generator().manual_seed(seed)
    output: list[int] = []
    for _ in range(25):
        logits = torch.randn(VOCAB, generator=generator) * 2
        logits[FIRST_TIME:] += 1.5 * torch.randn(1, generator=generator)
        found, expected = ours(logits, RULES, output), theirs(logits, output)
        torch.testing.assert_close(found, expected)
        if not found.isfinite().any():
            break
        token = int(torch.multinomial(found.softmax(-1), 1, generator=generator))
        if token == END:
            break
        output.append(token)


def test_first_tokens_are_those_that_steer() -> None:
    rules = SpeechRules(first=((52, 53), (56,)), end_id=END, first_time=FIRST_TIME, no_speech_id=59)
    logits = torch.zeros(VOCAB)
    assert ours(logits, rules, []).isfinite().nonzero().flatten().tolist() == [52, 53]
    assert ours(logits, rules, [53]).isfinite().nonzero().flatten().tolist() == [56]
    after = ours(logits, rules, [53, 56]).isfinite().nonzero().flatten()
    assert after.tolist() == list(range(FIRST_TIME, FIRST_TIME + 51))


def test_no_caller_sets_them() -> None:
    with pytest.raises(InvalidRequest) as raised:
        SamplingParams(speech=RULES).validate(vocab_size=VOCAB)
    assert raised.value.param == "speech"
