"""Beam search on a model that is a table: against trying every sequence, and its rules one by one."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

from octavo.base.errors import Aborted, EngineDead, InvalidRequest, Overloaded, ServerError
from octavo.base.params import BeamParams, GenerateRequest, SamplingParams
from octavo.client.beam_search import Held, beam_search
from octavo.client.generation import CompletionDelta, GenerationDelta
from octavo.client.observer import FinishedRequest, FinishedSample, NoObserver
from octavo.text.tokenizers.detokenizer import IncrementalDetokenizer
from octavo.wire.messages import EngineCoreOutputs, TokenLogprobs
from support.client_fakes import INFO, STATS, TOKENIZER, Engine, out, settle
from support.client_fakes import request as plain_request

PROMPT = [1, 2, 3]
VOCAB, EOS = 5, 4


def logprobs_after(ids: list[int], seed: int = 0) -> list[float]:
    generator = random.Random(f"{seed} {ids}")
    weights = [math.exp(generator.uniform(0, 4)) for _ in range(VOCAB)]
    return [math.log(weight / sum(weights)) for weight in weights]


class TableClient:
    """`beam_search.BeamClient` on `logprobs_after`."""

    info = msgspec.structs.replace(INFO, vocab_size=VOCAB)
    eos_token_ids = (EOS,)

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.prompts: list[list[int]] = []
        self.num_counted = 0
        self.is_in_flight = False

    def submit(self, request: GenerateRequest, params: SamplingParams) -> Any:
        assert self.is_in_flight and params.max_tokens == 1 and params.n == 1
        self.prompts.append(request.prompt_token_ids)
        self.num_counted += request.is_counted
        return self._stream(request.prompt_token_ids, params)

    async def _stream(self, ids: list[int], params: SamplingParams) -> AsyncGenerator[GenerationDelta, None]:
        values = logprobs_after(ids, self.seed)
        order = sorted(range(VOCAB), key=lambda i: -values[i])[: params.logprobs]
        entry = TokenLogprobs(values[order[0]], 1, order, [values[i] for i in order])
        yield GenerationDelta([CompletionDelta(0, "", order[:1], [entry], "length")], len(ids), 2, 1, True)

    @contextmanager
    def in_flight(self, request: GenerateRequest) -> Iterator[Held]:
        assert request.num_sequences > 1
        self.is_in_flight = True
        yield Held(request)
        self.is_in_flight = False

    def detokenizer(self, params: SamplingParams, shown: Any = (), tokenizer: Any = None) -> IncrementalDetokenizer:
        return IncrementalDetokenizer(TOKENIZER, params.skip_special_tokens)


class Seen(NoObserver):
    def __init__(self) -> None:
        self.samples: list[FinishedSample] = []
        self.requests: list[FinishedRequest] = []

    def on_finish(self, sample: FinishedSample) -> None:
        self.samples.append(sample)

    def on_request_finish(self, finished: FinishedRequest) -> None:
        self.requests.append(finished)


def search(
    client: TableClient, *, width: int, penalty: float = 1.0, early: Any = False, **fields: Any
) -> tuple[GenerationDelta, list[FinishedSample]]:
    params = SamplingParams(temperature=0.0, **fields)
    beams = BeamParams(width=width, length_penalty=penalty, early_stopping=early)
    request = GenerateRequest(external_id="r", prompt_token_ids=PROMPT, params=params, beams=beams)
    seen = Seen()

    async def main() -> GenerationDelta:
        deltas = [delta async for delta in beam_search(client, request, params, seen)]
        assert len(deltas) == 1 and deltas[0].finished and not client.is_in_flight
        return deltas[0]

    delta = asyncio.run(main())
    assert seen.requests[0].times == delta.times and len(seen.requests) == 1
    assert seen.requests[0].num_output_tokens == tuple(sample.num_output_tokens for sample in seen.samples)
    return delta, seen.samples


def score(ids: tuple[int, ...], seed: int, penalty: float) -> float:
    total = sum(logprobs_after([*PROMPT, *ids[:i]], seed)[token] for i, token in enumerate(ids))
    return total / (len(PROMPT) + len(ids) - (ids[-1] == EOS)) ** penalty


def all_sequences(length: int) -> Iterator[tuple[int, ...]]:
    """Those that end in the EOS, and those that are cut at `length`."""
    for size in range(length):
        for start in itertools.product(range(EOS), repeat=size):
            yield (*start, EOS)
    yield from itertools.product(range(EOS), repeat=length)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5, -1.0])
@pytest.mark.parametrize("seed", range(6))
def test_s21_beams_that_are_wide_enough_find_the_best_of_all(seed: int, penalty: float) -> None:
    ranked = sorted(all_sequences(4), key=lambda ids: -score(ids, seed, penalty))
    delta, _ = search(TableClient(seed), width=400, penalty=penalty, early="never", n=5, max_tokens=4)
    assert [tuple(output.token_ids) for output in delta.outputs] == ranked[:5]
    assert [output.index for output in delta.outputs] == [0, 1, 2, 3, 4]
    assert [output.finish_reason for output in delta.outputs] == [
        "stop" if ids[-1] == EOS else "length" for ids in ranked[:5]
    ]


@pytest.mark.parametrize("seed", range(20))
def test_s21_the_best_come_first_and_two_beams_beat_none(seed: int) -> None:
    delta, finished = search(TableClient(seed), width=3, n=3, max_tokens=6)
    scores = [score(tuple(output.token_ids), seed, 1.0) for output in delta.outputs]
    assert scores == sorted(scores, reverse=True)
    assert len(set(map(tuple, (output.token_ids for output in delta.outputs)))) == 3
    assert delta.num_output_tokens == sum(len(output.token_ids) for output in delta.outputs)
    assert (delta.num_prompt_tokens, delta.num_cached_tokens) == (3, 2)
    assert [sample.num_output_tokens for sample in finished] == [len(output.token_ids) for output in delta.outputs]


def test_e96_the_prompt_counts_once_however_many_beams_and_steps_there_are() -> None:
    client = TableClient()
    search(client, width=3, n=3, max_tokens=6)
    assert client.num_counted == 1 and len(client.prompts) > 6


def test_s23_early_stopping_waits_for_no_more_than_the_width() -> None:
    for seed in range(20):
        calls = []
        for early in (True, False, "never"):
            client = TableClient(seed)
            search(client, width=2, early=early, n=1, max_tokens=12)
            calls.append(len(client.prompts))
        assert calls[0] <= calls[1] <= calls[2]


def test_ignore_eos_min_tokens_and_stop_token_ids() -> None:
    for seed in range(10):
        delta, _ = search(TableClient(seed), width=3, n=3, max_tokens=4, ignore_eos=True)
        assert all(len(o.token_ids) == 4 and o.finish_reason == "length" for o in delta.outputs)
        delta, _ = search(TableClient(seed), width=3, n=3, max_tokens=5, min_tokens=3)
        assert all(len(o.token_ids) > 3 or o.finish_reason == "length" for o in delta.outputs)
        delta, _ = search(TableClient(seed), width=4, n=4, max_tokens=5, stop_token_ids=(0,))
        for output in delta.outputs:
            assert 0 not in output.token_ids[:-1]
            assert (output.stop_reason == 0) == (output.token_ids[-1] == 0)


def test_log_probabilities_are_those_of_the_beam() -> None:
    delta, _ = search(TableClient(3), width=3, n=2, max_tokens=4, logprobs=2)
    for output in delta.outputs:
        assert output.logprobs is not None and len(output.logprobs) == len(output.token_ids)
        for i, (token, entry) in enumerate(zip(output.token_ids, output.logprobs, strict=True)):
            values = logprobs_after([*PROMPT, *output.token_ids[:i]], 3)
            assert entry.logprob == values[token]
            assert entry.rank == 1 + sum(value > values[token] for value in values)
            assert len(entry.top_ids) == 2
    assert search(TableClient(3), width=3, n=1, max_tokens=4)[0].outputs[0].logprobs is None


WRONG: list[tuple[BeamParams, dict[str, Any], str]] = [
    (BeamParams(width=1), {}, "best_of"),
    (BeamParams(width=129), {}, "best_of"),
    (BeamParams(width=2), {"n": 3}, "best_of"),
    (BeamParams(width=2, length_penalty=math.nan), {}, "length_penalty"),
    (BeamParams(width=2, length_penalty=17.0), {}, "length_penalty"),
    (BeamParams(width=2), {"temperature": 0.5}, "temperature"),
    (BeamParams(width=2), {"stop": ("a",)}, "stop"),
    (BeamParams(width=2), {"logit_bias": {1: 1.0}}, "logit_bias"),
    (BeamParams(width=2), {"presence_penalty": 1.0}, "presence_penalty"),
    (BeamParams(width=2), {"repetition_penalty": 1.1}, "repetition_penalty"),
]


@pytest.mark.parametrize("row", WRONG, ids=str)
def test_what_does_not_go_with_beams_is_named(row: Any) -> None:
    beams, fields, param = row
    with pytest.raises(InvalidRequest) as caught:
        beams.check(SamplingParams(**{"temperature": 0.0, **fields}))
    assert caught.value.param == param


# ---------------------------------------------------------------- in the client
def beam_request(width: int = 2, **fields: Any) -> GenerateRequest:
    params = SamplingParams(temperature=0.0, max_tokens=3, **fields)
    return GenerateRequest(external_id="r", prompt_token_ids=PROMPT, params=params, beams=BeamParams(width=width))


async def first(stream: Any) -> GenerationDelta:
    delta: GenerationDelta = await anext(stream)
    return delta


def candidates(*ids: int) -> Any:
    return [TokenLogprobs(-1.0, 1, list(ids), [-float(i + 1) for i in range(len(ids))])]


def test_each_step_is_a_request_a_beam_and_the_client_is_busy_in_between() -> None:
    async def main() -> None:
        async with Engine() as engine:
            stream = engine.client.generate(beam_request())
            reading = asyncio.create_task(first(stream))
            await settle()
            assert [m.prompt_token_ids for m in engine.connection.added] == [PROMPT]
            assert engine.connection.added[0].params.logprobs == 4
            engine.client.start_draining()  # a search that began goes on
            idle = asyncio.create_task(engine.client.wait_idle())
            await engine.step(out(1, [10], "length", logprobs=candidates(10, 11, 256)))
            await settle()
            assert not idle.done()
            assert [m.prompt_token_ids for m in engine.connection.added[1:]] == [[*PROMPT, 10], [*PROMPT, 11]]
            await engine.step(
                out(2, [256], "length", logprobs=candidates(256)), out(3, [256], "length", logprobs=candidates(256))
            )
            await settle()
            delta = await reading
            assert [output.token_ids for output in delta.outputs] == [[10, 256]]
            assert delta.outputs[0].text == "\n"  # without the EOS
            with pytest.raises(StopAsyncIteration):
                await first(stream)
            await asyncio.wait_for(idle, 5)
            assert engine.connection.aborted == []

    asyncio.run(main())


@pytest.mark.parametrize("is_last", [False, True])
def test_n20_a_search_is_ended_between_two_steps_too(is_last: bool) -> None:
    """All samples of a step have come, and the search has not been told yet: nothing of it is in the engine."""

    async def main() -> None:
        async with Engine() as engine:
            reading = asyncio.create_task(first(engine.client.generate(beam_request())))
            await settle()
            token = 256 if is_last else 10
            engine.client._on_outputs(EngineCoreOutputs([out(1, [token], "length", logprobs=candidates(token))], STATS))
            assert engine.client.num_unfinished == 0 and not reading.done()
            assert engine.client.abort(lambda external_id: external_id == "other") == 0
            assert engine.client.abort(lambda external_id: external_id == "r") == 1
            assert engine.client.abort(lambda external_id: external_id == "r") == 0, "it was told before"
            with pytest.raises(Aborted, match="administrator"):
                await reading
            assert len(engine.connection.added) == 1, "no further step"
            await asyncio.wait_for(engine.client.wait_idle(), 5)

    asyncio.run(main())


def test_n20_a_search_in_the_middle_of_a_step_is_one_request_to_who_ends_it() -> None:
    async def main() -> None:
        async with Engine() as engine:
            reading = asyncio.create_task(first(engine.client.generate(beam_request())))
            await settle()
            await engine.step(out(1, [10], "length", logprobs=candidates(10, 11)))
            assert engine.client.num_unfinished == 2
            assert engine.client.abort(lambda external_id: True) == 1
            assert sorted(engine.connection.aborted) == [2, 3]
            with pytest.raises(Aborted):
                await reading

    asyncio.run(main())


@pytest.mark.parametrize("when", ["closed", "dead", "failed"])
def test_a_search_that_ends_early_leaves_nothing_running(when: str) -> None:
    async def main() -> None:
        async with Engine() as engine:
            stream: Any = engine.client.generate(beam_request())
            reading = asyncio.create_task(first(stream))
            await settle()
            await engine.step(out(1, [10], "length", logprobs=candidates(10, 11)))
            await settle()
            if when == "closed":
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                await stream.aclose()
                assert sorted(engine.connection.aborted) == [2, 3]
            elif when == "failed":
                await engine.step(out(2, [], "error", error="broken"))
                with pytest.raises(ServerError, match="broken"):
                    await reading
                assert 3 in engine.connection.aborted
            else:
                engine.connection.put(None)
                with pytest.raises(EngineDead):
                    await reading
            assert engine.client.num_unfinished == 0
            await asyncio.wait_for(engine.client.wait_idle(), 5)

    asyncio.run(main())


def test_admission_counts_the_beams_of_a_search_also_between_its_steps() -> None:
    async def main() -> None:
        async with Engine(max_num_queued_reqs=2) as engine:  # and 4 running
            with pytest.raises(InvalidRequest, match="`best_of` must be at most 6"):
                engine.client.generate(beam_request(7))
            stream = engine.client.generate(beam_request(5))
            reading = asyncio.create_task(first(stream))
            await settle()
            assert engine.client.num_unfinished == 1  # the first step has one beam
            await engine.client.generate(plain_request(1)).aclose()
            with pytest.raises(Overloaded):
                engine.client.generate(beam_request(2))
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await stream.aclose()
            engine.client.generate(beam_request(6))

    asyncio.run(main())
