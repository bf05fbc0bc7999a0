"""Batches of requests against the server's application: what a line may be, and how a run goes on where one ended."""

from __future__ import annotations

import asyncio
import fcntl
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.base.errors import EngineDead, Overloaded
from octavo.offline.batch.lines import BatchError, LineParser
from octavo.offline.batch.results import ResultFile
from octavo.offline.batch.runner import BatchRunner, Progress
from octavo.server.app import routes
from support.server_fakes import Server, answer, make_server

COMPLETION = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hello"}}


def line(**changes: Any) -> str:
    return json.dumps({**COMPLETION, **changes})


class Batch:
    """An input and an output in a directory, run against a server of fakes."""

    def __init__(self, directory: Path, *lines: str | bytes) -> None:
        self.input, self.output = directory / "in.jsonl", directory / "out.jsonl"
        self.write(*lines)

    def write(self, *lines: str | bytes) -> None:
        self.input.write_bytes(b"\n".join(one.encode() if isinstance(one, str) else one for one in lines))

    def run(self, server: Server | None = None, window: int = 4, stop_after: int | None = None) -> list[Any]:
        """The results in the file after a run, which a signal ends after so many results of its own."""
        server = server or make_server()
        config = server.state.config
        results = ResultFile(self.output)
        parser = LineParser(config.max_body_bytes, config.max_json_depth)
        paths = [route.path for route in routes(server.state) if (route.body or route.form) is not None]
        runner = BatchRunner(server.app, server.state, paths, parser=parser, results=results, window=window)

        async def main() -> None:
            task = asyncio.create_task(runner.run(self.input, Progress(0, 0)))
            if stop_after is not None:
                for _ in range(100_000):
                    if results.num_results >= stop_after:
                        break
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.gather(task, return_exceptions=stop_after is not None)

        try:
            asyncio.run(asyncio.wait_for(main(), 20))
        finally:
            results.close()
        return self.results()

    def results(self) -> list[Any]:
        return [json.loads(text) for text in self.output.read_text().splitlines()]


def test_e40_a_result_has_the_shape_of_openai_s_batches(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Hello"}], "model": "alias"}
    batch = Batch(tmp_path, line(), "", line(custom_id="b", url="/v1/chat/completions", body=chat))
    first, second = sorted(batch.run(), key=lambda result: str(result["custom_id"]))
    assert list(first) == ["id", "custom_id", "response", "error"]
    assert first["id"].startswith("batch_req_") and first["error"] is None
    assert list(first["response"]) == ["status_code", "request_id", "body"]
    assert first["response"]["body"]["choices"][0]["text"] == "Hi!"
    assert first["response"]["body"]["id"] == f"cmpl-{first['response']['request_id']}"
    assert second["response"]["body"]["choices"][0]["message"]["content"] == "Hi!"
    assert second["response"]["body"]["model"] == "alias"


def test_requests_of_anthropic_s_api_are_taken_too(tmp_path: Path) -> None:
    good: Any = {"messages": [{"role": "user", "content": "Hello"}], "model": "alias", "max_tokens": 9}
    lines = [line(custom_id=name, url="/v1/messages", body=body) for name, body in (("a", good), ("b", {}))]
    first, second = sorted(Batch(tmp_path, *lines).run(), key=lambda result: str(result["custom_id"]))
    assert first["response"]["body"]["content"][0]["text"] == "Hi!"
    assert second["response"]["body"]["type"] == "error"
    assert second["error"]["type"] == "invalid_request_error" and "max_tokens" in second["error"]["message"]


@pytest.mark.parametrize(
    ("text", "custom_id", "param", "words"),
    [
        ("nonsense", None, None, "The line is not valid JSON"),
        ('{"custom_id": "a"', None, "custom_id", "The line is not valid JSON"),
        ("[1]", None, None, "The line should be a JSON object"),
        (b'{"custom_id": "\xff"}', None, "custom_id", "UTF-8"),
        (line(custom_id=5), None, "custom_id", "valid string"),
        (line(custom_id=""), "", "custom_id", "1 to 512 characters"),
        (line(custom_id="x" * 513), "x" * 512, "custom_id", "1 to 512 characters"),
        (line(method="GET"), "a", "method", "POST"),
        (line(url=None), "a", "url", "valid string"),
        (line(body="{}"), "a", "body", "valid dictionary"),
        (line(body={"prompt": "a", "stream": True}), "a", "body.stream", "no streams"),
        (line(url="/v1/responses", body={"input": "a", "background": True}), "a", "body.background", "leave"),
        (line(url="/v1/completion"), "a", "url", "did you mean /v1/completions?"),
        (line(url="/abort_requests"), "a", "url", "/v1/chat/completions"),
        ('{"url": "/v1/completions", "method": "POST", "body": {}}', None, "custom_id", "Field required"),
        (line(body={"prompt": "a" * 70_000}), None, None, "--max-body-bytes"),
        (line(body={"prompt": json.loads("[" * 9 + "]" * 9)}), None, None, "--max-json-depth"),
    ],
)
def test_e40_a_line_that_is_no_request_is_told_and_ends_nothing(
    tmp_path: Path, text: str | bytes, custom_id: str | None, param: str | None, words: str
) -> None:
    batch = Batch(tmp_path, text, line(custom_id="good"))
    server = make_server(max_body_bytes=1000, max_json_depth=8)
    results = batch.run(server)
    (bad,) = (result for result in results if result["error"])
    assert [result["custom_id"] for result in results if not result["error"]] == ["good"]
    assert (bad["custom_id"], bad["response"], bad["error"]["param"]) == (custom_id, None, param)
    assert words in bad["error"]["message"]
    assert batch.run(server) == results, "it is done, and is not told again"


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"prompt": "a", "max_tokens": -1}, 400, "max_tokens"),
        ({"prompt": "a", "model": "other"}, 404, "model"),
        ({"prompt": "a" * 600}, 400, "prompt"),
    ],
)
def test_e40_what_the_server_refuses_stands_in_the_result(
    tmp_path: Path, body: dict[str, Any], status: int, param: str
) -> None:
    (result,) = Batch(tmp_path, line(body=body)).run()
    assert result["response"]["status_code"] == status
    assert result["error"] == result["response"]["body"]["error"]
    assert result["error"]["param"] == param


