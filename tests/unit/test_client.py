"""Laws of the client: every stream ends, nothing is left behind, text and counts are exact."""

from __future__ import annotations

import asyncio
import gc
import itertools
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.base.errors import (
    Aborted,
    EngineDead,
    InvalidRequest,
    Overloaded,
    ServerError,
    ShuttingDown,
)
from octavo.base.params import GenerateRequest
from octavo.client.generation import GenerationDelta, fold
from octavo.client.observer import FinishedRequest, FinishedSample, NoObserver
from octavo.wire.messages import (
    Call,
    CallResult,
    EngineCoreOutput,
    EngineCoreOutputs,
    Heartbeat,
    Shutdown,
    StepSeconds,
)
from octavo.wire.transport import TransportError
from support.client_fakes import EOS, STATS, Engine, FakeProcess, logprob, out, request, run, settle


# ---------------------------------------------------------------- the stream
def test_a_stream_is_what_the_engine_sent() -> None:
    async def main() -> None:
        async with Engine() as engine:
            stream = engine.client.generate(request())
            await engine.step(out(1, "Hel", num_cached_tokens=2))
            first = await anext(stream)
            assert (first.outputs[0].text, first.outputs[0].token_ids) == ("Hel", list(b"Hel"))
            assert (first.num_prompt_tokens, first.num_cached_tokens, first.num_output_tokens) == (3, 2, 3)
            assert not first.finished
            await engine.step(out(1, "lo", "length"))
            last = await anext(stream)
            assert (last.outputs[0].text, last.outputs[0].finish_reason, last.finished) == ("lo", "length", True)
            assert last.num_output_tokens == 5
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            assert engine.connection.aborted == []

    run(main())


def test_s9_n_samples_are_n_requests_merged_into_one_stream() -> None:
    async def main() -> None:
        async with Engine() as engine:
            stream = engine.client.generate(request(n=3, temperature=1.0, stop=("#",)))
            added = engine.connection.added
            assert [(a.request_id, a.sample_index, a.params.n, a.params.stop) for a in added] == [
                (1, 0, 1, ()), (2, 1, 1, ()), (3, 2, 1, ()),
            ]  # fmt: skip
            await engine.step(out(2, "b", num_cached_tokens=3), out(1, "a", num_cached_tokens=0))
            delta = await anext(stream)
            assert {part.index: part.text for part in delta.outputs} == {0: "a", 1: "b"}
            assert (delta.num_cached_tokens, delta.num_output_tokens) == (0, 2)
            await engine.step(out(1, "A", "length"), out(3, "c#d"), out(2, [EOS], "stop"))
            final = await fold(stream)
            assert [(c.text, c.finish_reason, c.stop_reason) for c in final.outputs] == [
                ("A", "length", None), ("", "stop", None), ("c", "stop", "#"),
            ]  # fmt: skip
            assert final.num_output_tokens == 2 + 1 + 1 + 2  # "d" came after the stop string
            assert engine.connection.aborted == [3]

    run(main())


def test_the_fold_equals_the_stream() -> None:
    async def main() -> None:
        async with Engine() as engine:
            stream = engine.client.generate(request(logprobs=1))
            for char in "héllo wörld".encode():
                engine.connection.put(EngineCoreOutputs([out(1, [char], logprobs=[logprob(-1.0)])], STATS))
            engine.connection.put(EngineCoreOutputs([out(1, [EOS], "stop", logprobs=[logprob(-2.0)])], STATS))
            final = await fold(stream)
            (whole,) = final.outputs
            assert (whole.text, whole.finish_reason, whole.stop_reason) == ("héllo wörld", "stop", None)
            assert whole.token_ids == [*"héllo wörld".encode(), EOS]
            assert len(whole.logprobs or []) == len(whole.token_ids) == final.num_output_tokens

    run(main())


