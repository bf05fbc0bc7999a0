"""What API processes of one server share: numbers, counts, connections, and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from octavo.base.config import ServeConfig, ServerConfig
from octavo.base.errors import InvalidRequest, OctavoError, ServerError
from octavo.client.siblings import NoSiblings, Occupancy, numbers_of
from octavo.launch.offers import answered, error_of, reply
from octavo.launch.shared_http import Acceptor
from octavo.launch.supervisor import Supervisor
from octavo.server.merged_metrics import families_of, rendered
from octavo.server.metrics import Metrics
from octavo.server.responses.shared_store import shared_store, store_offers
from octavo.server.responses.store import KeptResponse, ResponseStore, StoreFailed
from octavo.wire.api_messages import FromApiProcess, Ran
from octavo.wire.messages import StartupFailed
from octavo.wire.transport import AsyncConnection, TransportError


@pytest.fixture
def shared() -> Iterator[list[Occupancy]]:
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), Occupancy.size(3))
        yield [Occupancy(file.fileno(), index, 3) for index in range(3)]


class Place(NoSiblings):
    def __init__(self, index: int, count: int) -> None:
        super().__init__()
        self.index, self.count = index, count  # type: ignore[misc]


def test_numbers_of_one_process_are_those_of_no_other() -> None:
    assert list(islice(numbers_of(NoSiblings()), 3)) == [1, 2, 3]
    found = [list(islice(numbers_of(Place(index, 3)), 3)) for index in range(3)]
    assert found == [[3, 6, 9], [4, 7, 10], [5, 8, 11]]


def test_each_process_reads_what_the_others_hold(shared: list[Occupancy]) -> None:
    one, two, three = shared
    assert one.others() == (0, 0)
    one.tell(5, 100)
    two.tell(2, 10**12)
    assert [each.others() for each in shared] == [(2, 10**12), (5, 100), (7, 10**12 + 100)]
    one.tell(0, 0)
    assert three.others() == (2, 10**12)
    two.add_connections(3)
    two.add_connections(-1)
    three.add_connections(1)
    assert (two.num_connections, one.fewest_connections, two.fewest_connections) == (2, 1, 0)


def test_a_burst_of_connections_is_shared(shared: list[Occupancy]) -> None:
    """Two acceptors of one socket, each woken for all."""
    counts = [0, 0]

    class Counted(asyncio.Protocol):
        def __init__(self, index: int) -> None:
            counts[index] += 1
            shared[index].add_connections(1)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        shared[2].add_connections(1000)  # a third process, which has enough
        with socket.create_server(("127.0.0.1", 0), backlog=100) as sock, contextlib.ExitStack() as stack:
            both = [stack.enter_context(sock.dup()) for _ in counts]
            acceptors = [
                Acceptor(loop, each, lambda i=i: Counted(i), None, shared[i])  # type: ignore[misc]
                for i, each in enumerate(both)
            ]
            for _ in range(40):
                client = stack.enter_context(socket.socket())
                client.connect(sock.getsockname())
            for acceptor in acceptors:
                acceptor.start()
            async with asyncio.timeout(30):
                while sum(counts) < 40:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            for acceptor in acceptors:
                acceptor.close()

    asyncio.run(main())
    assert min(counts) >= 12


def test_errors_come_back_as_what_they_were() -> None:
    async def refuse(error: str) -> None:
        raise {
            "request": InvalidRequest("no", "field"), "store": StoreFailed("disk"), "bug": ZeroDivisionError("x"),
        }[error]  # fmt: skip

    def told(name: str) -> OctavoError:
        result, failure = asyncio.run(answered({"refuse": refuse}, "refuse", (name,)))
        assert result is None and failure is not None
        return error_of(failure)

    error = told("request")
    assert isinstance(error, InvalidRequest) and (error.message, error.param) == ("no", "field")
    assert type(told("store")) is StoreFailed
    assert type(told("bug")) is ServerError and told("bug").message == "Internal error: ZeroDivisionError."
    assert asyncio.run(answered({"double": _double}, "double", (2,))) == (4, None)


async def _double(number: int) -> int:
    return 2 * number


def test_a_result_that_cannot_be_sent_is_answered_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        sender = await AsyncConnection[Any].open(ours, FromApiProcess)
        receiver = await AsyncConnection[Any].open(theirs, FromApiProcess)
        for result in (10**30, "\ud800", object()):
            reply(sender, Ran, 7, result, None)
            got = await receiver.receive()
            assert (got.number, got.result, got.failure.error) == (7, None, "ServerError")
        reply(sender, Ran, 8, [1], None)
        assert await receiver.receive() == Ran(8, [1])
        await sender.close()
        with pytest.raises(TransportError):
            reply(sender, Ran, 9, 1, None)
        assert caplog.text.count("could not be sent") == 3
        await receiver.close()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_items_cross_whatever_numbers_their_schemas_have(tmp_path: Path) -> None:
    async def main() -> None:
        store = ResponseStore(ServerConfig(responses_store=str(tmp_path / "kept.db")))
        await store.open()
        offers = store_offers(store)

        async def ask(name: str, *args: Any) -> Any:
            crossed = msgspec.msgpack.decode(msgspec.msgpack.encode(args))
            return msgspec.msgpack.decode(msgspec.msgpack.encode(await offers[name](*crossed)))

        shared = shared_store(ask)
        tools = [{"name": "big", "input_schema": {"type": "object", "maximum": 10**30}}]
        item = {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "s", "tools": tools}
        await shared.insert_conversation("conv_1", "me", {"id": "conv_1"})
        await asyncio.ensure_future(shared.append("conv_1", [item]))  # type: ignore[arg-type]
        assert await shared.items("conv_1") == [item] and await shared.item("mcpl_1", "me") == item
        body = msgspec.json.encode({"output": [item | {"id": "mcpl_3"}], "background": False, "conversation": None})
        kept = KeptResponse("resp_1", "me", "in_progress", None, body, msgspec.json.encode([item | {"id": "mcpl_2"}]))
        await shared.insert(kept, [item | {"id": "mcpl_2"}])
        done = shared.finish("resp_1", "completed", body, [item | {"id": "mcpl_3"}], b"")
        await asyncio.ensure_future(done)  # type: ignore[arg-type]
        for item_id in ("mcpl_2", "mcpl_3"):
            assert await shared.item(item_id, "me") == item | {"id": item_id}
        found = await shared.response("resp_1", "me")
        assert found is not None and found.status == "completed"
        await store.close()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_process_that_cannot_listen_says_why(caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor(ServeConfig(), *cast(Any, (None, None, [])))
    member: Any = SimpleNamespace(process=SimpleNamespace(index=1))
    supervisor._on_message(member, StartupFailed("StartupError", "Cannot listen on x: no."))
    assert "API process 1: Cannot listen on x: no." in caplog.text


_HEARS = """
import os, signal, subprocess, sys
from octavo.base.child_process import leave_signals_to_parent
leave_signals_to_parent(with_children=sys.argv[1] == "no")
for signum in (signal.SIGINT, signal.SIGTERM):
    os.kill(os.getpid(), signum)
