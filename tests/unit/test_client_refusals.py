"""What the client refuses before anything is sent, and how much it lets wait."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from octavo.base.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    Overloaded,
    ShuttingDown,
)
from octavo.base.media import MediaItem
from octavo.base.params import GenerateRequest
from octavo.client.generation import fold
from support.client_fakes import Engine, out, request, run


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "is_taken"),
    [
        (60, 39, True),
        (60, 40, True),
        (60, 41, False),
        (99, 1, True),
        (99, None, True),
        (100, None, False),
        (100, 1, False),
    ],
)
def test_e8_w29_the_context_is_filled_to_the_last_token(prompt: int, max_tokens: int | None, is_taken: bool) -> None:
    async def main() -> None:
        async with Engine() as engine:
            if is_taken:
                stream = engine.client.generate(request(prompt, max_tokens=max_tokens))
                assert engine.connection.added[0].params.max_tokens == (max_tokens or 100 - prompt)
                await stream.aclose()
                return
            with pytest.raises(ContextLengthExceeded, match=rf"100 .* prompt has {prompt}"):
                engine.client.generate(request(prompt, max_tokens=max_tokens))
            assert engine.connection.sent == []

    run(main())


def test_a_request_larger_than_the_cache_is_refused_with_both_numbers() -> None:
    async def main() -> None:
        async with Engine(info={"max_request_tokens": 32}) as engine:
            with pytest.raises(
                ContextLengthExceeded, match=r"At most 32 .* KV cache.* prompt has 30, which leaves 2, .* is 3"
            ):
                engine.client.generate(request(30, max_tokens=3))
            engine.client.generate(request(30, max_tokens=2))
            assert len(engine.connection.added) == 1

    run(main())


@pytest.mark.parametrize("ids", [[], [260], [-1], [1, 2, 2**40]])
def test_a_prompt_that_the_model_does_not_know_is_refused(ids: list[int]) -> None:
    async def main() -> None:
        async with Engine() as engine:
            bad = GenerateRequest(external_id="x", prompt_token_ids=ids, params=request().params)
            with pytest.raises(InvalidRequest):
                engine.client.generate(bad)
            assert engine.connection.sent == []

    run(main())


def test_one_request_too_many_is_refused_and_samples_count() -> None:
    async def main() -> None:
        async with Engine(max_num_queued_reqs=2) as engine:  # and 4 running
            streams = [engine.client.generate(request(n=2, temperature=1.0)) for _ in range(2)]
            streams.append(engine.client.generate(request()))
            with pytest.raises(Overloaded) as caught:
                engine.client.generate(request(n=2, temperature=1.0))
            assert 1 <= caught.value.retry_after <= 60
            streams.append(engine.client.generate(request()))
            with pytest.raises(Overloaded):
                engine.client.generate(request())
            await streams[0].aclose()
            engine.client.generate(request(n=2, temperature=1.0))
            with pytest.raises(InvalidRequest, match="`n` must be at most 6"):
                engine.client.generate(request(n=7, temperature=1.0))

    run(main())


def test_prompt_tokens_that_wait_are_bounded() -> None:
    async def main() -> None:
        async with Engine(max_num_queued_tokens=10) as engine:
            long = engine.client.generate(request(30))  # alone in the queue
            with pytest.raises(Overloaded, match="30 tokens"):
                engine.client.generate(request(1))
            await engine.step(out(1, "a"))  # it waits no longer
            streams = [engine.client.generate(request(2, n=2, temperature=1.0)), engine.client.generate(request(6))]
            with pytest.raises(Overloaded):
                engine.client.generate(request(1))
            await streams[0].aclose()
            streams.append(engine.client.generate(request(4)))
            with pytest.raises(Overloaded):
                engine.client.generate(request(1))
            await engine.step(out(4, "a", "stop"), out(5, "a", "stop"))
            await long.aclose()
            assert engine.client._num_queued_tokens == 0

    run(main())


def test_draining_refuses_the_new_and_finishes_the_old() -> None:
    async def main() -> None:
        async with Engine() as engine:
            stream = engine.client.generate(request())
            engine.client.start_draining()
            assert (engine.client.is_healthy, engine.client.is_ready) == (True, False)
            with pytest.raises(ShuttingDown):
                engine.client.generate(request())
            idle = asyncio.create_task(engine.client.wait_idle())
            await engine.step(out(1, "a"))
            assert not idle.done()
            await engine.step(out(1, "b", "length"))
            await idle
            assert (await fold(stream)).outputs[0].text == "ab"

    run(main())


def test_what_is_left_after_the_drain_ends_with_an_error() -> None:
    async def main() -> None:
        async with Engine() as engine:
            streams = [engine.client.generate(request()) for _ in range(2)]
            await engine.step(out(1, "a"))
            engine.client.abort_all(ShuttingDown("too late"))
            assert (await anext(streams[0])).outputs[0].text == "a"
            for stream in streams:
                with pytest.raises(ShuttingDown, match="too late"):
                    await anext(stream)
                with pytest.raises(StopAsyncIteration):
                    await anext(stream)
            assert sorted(engine.connection.aborted) == [1, 2]
            await engine.client.wait_idle()

    run(main())


def test_a_video_that_says_it_is_longer_than_the_context_is_refused() -> None:
    """Positions in time follow seconds, which follow what its file says."""

    async def main() -> None:
        async with Engine() as engine:
            for step, is_taken in ((30.0, True), (32.0, False), (float("nan"), False)):
                video = MediaItem("video", b"a", {}, ((6, 16),), (4, 2, 2), step)
                asked = msgspec.structs.replace(request(40, max_tokens=1), media=(video,))
                if is_taken:
                    await engine.client.generate(asked).aclose()
                    continue
                with pytest.raises(InvalidRequest, match="the context has 100"):
                    engine.client.generate(asked)

    run(main())