def test_s14_eos_is_text_only_when_asked_for() -> None:
    async def main() -> None:
        async with Engine() as engine:
            hidden = engine.client.generate(request(skip_special_tokens=False))
            shown = engine.client.generate(request(skip_special_tokens=False, include_stop_str_in_output=True))
            await engine.step(out(1, [*b"a", EOS], "stop"), out(2, [*b"a", EOS], "stop"))
            assert (await fold(hidden)).outputs[0].text == "a"
            assert (await fold(shown)).outputs[0].text == "a<eos>"

    run(main())


# ---------------------------------------------------------------- stop strings
async def _stopped(text: bytes, cuts: list[int], **params: Any) -> tuple[str, Any, int, list[int]]:
    """(text, stop reason, output tokens, aborted ids) when `text` comes in steps that end at `cuts`."""
    async with Engine(info={"max_model_len": 1000, "max_request_tokens": 1000}) as engine:
        stream = engine.client.generate(request(max_tokens=500, logprobs=0, **params))
        edges = [0, *sorted(set(cuts)), len(text)]
        for begin, end in itertools.pairwise(edges):
            reason = "length" if end == len(text) else None
            entries = [logprob(-1.0)] * (end - begin)
            await engine.step(out(1, list(text[begin:end]), reason, logprobs=entries))
        final = await fold(stream)
        (whole,) = final.outputs
        assert len(whole.token_ids) == len(whole.logprobs or []) == final.num_output_tokens
        return whole.text, whole.stop_reason, final.num_output_tokens, engine.connection.aborted


@given(cuts=st.lists(st.integers(1, 18), max_size=6))
def test_a_stop_string_is_found_however_the_text_is_cut(cuts: list[int]) -> None:
    text, reason, num_tokens, _ = run(_stopped(b"one <two> three <four>", cuts, stop=("<two>", "three")))
    assert (text, reason, num_tokens) == ("one ", "<two>", 9)


def test_a_stop_in_the_last_token_needs_no_abort() -> None:
    text, reason, num_tokens, aborted = run(_stopped(b"abc#", [2], stop=("#",)))
    assert (text, reason, num_tokens, aborted) == ("abc", "#", 4, [])


def test_a_stop_before_the_end_aborts_that_sample_once() -> None:
    *_, aborted = run(_stopped(b"ab#cdefgh", [3, 5, 7], stop=("#",)))
    assert aborted == [1]


def test_text_held_for_a_stop_string_comes_at_the_end() -> None:
    text, reason, num_tokens, _ = run(_stopped(b"almost <tw", [3, 9], stop=("<two>",)))
    assert (text, reason, num_tokens) == ("almost <tw", None, 10)


def test_s14_stop_strings_may_be_kept() -> None:
    text, *_ = run(_stopped(b"ab#cd", [1], stop=("#",), include_stop_str_in_output=True))
    assert text == "ab#"


@pytest.mark.parametrize(("min_tokens", "expected"), [(0, "a"), (1, "a"), (2, "a#b"), (3, "a#b"), (4, "a#b#c")])
def test_s17_stop_strings_wait_for_min_tokens(min_tokens: int, expected: str) -> None:
    text, *_ = run(_stopped(b"a#b#c", [1, 2, 3, 4], stop=("#",), min_tokens=min_tokens))
    assert text == expected


def test_a_stop_string_ends_the_request_though_nobody_reads() -> None:
    async def main() -> None:
        async with Engine() as engine:
            stream = engine.client.generate(request(stop=("#",)))
            [sequence] = engine.client.sequences()
            assert (sequence.number, sequence.num_tokens) == (1, 0)
            await engine.step(out(1, "a#"))
            assert engine.client.sequences() == []
            assert (engine.connection.aborted, engine.client.num_unfinished) == ([1], 0)
            assert (await anext(stream)).outputs[0].text == "a"

    run(main())