def test_e40_of_equal_custom_ids_the_first_counts(tmp_path: Path) -> None:
    batch = Batch(tmp_path, line(), line(body={"prompt": "other"}), line(custom_id="b"))
    results = batch.run(window=1)
    assert [(r["custom_id"], r["error"] is None) for r in results] == [("a", True), ("a", False), ("b", True)]
    assert results[1]["error"]["message"] == "An earlier line has the same `custom_id`."
    # Even where only the second one's result is left.
    batch.output.write_text(json.dumps(results[1], separators=(",", ":")) + "\n")
    again = batch.run()
    assert sorted((r["custom_id"], r["error"] is None) for r in again) == [("a", False), ("a", True), ("b", True)]


def test_numbers_of_a_body_keep_their_digits(tmp_path: Path) -> None:
    server = make_server()
    text = line(body={"prompt": "a", "seed": 0}).replace('"seed": 0', '"seed": 123456789012345678901234567890')
    (result,) = Batch(tmp_path, text).run(server)
    assert result["error"]["param"] == "seed" and "12345678901234567890" in result["error"]["message"]


def test_lines_are_under_way_together_and_not_more_than_the_window(tmp_path: Path) -> None:
    most = 0

    def script(request: Any) -> list[Any]:
        nonlocal most
        most = max(most, server.engine.num_open)
        return answer("Hi!")

    server = make_server(script)
    assert len(Batch(tmp_path, *(line(custom_id=str(i)) for i in range(20))).run(server, window=4)) == 20
    assert most == 4


def test_a_line_for_which_there_is_no_room_waits(tmp_path: Path) -> None:
    server = make_server()
    refusals = iter([Overloaded("busy"), Overloaded("busy"), None])
    generate = server.engine.generate

    def refusing(request: Any) -> Any:
        server.engine.refusal = next(refusals)
        return generate(request)

    server.engine.generate = refusing  # type: ignore[method-assign]
    (result,) = Batch(tmp_path, line()).run(server)
    assert result["response"]["status_code"] == 200


@pytest.mark.parametrize("stop_after", [0, 1, 5, 9])
def test_e40_a_run_that_was_stopped_goes_on(tmp_path: Path, stop_after: int) -> None:
    batch = Batch(tmp_path, *(line(custom_id=str(i)) for i in range(10)))
    before = batch.run(stop_after=stop_after)
    server = make_server()
    results = batch.run(server)
    assert results[: len(before)] == before
    assert len(server.engine.requests) == 10 - len(before)
    assert sorted(int(result["custom_id"]) for result in results) == list(range(10))


def test_a_result_that_was_cut_is_made_again(tmp_path: Path) -> None:
    batch = Batch(tmp_path, line(), line(custom_id="b"))
    whole = batch.run()
    data = batch.output.read_bytes()
    first = data.index(b"\n") + 1
    for length in (0, 1, 5, first - 1, first, first + 1, first + 100, len(data) - 1):
        batch.output.write_bytes(data[:length])
        assert [r["id"] for r in batch.run(window=1)] == [r["id"] for r in whole]


@pytest.mark.parametrize(
    "content",
    [
        b"notes",
        b"notes\n",
        b'{"id":"vllm-1","custom_id":"a","response":null,"error":null}\n',
        b'{"id":"batch_req_1"}\n',
    ],
)
def test_a_file_that_is_no_output_is_left_alone(tmp_path: Path, content: bytes) -> None:
    batch = Batch(tmp_path, line())
    batch.output.write_bytes(content)
    with pytest.raises(BatchError, match="line 1, is no result of octavo run-batch"):
        batch.run()
    assert batch.output.read_bytes() == content


def test_results_of_other_requests_are_not_taken_for_those_of_these(tmp_path: Path) -> None:
    batch = Batch(tmp_path, line())
    before = batch.run()
    batch.write(line(custom_id="b"), line(body={"prompt": "another"}))
    with pytest.raises(BatchError, match="'a' of line 2, but of another request"):
        batch.run(window=1)
    assert batch.results()[:1] == before


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    batch = Batch(tmp_path, line())
    with batch.output.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BatchError, match="is being written by another run"):
            batch.run()


def test_e40_a_dead_engine_ends_the_run_and_is_no_result(tmp_path: Path) -> None:
    def script(request: Any) -> list[Any]:
        server.engine.is_healthy, server.engine.dead_reason = False, "it is dead"
        return [EngineDead("it is dead")]

    server = make_server(script)
    batch = Batch(tmp_path, line(), line(custom_id="b"))
    with pytest.raises(EngineDead, match="it is dead"):
        batch.run(server)
    assert batch.results() == []


def test_a_disk_that_is_full_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write: Callable[..., int] = __import__("os").write
    batch = Batch(tmp_path, line(), line(custom_id="b"))

    def short(fd: int, data: memoryview) -> int:
        if len(data) > 30:
            return write(fd, data[:30])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("octavo.offline.batch.results.os.write", short)
        with pytest.raises(BatchError, match="No space left on device"):
            batch.run(window=1)
    assert [result["custom_id"] for result in batch.run(window=1)] == ["a", "b"]