show = "import signal; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
print(subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True).stdout.strip())
"""


@pytest.mark.parametrize(("hears", "is_default"), [("yes", "True"), ("no", "False")])
def test_what_an_api_process_starts_hears_signals(hears: str, is_default: str) -> None:
    run = subprocess.run([sys.executable, "-c", _HEARS, hears], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == is_default, run.stderr


def test_metrics_of_processes_are_added_but_for_those_that_are_the_servers() -> None:
    processes = []
    for number in (1, 2):
        registry = CollectorRegistry()
        Counter("requests", "Requests.", ["status"], registry=registry).labels("200").inc(number)
        if number == 2:
            Counter("late", "Only one has it.", registry=registry).inc()
        Gauge("running", "Of the engine.", registry=registry).set(7 * (number == 1))
        Gauge("process_open_fds", "Files.", registry=registry).set(10 * number)
        histogram = Histogram("seconds", "Time.", ["path"], buckets=(1, 2), registry=registry)
        for value in range(number + 1):
            histogram.labels("/a").observe(value + 0.5)
        histogram.labels(f"/{number}").observe(1.5)
        processes.append(families_of(registry))
    lines = rendered(processes)[0].decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['requests_total{status="200"}'] == "3.0"
    assert (values["late_total"], values["running"], values["process_open_fds"]) == ("1.0", "7.0", "30.0")
    buckets = [values[f'seconds_bucket{{le="{le}",path="/a"}}'] for le in ("1.0", "2.0", "+Inf")]
    assert buckets == ["2.0", "4.0", "5.0"]
    assert (values['seconds_count{path="/a"}'], values['seconds_sum{path="/a"}']) == ("5.0", "6.5")
    assert values['seconds_count{path="/2"}'] == "1.0"
    assert lines.count("# TYPE seconds histogram") == 1


def test_one_process_alone_is_rendered_as_it_is() -> None:
    metrics = Metrics("tiny", 100)
    metrics.tell_adapters(lambda: ({"a"}, {"b"}), 2)
    metrics.on_http_request("GET", "/health", 200, 0.1)

    def shown(data: bytes) -> set[str]:
        # Of these the value is the time.
        return {line for line in data.decode().splitlines() if "process_" not in line and "lora_requests" not in line}

    assert shown(rendered([families_of(metrics.registry)])[0]) == shown(generate_latest(metrics.registry))


def test_the_adapters_of_requests_are_those_of_all_processes() -> None:
    found = []
    for running, waiting in (({"a", "b"}, set()), ({"b", "c"}, {"d"})):
        metrics = Metrics("tiny", 100)
        metrics.tell_adapters(lambda running=running, waiting=waiting: (running, waiting), 2)  # type: ignore[misc]
        found.append(families_of(metrics.registry))
    text = rendered(found)[0].decode()
    (line,) = (line for line in text.splitlines() if line.startswith("vllm:lora_requests_info{"))
    assert 'running_lora_adapters="a,b,c",waiting_lora_adapters="d"' in line and 'max_lora="2"' in line


def test_blocks_of_one_name_are_never_side_by_side_and_others_are() -> None:
    async def main() -> None:
        siblings, inside, may_end = NoSiblings(), [], asyncio.Event()

        async def block(name: str) -> None:
            async with siblings.alone(name):
                inside.append(name)
                await may_end.wait()

        tasks = [asyncio.create_task(block(name)) for name in ("a", "a", "b")]
        for _ in range(5):
            await asyncio.sleep(0)
        assert inside == ["a", "b"]
        may_end.set()
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks)
        assert inside == ["a", "b", "a"]

    asyncio.run(main())