# ---------------------------------------------------------------- ends
@pytest.mark.parametrize("how", ["aclose", "twice", "cancel", "drop", "drop_in_cycle", "break"])
def test_a_stream_that_is_left_aborts_once_and_leaves_no_id(how: str) -> None:
    async def main() -> None:
        async with Engine() as engine:
            stream: Any = engine.client.generate(request(n=2, temperature=1.0))
            await engine.step(out(1, "a"))
            if how in ("aclose", "twice"):
                await stream.aclose()
                await stream.aclose()
            elif how == "cancel":
                await anext(stream)
                task = asyncio.create_task(anext(stream))
                await settle()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            elif how == "break":
                async for _ in stream:
                    break
            elif how == "drop_in_cycle":
                cycle: dict[str, Any] = {"stream": stream}
                cycle["self"] = cycle
                del cycle
            stream = None
            gc.collect()
            await settle()
            assert sorted(engine.connection.aborted) == [1, 2]
            assert engine.client.num_unfinished == 0
            await engine.step(out(1, "late"), out(2, "late", "abort"), out(77, "never known"))
            assert engine.client.is_healthy

    run(main())


def test_closing_a_finished_stream_aborts_nothing() -> None:
    async def main() -> None:
        async with Engine() as engine:
            stream = engine.client.generate(request())
            await engine.step(out(1, "a", "length"))
            await stream.aclose()
            assert engine.connection.aborted == []

    run(main())


def test_a_reader_that_waits_is_woken_by_a_close() -> None:
    async def main() -> None:
        async with Engine() as engine:
            stream = engine.client.generate(request())
            reader = asyncio.create_task(fold(stream))
            await settle()
            await stream.aclose()
            assert (await reader).outputs == []

    run(main())


def test_an_error_of_one_request_ends_that_request_alone() -> None:
    async def main() -> None:
        async with Engine() as engine:
            bad = engine.client.generate(request(n=2, temperature=1.0))
            good = engine.client.generate(request())
            await engine.step(out(1, "a"), out(2, [], "error", error="NaN in the logits."), out(3, "x", "length"))
            assert (await anext(bad)).outputs[0].text == "a"  # what came before the error
            with pytest.raises(ServerError, match="NaN in the logits"):
                await anext(bad)
            assert engine.connection.aborted == [1, 2]
            assert (await fold(good)).outputs[0].text == "x"

    run(main())


@pytest.mark.parametrize("stop", [(), ("#",)])
def test_a_failing_detokenizer_ends_that_request_alone(stop: tuple[str, ...], monkeypatch: Any) -> None:
    class Broken:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def push(self, ids: list[int]) -> str:
            raise ZeroDivisionError

        def finish(self) -> str:
            return ""

    async def main() -> None:
        async with Engine() as engine:
            bad = engine.client.generate(request(stop=stop))
            good = engine.client.generate(request(stop=stop))
            sample = engine.client._samples[1]
            sample.detokenizer = Broken(sample.detokenizer)
            await engine.step(out(1, "a"), out(2, "b", "length"))
            with pytest.raises((ZeroDivisionError, ServerError)):
                await anext(bad)
            assert engine.connection.aborted == [1]
            assert (await fold(good)).outputs[0].text == "b"
            assert (engine.client.num_unfinished, engine.client.is_healthy) == (0, True)

    run(main())


# ---------------------------------------------------------------- death
@pytest.mark.parametrize("end", ["eof", "broken", "nonsense"])
def test_when_the_engine_dies_every_stream_and_call_ends(end: str) -> None:
    reasons: list[str] = []

    async def main() -> None:
        async with Engine(process=process, on_dead=reasons.append) as engine:
            streams = [engine.client.generate(request()) for _ in range(3)]
            readers = [asyncio.create_task(fold(stream)) for stream in streams]
            call = asyncio.create_task(engine.client.call("ping"))
            await settle()
            process.ended = "it was killed by SIGKILL"
            engine.connection.put({"eof": None, "broken": TransportError("gone"), "nonsense": ValueError("?")}[end])
            for task in [*readers, call]:
                with pytest.raises(EngineDead, match="killed by SIGKILL"):
                    await task
            with pytest.raises(EngineDead):
                engine.client.generate(request())
            with pytest.raises(EngineDead):
                await engine.client.call("ping")
            assert not engine.client.is_healthy and "SIGKILL" in (engine.client.dead_reason or "")
            assert engine.client.num_unfinished == 0

    process = FakeProcess()
    run(main())
    assert len(reasons) == 1


