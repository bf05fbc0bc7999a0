"""Whisper through scheduler and worker, against transformers in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.whisper.generation_whisper import _median_filter

from engine.harness import Engine, check_any_company, run
from octavo.base.media import MediaTensor
from octavo.base.params import SamplingParams, SpeechAlignment, SpeechRules
from octavo.wire.messages import AddRequest
from octavo.worker.encoder import EncoderRunner
from octavo.worker.speech import apply_rules, listed_ids
from support.tiny_whisper import (
    CHANNELS,
    END,
    FIRST_LANGUAGE,
    FIRST_TIME,
    NO_SPEECH,
    NUM_LANGUAGES,
    ROWS,
    START,
    TRANSCRIBE,
    logits_of,
    make_whisper,
    random_frames,
    tensor_of,
)

NUM_TOKENS = 8
RULES = SpeechRules(
    first=(tuple(range(FIRST_LANGUAGE, FIRST_LANGUAGE + NUM_LANGUAGES)), (TRANSCRIBE,)),
    forbidden_ids=(5, 7), forbidden_start_ids=(END,), end_id=END, first_time=FIRST_TIME, no_speech_id=NO_SPEECH,
)  # fmt: skip


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Engine]:
    path = tmp_path_factory.mktemp("whisper")
    model = make_whisper(path)
    return model, Engine(Path(path), dtype="float32")


def requests(num: int = 4, **params: Any) -> list[AddRequest]:
    sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": NUM_TOKENS, "logprobs": 3, **params})
    return [
        AddRequest(
            request_id=i,
            prompt_token_ids=[START, *range(5, 5 + 7 * i)],
            params=sampling,
            encoder_token_ids=[0] * ROWS,
            encoder_frames=tensor_of(random_frames(i)),
        )
        for i in range(num)
    ]


def test_greedy_tokens_and_their_probabilities_are_those_of_transformers(both: tuple[Any, Engine]) -> None:
    model, engine = both
    asked = requests()
    replies = run(engine, asked)
    for request in asked:
        reply, prompt = replies[request.request_id], request.prompt_token_ids
        expected = logits_of(model, random_frames(request.request_id), [*prompt, *reply.token_ids]).log_softmax(-1)
        rows = expected[len(prompt) - 1 : -1]
        assert reply.token_ids == rows.argmax(-1).tolist()
        found = torch.tensor([entry.logprob for entry in reply.logprobs])
        torch.testing.assert_close(found, rows.max(-1).values, rtol=1e-4, atol=1e-4)


def test_speech_is_held_to_its_rules_and_the_first_score_has_silence_beside_it(both: tuple[Any, Engine]) -> None:
    model, engine = both
    asked = requests(speech=RULES)
    replies = run(engine, asked)
    for request in asked:
        reply, prompt = replies[request.request_id], request.prompt_token_ids
        logits = logits_of(model, random_frames(request.request_id), [*prompt, *reply.token_ids])[len(prompt) - 1 :]
        [silence] = reply.logprobs[0].top_logprobs
        assert silence == pytest.approx(float(logits[0].log_softmax(-1)[NO_SPEECH]), abs=1e-4)
        assert reply.logprobs[0].top_ids == [NO_SPEECH]
        for i, token in enumerate(reply.token_ids):
            row = logits[i].clone()
            apply_rules(row, RULES, np.array(reply.token_ids[:i], np.int32), torch.from_numpy(listed_ids(RULES)))
            assert token == int(row.argmax())
            assert reply.logprobs[i].logprob == pytest.approx(float(row.log_softmax(-1)[token]), abs=1e-4)
        assert reply.token_ids[0] in RULES.first[0] and reply.token_ids[1] == TRANSCRIBE
        assert reply.token_ids[2] >= FIRST_TIME


@pytest.mark.parametrize(
    "params",
    [{}, {"temperature": 1.0, "seed": 5}, {"temperature": 1.0, "seed": 5, "speech": RULES}],
    ids=["greedy", "sampled", "speech"],
)
def test_the_same_text_in_any_company(both: tuple[Any, Engine], params: dict[str, Any]) -> None:
    _, engine = both
    asked = requests(**params)
    check_any_company(engine, asked, max_num_batched_tokens=8, max_num_prefill_tokens=5)


ALIGNMENT = SpeechAlignment(heads=((1, 0), (2, 1), (1, 1)), first_token=1, num_rows=ROWS - 3, smoothing=5)


def test_when_it_was_said_is_where_the_heads_look(both: tuple[Any, Engine]) -> None:
    model, engine = both
    asked = requests(max_tokens=1, logprobs=None, alignment=ALIGNMENT)[1:]
    replies = run(engine, [*asked, *requests(1)])
    for request in asked:
        ids = request.prompt_token_ids
        with torch.no_grad():
            seen = model(
                input_features=torch.from_numpy(random_frames(request.request_id).T.copy())[None],
                decoder_input_ids=torch.tensor([ids]),
                output_attentions=True,
            ).cross_attentions
        weights = torch.stack([seen[layer][:, head, 1:, : ROWS - 3] for layer, head in ALIGNMENT.heads], 1)
        spread, mean = torch.std_mean(weights, dim=-2, correction=0, keepdim=True)
        expected = _median_filter((weights - mean) / spread, ALIGNMENT.smoothing).mean(1)[0]
        reply = replies[request.request_id]
        assert reply.finish_reason == "stop" and reply.token_ids == [] and reply.pooled is not None
        found = torch.from_numpy(np.frombuffer(reply.pooled, np.float32).reshape(len(ids) - 1, ROWS - 3).copy())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    # Alone, and in steps of a few tokens, the same bit for bit.
    assert run(engine, asked[-1:]) == {asked[-1].request_id: replies[asked[-1].request_id]}
    assert run(engine, [*asked, *requests(1)], max_num_batched_tokens=8, max_num_prefill_tokens=5) == replies


def test_a_sound_that_is_asked_for_again_is_not_encoded_again(
    both: tuple[Any, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, engine = both
    lens, encode = [], EncoderRunner.run

    def counted(self: EncoderRunner, given: list[int], **inputs: Any) -> torch.Tensor:
        lens.append(len(given))
        return encode(self, given, **inputs)

    monkeypatch.setattr(EncoderRunner, "run", counted)
    sound = {"encoder_token_ids": [0] * ROWS, "encoder_frames": tensor_of(random_frames(77))}
    first, again = (AddRequest(i, [START], SamplingParams(temperature=0.0, max_tokens=4), **sound) for i in range(2))
    replies = run(engine, [first, again])
    assert lens == [1, 1], "two of a step: one sound, by its two programs"
    assert run(engine, [again])[1] == replies[0] == replies[1] and len(lens) == 2


def test_frames_of_another_shape_are_refused(both: tuple[Any, Engine]) -> None:
    _, engine = both
    for frames in (
        None,
        tensor_of(random_frames(0, rows=ROWS - 1)),
        MediaTensor("float32", (2 * ROWS, CHANNELS), b"\0" * 8),
    ):
        request = AddRequest(9, [START], SamplingParams(max_tokens=1), encoder_token_ids=[0] * ROWS)
        output = engine.scheduler().add(AddRequest(**{**_fields(request), "encoder_frames": frames}))
        assert output is not None and output.error is not None and "takes frames of a sound" in output.error


def _fields(request: AddRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in AddRequest.__struct_fields__}
