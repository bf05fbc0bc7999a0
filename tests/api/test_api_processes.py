"""Several API processes on one engine, from outside: one server, whichever process a connection leads to."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.client_fakes import write_model
from support.server_process import Background, ServerProcess, Stream, bound, eventually, wait_gone

KEY = {"authorization": "Bearer boss"}
SLOW = {"FAKE_STEP_SECONDS": "0.01"}
TWO = ("--api-server-count", "2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer of bytes."""
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def start(model: Path) -> Iterator[Any]:
    """Start a server; all are gone at the end of the test."""
    servers: list[ServerProcess] = []

    def start(*flags: str, **env: str) -> ServerProcess:
        servers.append(ServerProcess(model, *TWO, *flags, fake=True, env=env))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


class Client:
    """A connection that is kept, so that all its requests go to one process."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.connection = server.connect()
        self.connection.connect()
        self.pid = eventually(self._find, 10, "who accepted the connection")

    def _find(self) -> int | None:
        port = self.connection.sock.getsockname()[1]
        for process in workers(self.server):
            if any(each.raddr and each.raddr.port == port for each in process.net_connections("tcp")):
                return process.pid
        return None

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        response = self.send(method, path, body)
        data = response.read()
        is_json = response.getheader("content-type", "").startswith("application/json")
        return response.status, json.loads(data) if is_json else data.decode()

    def send(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        headers = KEY | ({"content-type": "application/json"} if body is not None else {})
        self.connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        return self.connection.getresponse()

    def complete(self, max_tokens: int = 5, **fields: Any) -> tuple[int, Any]:
        return self.ask("POST", "/v1/completions", {"prompt": "one two three", "max_tokens": max_tokens, **fields})

    def stream(self, max_tokens: int) -> Stream:
        """Whose first event has come: the request runs."""
        body = {"prompt": "one two three", "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
        stream = Stream(self.connection, self.send("POST", "/v1/completions", body))
        assert stream.status == 200, stream.response.read()
        next(iter(stream))
        return stream

    def close(self) -> None:
        self.connection.close()


def workers(server: ServerProcess) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if "octavo.launch.api_process" in child.cmdline()]


def pair(server: ServerProcess) -> tuple[Client, Client]:
    """Clients of different processes."""
    first, others = Client(server), []
    while len(others) < 50:
        others.append(Client(server))
        if others[-1].pid != first.pid:
            for client in others[:-1]:
                client.close()
            return first, others[-1]
    raise AssertionError("all connections lead to one process")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[ServerProcess]:
    flags = ["--admin-api-key", "boss", "--enable-sleep-mode", "--max-num-seqs", "2", "--max-num-queued-reqs", "2"]
    with ServerProcess(model, *TWO, *flags, fake=True, env=SLOW) as process:
        yield process.wait_ready()


@pytest.fixture
def clients(server: ServerProcess) -> Iterator[tuple[Client, Client]]:
    found = pair(server)
    yield found
    for client in found:
        client.close()
    server.wait_metric("vllm:num_requests_running", lambda running: running == 0)


def value(exposition: str, name: str) -> float:
    (line,) = (line for line in exposition.splitlines() if line.startswith(name + " "))
    return float(line.rpartition(" ")[2])


# ---------------------------------------------------------------- one server
def test_every_process_has_the_metrics_of_all(clients: tuple[Client, Client], model: Path) -> None:
    one, other = clients
    ended = f'vllm:request_success_total{{finished_reason="length",model_name="{model}"}}'
    tokens = f'vllm:generation_tokens_total{{model_name="{model}"}}'
    ttft = f'vllm:time_to_first_token_seconds_count{{model_name="{model}"}}'
    running = f'vllm:num_requests_running{{model_name="{model}"}}'
    http = 'http_requests_total{handler="/v1/completions",method="POST",status="200"}'
    before = one.ask("GET", "/metrics")[1]
    num_http = value(before, http) if http in before else 0
    for client, times in ((one, 3), (other, 2)):
        for _ in range(times):
            status, reply = client.complete(ignore_eos=True)
            assert (status, reply["usage"]["completion_tokens"]) == (200, 5)
    for client in clients:
        after = client.ask("GET", "/metrics")[1]
        assert value(after, ended) - value(before, ended) == 5
        assert value(after, tokens) - value(before, tokens) == 25
        assert value(after, ttft) - value(before, ttft) == 5
        assert value(after, http) - num_http == 5
        assert value(after, running) == 0
        assert value(after, f'vllm:engine_sleep_state{{model_name="{model}",sleep_state="awake"}}') == 1
    stream = one.stream(100)
    for client in (other, Client(one.server)):
        assert client.ask("GET", "/load") == (200, {"server_load": 1})
        assert value(client.ask("GET", "/metrics")[1], running) == 1
    stream.close()


def test_a_request_has_the_text_that_any_process_gives_it(clients: tuple[Client, Client]) -> None:
    texts = [client.complete(20, ignore_eos=True, seed=7)[1]["choices"][0]["text"] for client in clients]
    assert texts[0] == texts[1]


def test_the_queue_of_all_processes_has_one_limit(clients: tuple[Client, Client], server: ServerProcess) -> None:
    more = [Client(server) for _ in range(3)]
    streams = [client.stream(200) for client in clients]  # these run, and two more may wait
    background = Background()
    for client in more[:2]:
        background.start(lambda client=client: client.complete(1))
    eventually(lambda: more[2].ask("GET", "/load")[1]["server_load"] == 4 or None, 10, "four requests")
    status, reply = more[2].complete(1)
    assert status == 429 and "2 requests are waiting" in reply["error"]["message"]
    for stream in streams:
        stream.close()
    assert [status for status, _ in background.join(20)] == [200, 200]
    for client in more:
        client.close()


def test_the_end_of_a_client_ends_its_requests_and_no_others(clients: tuple[Client, Client]) -> None:
    one, other = clients
    theirs, ours = one.stream(3000), other.stream(100)
    theirs.close()
    events = list(ours)
    assert events[-1] == "[DONE]" and events[-2]["choices"][0]["finish_reason"] == "length"


def test_an_administrator_ends_requests_of_every_process(clients: tuple[Client, Client], server: ServerProcess) -> None:
    streams = [client.stream(3000) for client in clients]
    admin = Client(server)
    assert admin.ask("POST", "/abort_requests", {"all": True}) == (200, {"aborted": 2}), "both"
    assert [list(stream)[-2]["error"]["code"] for stream in streams] == ["request_aborted"] * 2
    assert admin.ask("POST", "/reset_prefix_cache")[0] == 200
    admin.close()


def test_the_model_sleeps_for_all_and_wakes_for_all(clients: tuple[Client, Client], server: ServerProcess) -> None:
    one, other = clients
    running, asker = other.stream(3000), Client(server)
    assert asker.ask("POST", "/sleep?level=1")[0] == 200
    assert list(running)[-2]["error"]["code"] == "request_aborted"
    for client in (one, Client(server), asker):
        assert client.ask("GET", "/is_sleeping") == (200, {"is_sleeping": True})
        assert client.complete()[1]["error"]["code"] == "asleep"
    assert one.ask("POST", "/sleep?level=1")[0] == 200, "it does already"
    assert one.ask("POST", "/wake_up")[0] == 200
    for client in (one, asker):
        assert client.complete()[0] == 200
    asker.close()


def test_responses_are_kept_for_all(clients: tuple[Client, Client]) -> None:
    one, other = clients
    status, made = one.ask("POST", "/v1/responses", {"input": "hello", "max_output_tokens": 16})
    assert status == 200 and made["store"]
    path = f"/v1/responses/{made['id']}"
    assert other.ask("GET", path) == (200, made)
    items = other.ask("GET", path + "/input_items")[1]["data"]
    assert [item["content"][0]["text"] for item in items] == ["hello"]
    body = {"input": "more", "max_output_tokens": 16, "previous_response_id": made["id"]}
    status, second = other.ask("POST", "/v1/responses", body)
    assert status == 200 and second["usage"]["input_tokens"] > made["usage"]["input_tokens"] + 10
    assert one.ask("DELETE", path)[0] == 200
    assert other.ask("GET", path)[0] == 404
    status, talk = one.ask("POST", "/v1/conversations", {"items": [{"role": "user", "content": "hi"}]})
    assert status == 200 and len(other.ask("GET", f"/v1/conversations/{talk['id']}/items")[1]["data"]) == 1
    assert other.ask("GET", "/v1/conversations/conv_none")[0] == 404


def test_a_response_in_the_background_is_followed_and_cancelled_from_another_process(
    clients: tuple[Client, Client], server: ServerProcess
) -> None:
    one, other = clients
    body = {"input": "hello", "background": True, "stream": True}
    long, short = body | {"max_output_tokens": 3000}, body | {"max_output_tokens": 40}
    for sent in (long, short):
        maker = Client(server)
        stream = Stream(maker.connection, maker.send("POST", "/v1/responses", sent))
        first = next(iter(stream))
        stream.close()
        for client in (one, other):  # one of them is not in the process that makes it
            path = f"/v1/responses/{first['response']['id']}"
            assert client.ask("GET", path)[1]["status"] in ("queued", "in_progress", "completed", "incomplete")
            if sent is short:
                events = list(Stream(client.connection, client.send("GET", path + "?stream=true")))
                assert [event["sequence_number"] for event in events] == list(range(len(events)))
                assert events[-1]["type"] in ("response.completed", "response.incomplete")
        if sent is long:
            for client in (one, other):
                assert client.ask("POST", path + "/cancel")[1]["status"] == "cancelled"
                assert client.ask("GET", path)[1]["status"] == "cancelled"


# ---------------------------------------------------------------- starts
def test_the_start_is_told_once_and_a_manager_hears_of_it(start: Any, model: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(bound(10))
        server = start("--uds", str(tmp_path / "octavo.sock"), NOTIFY_SOCKET=str(tmp_path / "notify")).wait_ready()
        assert manager.recv(1000).startswith(b"READY=1")
        for _ in range(4):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(bound(10))
                client.connect(str(tmp_path / "octavo.sock"))
                client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 200")
        processes = [*workers(server), server.engine()]
        server.signal(signal.SIGTERM)
        assert manager.recv(1000).startswith(b"STOPPING=1")
        assert server.wait(10) == 0
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(1000)
    for process in processes:
        wait_gone(process, 5)
    assert not (tmp_path / "octavo.sock").exists()
    assert server.stderr.count(f"model {model}: fake") == server.stderr.count("started in") == 1


@pytest.mark.parametrize(
    ("flags", "env", "said"),
    [
        ((), {"OCTAVO_FAULTS": "load:1=exit"}, "ended while it started: it exited with code 70"),
        (("--tokenizer", "broken"), {"FAKE_LOAD_SECONDS": "60"}, "tokenizer.json"),
    ],
    ids=["engine", "tokenizer"],
)
def test_a_start_that_fails_is_one_error(
    start: Any, tmp_path: Path, flags: tuple[str, ...], env: dict[str, str], said: str
) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    server = start(*(str(tmp_path) if flag == "broken" else flag for flag in flags), **env)
    assert server.wait(20) == 1
    assert said in server.stderr
    assert server.stderr.count("octavo serve: error: ") == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_the_model_loads_leaves_nothing(start: Any, signum: int) -> None:
    server = start(FAKE_LOAD_SECONDS="60")
    engine = server.engine()
    processes = eventually(lambda: found if len(found := workers(server)) == 2 else None, 20, "two processes")
    server.signal(signum)
    assert server.wait(5) == (-signum if signum == signal.SIGKILL else 128 + signum)
    for process in [engine, *processes]:
        wait_gone(process, 5)
    assert "Traceback" not in server.stderr


@pytest.mark.parametrize(
    ("who", "said"),
    [("worker", "An API process ended while it started"), ("engine", "The engine process ended while it started")],
)
def test_a_process_that_is_killed_in_the_start_ends_it(start: Any, who: str, said: str) -> None:
    server = start(FAKE_LOAD_SECONDS="60")
    engine = server.engine()
    processes = eventually(lambda: found if len(found := workers(server)) == 2 else None, 20, "two processes")
    (engine if who == "engine" else processes[1]).kill()
    assert server.wait(10) == 1
    assert server.stderr.count("octavo serve: error: ") == 1
    assert f"{said}: it was killed by SIGKILL" in server.stderr
    for process in [engine, *processes]:
        wait_gone(process, 5)


def test_adapters_that_each_process_would_find_for_itself_are_refused(start: Any, tmp_path: Path) -> None:
    server = start("--enable-lora", "--lora-resolver-dir", str(tmp_path))
    assert server.wait(10) == 2
    assert "--lora-resolver-dir" in server.stderr and "--api-server-count" in server.stderr


# ---------------------------------------------------------------- ends
def test_term_lets_the_requests_of_every_process_finish(start: Any) -> None:
    server = start(**SLOW).wait_ready()
    clients = pair(server)
    streams = [clients[0].stream(40), clients[1].stream(120)]
    for process in workers(server):  # as one who stops a whole group does
        process.terminate()
    server.signal(signal.SIGTERM)
    for stream in streams:
        events = list(stream)
        assert events[-1] == "[DONE]" and events[-2]["choices"][0]["finish_reason"] == "length"
    assert server.wait(5) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), 2)


def test_a_second_signal_ends_at_once(start: Any) -> None:
    server = start(**SLOW).wait_ready()
    streams = [client.stream(3000) for client in pair(server)]
    server.signal(signal.SIGTERM)
    server.wait_stderr("draining 1 sequences")
    server.signal(signal.SIGINT)
    assert [list(stream)[-2]["error"]["code"] for stream in streams] == ["shutting_down"] * 2
    assert server.wait(5) == 128 + signal.SIGINT


def test_when_a_process_dies_the_others_finish_and_the_server_ends_with_an_error(start: Any) -> None:
    server = start(**SLOW).wait_ready()
    dies, lives = pair(server)
    lost, kept = dies.stream(3000), lives.stream(150)
    psutil.Process(dies.pid).kill()
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        list(lost)
        raise ConnectionResetError  # an end without the last chunk may be read as one
    events = list(kept)
    assert events[-1] == "[DONE]" and events[-2]["choices"][0]["finish_reason"] == "length"
    assert server.wait(5) == 1
    assert "ended: it was killed by SIGKILL" in server.stderr
    wait_gone(psutil.Process(lives.pid), 5) if psutil.pid_exists(lives.pid) else None


def test_a_process_that_hangs_is_killed(model: Path, tmp_path: Path) -> None:
    program = tmp_path / "impatient.py"
    program.write_text(
        "import sys\nfrom octavo.launch import supervisor\nfrom support import fake_serve\n"
        "supervisor.HANG_TICKS = 5\nsys.exit(fake_serve.main())\n"
    )
    with ServerProcess(model, *TWO, program=program, env=SLOW) as server:
        hangs, lives = pair(server.wait_ready())
        lost, kept = hangs.stream(3000), lives.stream(60)
        psutil.Process(hangs.pid).suspend()
        assert list(kept)[-1] == "[DONE]"
        assert server.wait(20) == 1
        assert "has not answered for 5 s and is killed" in server.stderr
        lost.close()


def test_when_the_engine_dies_every_request_of_every_process_is_told(start: Any) -> None:
    server = start(**SLOW).wait_ready()
    streams = [client.stream(3000) for client in pair(server)]
    server.engine().kill()
    for stream in streams:
        assert list(stream)[-2]["error"]["code"] == "engine_dead"
    assert server.wait(5) == 1
    assert "The engine process is dead: it was killed by SIGKILL (out of memory?)." in server.stderr


def test_when_the_parent_is_killed_nothing_is_left(start: Any) -> None:
    server = start(**SLOW).wait_ready()
    processes = [*workers(server), server.engine()]
    streams = [client.stream(3000) for client in pair(server)]
    server.signal(signal.SIGKILL)
    assert server.wait(5) == -signal.SIGKILL
    for process in processes:
        wait_gone(process, 5)
    for stream in streams:
        stream.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), 2)


# ---------------------------------------------------------------- real weights
@pytest.mark.model
def test_on_real_weights_all_processes_give_the_same_samples_and_keep_to_grammars(smollm2_gguf: Path) -> None:
    body = {"prompt": "Paris is", "max_tokens": 12, "temperature": 0.8, "seed": 3, "n": 2, "logprobs": 1}
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    held = {
        "prompt": "A number as JSON:", "max_tokens": 40, "temperature": 0, "structured_outputs": {"json": schema},
    }  # fmt: skip
    flags = ["--max-model-len", "512", "--num-kv-blocks-override", "128"]

    def replies(server: ServerProcess, clients: tuple[Client, ...]) -> list[Any]:
        background = Background()
        for client in clients:
            background.start(lambda client=client: [client.ask("POST", "/v1/completions", b) for b in (body, held)])
        found = background.join(60)
        assert all(status == 200 for each in found for status, _ in each), found
        return [[reply["choices"] for _, reply in each] for each in found]

    with ServerProcess(smollm2_gguf, *TWO, *flags) as server:
        server.wait_ready(120)
        first, second = replies(server, pair(server))
    assert first == second and len(first[0]) == 2
    assert isinstance(json.loads(first[1][0]["text"])["a"], int)