def test_a_silent_engine_is_found_dead() -> None:
    async def main() -> None:
        from octavo.base.config import ParallelConfig

        died: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        parallel = ParallelConfig(engine_heartbeat_timeout=0.3)
        async with Engine(parallel=parallel, process=FakeProcess(), on_dead=died.set_result) as engine:
            stream = engine.client.generate(request())
            assert "no sign of life" in await died
            with pytest.raises(EngineDead, match="no sign of life"):
                await anext(stream)

    run(main())


def test_a_send_that_fails_is_a_dead_engine_and_leaves_no_id() -> None:
    async def main() -> None:
        async with Engine() as engine:
            engine.connection.is_broken = True
            with pytest.raises(EngineDead):
                engine.client.generate(request())
            assert engine.client.num_unfinished == 0

    run(main())


# ---------------------------------------------------------------- calls, close, observer
def test_a_request_that_cannot_be_encoded_leaves_no_id() -> None:
    async def main() -> None:
        async with Engine() as engine:
            real, calls = engine.connection.send, itertools.count()

            def send(message: Any) -> None:
                if next(calls) == 1:
                    raise OverflowError("planted")
                real(message)

            engine.connection.send = send  # type: ignore[method-assign]
            with pytest.raises(OverflowError):
                engine.client.generate(request(n=2, temperature=1.0))
            assert engine.client.num_unfinished == 0
            assert 1 in engine.connection.aborted  # the sample that was sent
            await asyncio.wait_for(engine.client.wait_idle(), 5)

    run(main())


def test_calls_get_their_own_results() -> None:
    async def main() -> None:
        async with Engine() as engine:
            calls = [asyncio.create_task(engine.client.call(name)) for name in ("one", "two")]
            await settle()
            first, second = engine.connection.sent
            engine.connection.put(CallResult(second.call_id, error="There is no method 'two'."))
            engine.connection.put(CallResult(first.call_id, 42))
            engine.connection.put(CallResult(999, 0))
            assert await calls[0] == 42
            with pytest.raises(ServerError, match="no method"):
                await calls[1]

    run(main())


def test_close_tells_the_engine_and_ends_the_streams() -> None:
    reasons: list[str] = []

    async def main() -> None:
        engine = Engine(on_dead=reasons.append)
        stream = engine.client.generate(request())
        closing = asyncio.create_task(engine.client.close())
        await settle()
        assert isinstance(engine.connection.sent[-1], Shutdown)
        engine.connection.put(None)
        await closing
        with pytest.raises(ShuttingDown):
            await anext(stream)

    run(main())
    assert reasons == []  # an end that was asked for is no death


def test_the_observer_sees_each_sample_end_once() -> None:
    class Seen(NoObserver):
        def __init__(self) -> None:
            self.events: list[Any] = []

        def on_request_arrival(self, request: GenerateRequest) -> None:
            self.events.append("arrival")

        def on_first_token(self, queue_seconds: float, first_token_seconds: float) -> None:
            self.events.append(("first", queue_seconds))

        def on_tokens(self, num_tokens: int, seconds: float) -> None:
            self.events.append(("tokens", num_tokens))

        def on_finish(self, sample: FinishedSample) -> None:
            self.events.append((sample.finish_reason, sample.num_output_tokens))

        def on_request_finish(self, finished: FinishedRequest) -> None:
            self.events.append(("request", finished.finish_reasons, finished.num_output_tokens))
            assert finished.times.arrival == 1.0 and finished.times.finish > 1.0

    seen = Seen()

    async def main() -> None:
        async with Engine(observer=seen) as engine:
            engine.client.generate(request())  # dropped
            await settle()
            stream = engine.client.generate(request())
            failed = engine.client.generate(request())
            await engine.step(out(2, "ab", scheduled_time=4.0), EngineCoreOutput(3, [], "error", error="x"))
            await engine.step(out(2, "c", "length"))
            await stream.aclose()
            await failed.aclose()

    run(main())
    assert seen.events == [
        "arrival", ("abort", 0), ("request", ("abort",), (0,)), "arrival", "arrival", ("first", 3.0), ("error", 0),
        ("request", ("error",), (0,)), ("tokens", 1), ("length", 3), ("request", ("length",), (3,)),
    ]  # fmt: skip


