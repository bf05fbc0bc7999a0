"""When readers of the client's streams are woken, and how much they then find."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from octavo.base.errors import ServerError
from octavo.client import rounds
from support.client_fakes import Engine, logprob, out, request, run, settle


def test_a_reader_of_the_whole_gets_one_delta_at_the_end() -> None:
    async def main() -> None:
        async with Engine() as engine:
            whole = msgspec.structs.replace(request(n=2), is_whole=True)
            reader = asyncio.ensure_future(anext(engine.client.generate(whole)))
            await engine.step(out(1, "a"), out(2, "x"))
            await engine.step(out(1, "b", "length"), out(2, "y"))
            await settle()
            assert not reader.done()
            await engine.step(out(2, "z", "stop"))
            delta = await reader
            assert delta.finished and delta.num_output_tokens == 5
            assert {output.index: output.text for output in delta.outputs} == {0: "ab", 1: "xy"}

    run(main())


def test_a_reader_of_the_whole_gets_what_there_was_before_an_error() -> None:
    async def main() -> None:
        async with Engine() as engine:
            stream = engine.client.generate(msgspec.structs.replace(request(), is_whole=True))
            await engine.step(out(1, "ab"))
            await engine.step(out(1, "", "error", error="broken"))
            assert (await anext(stream)).outputs[0].text == "ab"
            with pytest.raises(ServerError, match="broken"):
                await anext(stream)

    run(main())


def test_where_events_take_long_they_come_in_rounds() -> None:
    """A stream's first tokens and its end do not wait for one."""

    async def main() -> None:
        async with Engine() as engine:
            streams = [engine.client.generate(request()) for _ in range(2)]
            await engine.step(out(1, "a"))
            await engine.step(out(2, "x"))
            assert [(await anext(stream)).outputs[0].text for stream in streams] == ["a", "x"]
            engine.client._rounds.earliest = time.monotonic() + 1000
            readers = [asyncio.ensure_future(anext(stream)) for stream in streams]
            await engine.step(out(1, "b"), out(2, "y"))
            await engine.step(out(1, "c"), out(2, "z"))
            assert not any(reader.done() for reader in readers)
            await engine.step(out(1, "d", "length"))
            assert readers[0].done() and not readers[1].done()
            assert (await readers[0]).outputs[0].text == "bcd"
            engine.client._rounds.wake()
            assert (await readers[1]).outputs[0].text == "yz"
            await settle()
            assert engine.client._rounds.earliest < time.monotonic() + rounds.MOST_WAIT

    run(main())


def test_a_slow_reader_gets_one_merged_delta() -> None:
    async def main() -> None:
        async with Engine() as engine:
            stream = engine.client.generate(request(logprobs=0))
            for i, char in enumerate("abcdef"):
                await engine.step(out(1, char, logprobs=[logprob(-float(i))]))
            delta = await anext(stream)
            assert [part.text for part in delta.outputs] == ["abcdef"]
            assert [entry.logprob for entry in delta.outputs[0].logprobs or []] == [0, -1, -2, -3, -4, -5]
            await engine.step(out(1, "g", "stop", stop_reason=103, logprobs=[logprob(-9.0)]))
            # The token that stopped the request counts and has its log probability, but is no text.
            last = (await anext(stream)).outputs[0]
            assert (last.text, last.token_ids, last.stop_reason) == ("", [103], 103)
            assert len(last.logprobs or []) == 1

    run(main())
