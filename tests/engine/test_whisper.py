"""Whisper through scheduler and worker, against transformers in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.harness import Engine, Reply
from octavo.base.media import MediaTensor
from octavo.base.params import SamplingParams
from octavo.wire.messages import AddRequest
from support.tiny_whisper import CHANNELS, ROWS, START, logits_of, make_whisper, random_frames, tensor_of

NUM_TOKENS = 8


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


def run(engine: Engine, asked: list[AddRequest], per_step: int = 0, **limits: int) -> dict[int, Reply]:
    replies: dict[int, Reply] = engine.run(asked, scheduler=engine.scheduler(**limits), per_step=per_step).replies
    return replies


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


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "sampled"])
def test_the_same_text_in_any_company(both: tuple[Any, Engine], params: dict[str, Any]) -> None:
    _, engine = both
    asked = requests(**params)
    replies = run(engine, asked)
    for request in asked:
        assert run(engine, [request]) == {request.request_id: replies[request.request_id]}
    assert run(engine, asked, per_step=1) == replies
    assert run(engine, asked, max_num_batched_tokens=8, max_num_prefill_tokens=5) == replies


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