def test_the_last_delta_has_the_times_of_all_samples_and_the_request_ends_once() -> None:
    class Seen(NoObserver):
        def __init__(self) -> None:
            self.ended: list[FinishedRequest] = []

        def on_request_finish(self, finished: FinishedRequest) -> None:
            self.ended.append(finished)

    seen = Seen()

    async def main() -> list[GenerationDelta]:
        async with Engine(observer=seen) as engine:
            stream = engine.client.generate(request(n=2, temperature=1.0))
            deltas = []
            spent = StepSeconds(0.5, 1.0, 2.0)
            await engine.step(out(1, "ab", scheduled_time=4.0), out(2, "a", scheduled_time=3.0, step_seconds=spent))
            deltas.append(await anext(stream))
            await engine.step(out(1, "c", "length"))
            await engine.step(out(2, "", "stop", step_seconds=spent.plus(spent)))
            deltas += [delta async for delta in stream]
            return deltas

    deltas = run(main())
    assert [delta.times is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    [finished] = seen.ended
    assert finished.times == deltas[-1].times
    assert (finished.times.arrival, finished.times.scheduled) == (1.0, 3.0)
    assert finished.times.queue_seconds == 2.0
    assert finished.times.first_token <= finished.times.last_token <= finished.times.finish
    assert finished.num_output_tokens == (3, 1) and finished.finish_reasons == ("length", "stop")
    assert finished.step_seconds == StepSeconds(1.0, 2.0, 4.0)


def test_a_refusal_is_told_with_the_limit_that_was_full() -> None:
    class Seen(NoObserver):
        reasons: ClassVar[list[str]] = []

        def on_refusal(self, error: Overloaded) -> None:
            self.reasons.append(error.reason)

    async def main() -> None:
        async with Engine(observer=Seen(), max_num_queued_reqs=1, max_num_queued_tokens=4) as engine:
            streams = [engine.client.generate(request())]
            with pytest.raises(Overloaded):
                engine.client.generate(request())
            await engine.step(*(out(i, "a", scheduled_time=4.0) for i in range(1, 6)))
            while len(streams) < 5:
                streams.append(engine.client.generate(request(prompt=1)))
                await engine.step(out(len(streams), "a", scheduled_time=4.0))
            with pytest.raises(Overloaded):
                engine.client.generate(request(prompt=1))
            for stream in streams:
                await stream.aclose()

    run(main())
    assert Seen.reasons == ["max_num_queued_tokens", "max_num_queued_reqs"]


def test_heartbeats_keep_a_quiet_engine_alive() -> None:
    async def main() -> None:
        from octavo.base.config import ParallelConfig

        async with Engine(parallel=ParallelConfig(engine_heartbeat_timeout=0.3)) as engine:
            for _ in range(10):
                await asyncio.sleep(0.1)
                engine.connection.put(Heartbeat(0, 0.0, False))
            assert engine.client.is_healthy

    run(main())


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"allowed_token_ids": (5, 6), "bad_word_token_ids": ((5,), (9, 6))}, "allowed_token_ids"),
        ({"allowed_token_ids": (EOS,), "min_tokens": 1}, "allowed_token_ids"),
        ({"allowed_token_ids": (7, EOS), "stop_token_ids": (7,), "min_tokens": 1}, "allowed_token_ids"),
        ({"stop_token_ids": tuple(range(260)), "min_tokens": 1}, "bad_words"),
    ],
)
def test_masks_that_leave_no_token_are_refused(params: dict[str, Any], param: str) -> None:
    async def main() -> None:
        async with Engine() as engine:
            with pytest.raises(InvalidRequest) as caught:
                engine.client.generate(request(**params))
            assert caught.value.param == param
            assert engine.connection.sent == []
            engine.client.generate(request(allowed_token_ids=(7, EOS), min_tokens=1))

    run(main())


