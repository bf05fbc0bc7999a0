"""Grammars are proven in a helper process: what crashes or hangs it is one request's error and nobody else's."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import psutil
import pytest

from octavo.base.errors import InvalidRequest, Overloaded, ServerError
from octavo.base.params import GrammarSpec
from octavo.text.grammars.checker import GrammarChecker

FINE = GrammarSpec(kind="regex", source="a+", param="guided_regex")

#: A helper of a test: it answers, or does what the kind says.
HELPER = """
import json, os, struct, sys, time
def send(value):
    data = json.dumps(value).encode()
    sys.stdout.buffer.write(struct.pack("<I", len(data)) + data)
    sys.stdout.buffer.flush()
send({"ready": True})
while head := sys.stdin.buffer.read(4):
    request = json.loads(sys.stdin.buffer.read(struct.unpack("<I", head)[0]))
    if request["kind"] == "crash":
        os.abort()
    if request["kind"] == "hang":
        time.sleep(3600)
    send({"grammar": f"{request['source']} {os.getpid()}"})
"""
FAKE = (sys.executable, "-c", HELPER)


def spec(kind: str, source: Any, **options: Any) -> GrammarSpec:
    return GrammarSpec(kind=kind, source=source, param="p", options=options)


def run(scenario: Any) -> None:
    asyncio.run(scenario)


# What crashed or hung grammar engines elsewhere (W10).
def _chain(count: int) -> dict[str, Any]:
    refs: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(count)}
    return {"$defs": {**refs, f"d{count}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


HOSTILE = [
    spec("json", _chain(1000)),
    spec("json", _chain(5000)),
    spec("json", _chain(20_000)),
    spec("json", {"$ref": "#"}),
    spec("grammar", "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(60_000)) + 'r60000: "a"\n'),
    spec("grammar", "start: " + "(" * 60_000 + '"a"' + ")" * 60_000),
    spec("grammar", "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000),
    spec("grammar", 'start: start "a"'),
    spec("regex", "(a+)+b"),
    spec("regex", "(.*a){30}.{30}"),
    spec("regex", "((a{1,1000}){1,1000}){1,1000}"),
    spec("regex", "(?:x?y?z?w?){1000}[ab]{1,5000}"),
    spec("regex", "(" * 20_000 + "a" + ")" * 20_000),
    spec("choice", [f"choice {i}" for i in range(10_000)]),
]


def test_w10_hostile_grammars_are_decided_in_time_and_the_next_is_served() -> None:
    async def scenario() -> None:
        checker = GrammarChecker()
        for hostile in HOSTILE:
            started = time.monotonic()
            try:
                assert await checker.check(hostile)
            except InvalidRequest as exc:
                assert exc.param == "p" and len(exc.message) < 600
            assert time.monotonic() - started < 30
            assert "a+" in await checker.check(FINE)
        await checker.close()

    run(scenario())


def test_a_crash_and_a_hang_are_that_requests_error() -> None:
    async def scenario() -> None:
        checker = GrammarChecker(seconds=0.5, command=FAKE)
        first = await checker.check(spec("regex", "one"))
        with pytest.raises(InvalidRequest, match="failed"):
            await checker.check(spec("crash", ""))
        second = await checker.check(spec("regex", "two"))
        with pytest.raises(InvalidRequest, match="longer than"):
            await checker.check(spec("hang", ""))
        third = await checker.check(spec("regex", "three"))
        pids = [int(grammar.split()[1]) for grammar in (first, second, third)]
        assert len(set(pids)) == 3
        await checker.close()
        assert not any(psutil.pid_exists(pid) for pid in pids)

    run(scenario())


def test_a_cancelled_check_leaves_no_answer_behind() -> None:
    async def scenario() -> None:
        checker = GrammarChecker(seconds=30, command=FAKE)
        await checker.check(spec("regex", "zero"))
        task = asyncio.create_task(checker.check(spec("hang", "")))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await checker.check(spec("regex", "one"))).startswith("one ")
        await checker.close()

    run(scenario())


def test_a_helper_that_does_not_start_is_the_servers_fault() -> None:
    async def scenario() -> None:
        checker = GrammarChecker(command=(sys.executable, "-c", "pass"))
        with pytest.raises(ServerError):
            await checker.check(FINE)
        await checker.close()

    run(scenario())


def test_g12_w12_what_was_proven_is_remembered_within_the_bound() -> None:
    async def scenario() -> None:
        checker = GrammarChecker(cache_bytes=5000, command=FAKE)
        hot = spec("regex", "hot")
        first = await checker.check(hot)
        for i in range(50):
            await checker.check(spec("regex", f"cold {i}"))
            assert await checker.check(hot) == first
            assert checker.num_cached_bytes <= 5000
        await checker.close()
        assert await checker.check(hot) == first  # without a helper
        assert await checker.check(spec("regex", "cold 0")) != first
        await checker.close()

    run(scenario())


def test_a_full_queue_is_overload() -> None:
    async def scenario() -> None:
        checker = GrammarChecker(max_queued=2, command=FAKE)
        tasks = [asyncio.create_task(checker.check(spec("regex", f"{i}"))) for i in range(4)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, Overloaded) for result in results] == [False, False, True, True]
        await checker.close()

    run(scenario())