def test_s19_the_first_delta_holds_the_scores_of_the_whole_prompt() -> None:
    async def main() -> None:
        async with Engine() as engine:
            stream = engine.client.generate(request(4, n=2, prompt_logprobs=1))
            assert [message.params.prompt_logprobs for message in engine.connection.added] == [1, None]
            reading = asyncio.create_task(anext(stream))
            await engine.step(out(1, "", prompt_logprobs=[logprob(-1.0), logprob(-2.0)]), out(2, "b"))
            assert not reading.done()
            await engine.step(out(1, "a", "length", prompt_logprobs=[logprob(-3.0)]))
            first = await reading
            assert [entry.logprob for entry in first.prompt_logprobs or []] == [-1.0, -2.0, -3.0]
            assert sorted(part.text for part in first.outputs) == ["a", "b"]
            await engine.step(out(2, "c", "length"))
            assert (await anext(stream)).prompt_logprobs is None

    run(main())


def test_a_stream_that_waits_for_scores_still_ends_in_its_error() -> None:
    async def main() -> None:
        async with Engine() as engine:
            stream = engine.client.generate(request(4, n=2, prompt_logprobs=1))
            await engine.step(out(2, "b"), out(1, "", "error", error="broken"))
            with pytest.raises(ServerError, match="broken"):
                await anext(stream)

    run(main())


def test_the_progress_of_a_prompt_is_a_delta_without_tokens_until_there_are_some() -> None:
    async def main() -> None:
        async with Engine() as engine:
            stream = engine.client.generate(request(4, n=2, return_progress=True))
            await engine.step(out(1, "", num_computed_tokens=2, num_cached_tokens=1), out(2, "", num_computed_tokens=9))
            delta = await anext(stream)
            assert delta.outputs == [] and delta.progress is not None and not delta.finished
            assert (delta.progress.num_tokens, delta.progress.num_cached) == (2, 1)
            await engine.step(out(1, "", num_computed_tokens=3))
            await engine.step(out(1, "a"))
            delta = await anext(stream)
            assert [part.text for part in delta.outputs] == ["a"] and delta.progress is not None
            assert delta.progress.num_tokens == delta.num_prompt_tokens, "news that were overtaken are left out"
            await engine.step(out(1, "b", "length"), out(2, "c", "length"))
            assert (await anext(stream)).progress is None

    run(main())


# ---------------------------------------------------------------- administrators
def test_requests_are_ended_by_their_public_ids() -> None:
    async def main() -> None:
        async with Engine() as engine:
            streams = [engine.client.generate(request(external_id=name)) for name in ("a", "b", "a")]
            await engine.step(out(1, "x"), out(2, "y"))
            assert engine.client.abort(lambda external_id: external_id == "a") == 2
            assert engine.connection.aborted == [1, 3]
            for index in (0, 2):
                with pytest.raises(Aborted):
                    await fold(streams[index])
            await engine.step(out(2, "z", "length"))
            assert (await fold(streams[1])).outputs[0].text == "yz"
            assert engine.client.abort(lambda external_id: True) == 0

    run(main())


def test_a_reset_of_the_prefix_cache_waits_for_the_engine() -> None:
    async def main() -> None:
        async with Engine() as engine:
            reset = asyncio.create_task(engine.client.reset_prefix_cache())
            await settle()
            (call,) = [message for message in engine.connection.sent if isinstance(message, Call)]
            assert (call.method, reset.done()) == ("reset_prefix_cache", False)
            engine.connection.put(CallResult(call.call_id, True))
            await reset

    run(main())
