"""`octavo bench serve` counts what it saw: a benchmark that miscounts is worse than none (K7)."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.bench import serve
from octavo.bench.datasets import Prompt
from octavo.bench.http import Reply
from octavo.bench.limits import Limits
from octavo.bench.load import Beside, Level, arrival_times, run_level, summary
from octavo.bench.stats import percentile, spread_ms
from octavo.cli import main
from support.bench_api import FakeAPI, fake_api


@pytest.fixture
def api() -> Iterator[FakeAPI]:
    with fake_api() as server:
        yield server


def bench(api: FakeAPI, file: Path, *words: str) -> tuple[int, Any]:
    code = main(["bench", "serve", "--url", api.url, "--no-progress", "--json", str(file), *words])
    return code, json.loads(file.read_text())


# ---------------------------------------------------------------- what is counted
def test_every_token_is_counted_once(api: FakeAPI, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--max-concurrency", "1,4", "--num-prompts", "6", "--random-input-len", "5", "--random-output-len", "3"]
    code, document = bench(api, tmp_path / "deep" / "x.json", *words)
    one, four = document["levels"]
    assert (code, document["model"], document["benchmark"]) == (0, "tiny", "serve")
    for level in (one, four):
        assert (level["completed"], level["failed"], level["prompt_tokens"], level["output_tokens"]) == (6, 0, 30, 18)
        assert all(level[name]["p99"] >= 0 for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms"))
    assert 1 <= api.most <= 4
    measured = api.prompts[2:]  # after the two that warm up
    assert len(set(measured)) == len(measured) == 12
    assert {(b["model"], b["ignore_eos"], b["temperature"]) for b in api.bodies} == {("tiny", True, 0.0)}
    assert capsys.readouterr().out.count("\n") == 3


def test_the_seed_makes_the_prompts(api: FakeAPI, tmp_path: Path) -> None:
    for seed in ("7", "7", "8"):
        bench(api, tmp_path / "x.json", "--num-prompts", "4", "--num-warmups", "0", "--seed", seed)
    first, again, other = (sorted(api.prompts[i : i + 4]) for i in (0, 4, 8))
    assert first == again != other


def test_the_machine_and_the_settings_stand_in_the_file_and_the_key_does_not(api: FakeAPI, tmp_path: Path) -> None:
    _, document = bench(api, tmp_path / "x.json", "--num-prompts", "1", "--api-key", "secret")
    assert set(api.keys) == {"Bearer secret"}
    assert "secret" not in (tmp_path / "x.json").read_text()
    assert document["machine"]["cores"] >= 1 and document["machine"]["cpu"]
    assert (document["settings"]["num_prompts"], document["settings"]["request_rate"]) == (1, "inf")
    assert document["limits"] is None


def test_the_key_of_the_environment_is_sent(api: FakeAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "env")
    bench(api, tmp_path / "x.json", "--num-prompts", "1")
    assert set(api.keys) == {"Bearer env"}


def test_the_chat_api_is_measured_alike(api: FakeAPI, tmp_path: Path) -> None:
    words = ["--endpoint", "/v1/chat/completions", "--num-prompts", "3", "--model", "mine", "--no-ignore-eos"]
    code, document = bench(api, tmp_path / "x.json", *words, "--random-output-len", "5")
    assert (code, document["levels"][0]["output_tokens"]) == (0, 15)
    assert set(api.paths) == {"/v1/chat/completions"}
    assert {b["model"] for b in api.bodies} == {"mine"} and not any("ignore_eos" in b for b in api.bodies)


def test_pieces_are_counted_where_the_server_tells_no_usage(api: FakeAPI, tmp_path: Path) -> None:
    api.tells_usage = False
    _, document = bench(api, tmp_path / "x.json", "--num-prompts", "2", "--random-output-len", "4")
    (level,) = document["levels"]
    assert (level["output_tokens"], level["prompt_tokens"], level["total_tok_s"]) == (8, None, None)


def test_rates_and_times_come_from_the_stamps() -> None:
    replies = [Reply(start, [start + 1, start + 1.5, start + 2], start + 2, 10, 3) for start in (0.0, 5.0)]
    found = summary(Level(2, math.inf), replies, 4.0)
    assert (found["requests_per_s"], found["output_tok_s"], found["total_tok_s"]) == (0.5, 1.5, 6.5)
    assert found["ttft_ms"]["median"] == 1000 and found["e2el_ms"]["mean"] == 2000
    assert found["itl_ms"]["p99"] == found["tpot_ms"]["mean"] == 500


def test_percentiles_lie_between_values_and_the_50th_is_the_median() -> None:
    values = [float(i) for i in range(1, 101)]
    assert [percentile(values, p) for p in (0, 50, 99, 100)] == pytest.approx([1, 50.5, 99.01, 100])
    assert percentile([3.0], 50) == percentile([3.0], 99) == 3
    assert spread_ms([]) is None
    figures = spread_ms([0.004, 0.001, 0.002])
    assert figures is not None
    assert (figures["median"], figures["p50"], figures["p99"], figures["max"]) == (2, 2, 3.96, 4)


def test_one_stream_is_told_as_a_share_of_the_memory(
    api: FakeAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "measure_limits", lambda: Limits(2, 20.0, 100.0, 400.0))
    words = ["--max-concurrency", "1,2", "--num-prompts", "4", "--weight-bytes", "2G"]
    _, document = bench(api, tmp_path / "x.json", *words)
    one, two = document["levels"]
    rate = 2 * 2**30 / one["tpot_ms"]["median"] / 1e6
    assert one["weights_gb_s"] == pytest.approx(rate, abs=0.01)
    assert one["memory_share"] == pytest.approx(rate / 20, abs=0.001)
    assert "weights_gb_s" not in two
    assert document["limits"]["memory_read_gb_s"] == 20
    assert "of the memory's 20.0 GB/s" in capsys.readouterr().out


# ---------------------------------------------------------------- failures
@pytest.mark.parametrize(
    ("failure", "told"),
    [
        ("429", "the server refused (429): busy"),
        ("error", "the engine died"),
        ("cut", "the stream ended early"),
        ("silent", "the stream ended without any text"),
        ("garbage", "the server sent what is no completion"),
    ],
)
def test_a_failed_request_is_counted_and_told_and_the_others_go_on(
    api: FakeAPI, tmp_path: Path, capsys: pytest.CaptureFixture[str], failure: str, told: str
) -> None:
    api.failures = ["", "", failure, "", failure]
    code, document = bench(api, tmp_path / "x.json", "--num-prompts", "5", "--random-output-len", "4")
    (level,) = document["levels"]
    assert (code, level["completed"], level["failed"], level["output_tokens"]) == (1, 3, 2, 12)
    ((error, count),) = level["errors"].items()
    assert told in error and count == 2
    assert f"2 x failed: {error}" in capsys.readouterr().out


def test_a_level_without_one_good_reply_has_no_times(api: FakeAPI, tmp_path: Path) -> None:
    api.failures = ["503"] * 3
    code, document = bench(api, tmp_path / "x.json", "--num-prompts", "3", "--num-warmups", "0")
    (level,) = document["levels"]
    assert (code, level["completed"], level["failed"], level["ttft_ms"]) == (1, 0, 3, None)


def test_a_server_that_refuses_the_first_request_ends_the_benchmark(
    api: FakeAPI, capsys: pytest.CaptureFixture[str]
) -> None:
    api.failures = ["401"]
    assert main(["bench", "serve", "--url", api.url + "/v1/", "--no-progress"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("octavo bench serve: error: a first request to http://127.0.0.1:")
    assert error.endswith("failed: the server refused (401): busy\n")


def test_a_server_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeAPI() as closed:
        url = closed.url
    assert main(["bench", "serve", "--url", url, "--no-progress"]) == 1
    assert f"octavo bench serve: error: no answer from {url}" in capsys.readouterr().err


# ---------------------------------------------------------------- when requests are sent
class FakeClock:
    """Time passes only in `sleep`, after everything that is ready has run."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        self.time += seconds


def load(level: Level, count: int, send: Any, clock: FakeClock) -> Any:
    prompts = [Prompt("x", 1)] * count
    return asyncio.run(run_level(level, prompts, send, random.Random(3), clock=clock))


def test_requests_are_sent_at_the_times_of_the_rate() -> None:
    clock, sent = FakeClock(), []

    async def send(prompt: Prompt) -> Reply:
        sent.append(clock.now() - 100)
        return Reply(clock.now(), [clock.now()], clock.now(), 1, 1)

    found = load(Level(None, 5.0), 2000, send, clock)
    assert sent == pytest.approx(arrival_times(2000, 5.0, random.Random(3)))
    assert sent[0] == 0 and sent[-1] == pytest.approx(400, rel=0.1)
    assert found["requests_per_s"] == pytest.approx(5, rel=0.1) and found["request_rate"] == 5


def test_no_more_requests_run_than_are_allowed() -> None:
    clock, running, most = FakeClock(), 0, 0

    async def send(prompt: Prompt) -> Reply:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await clock.sleep(1)
        running -= 1
        return Reply(0, [1], 1, 1, 1)

    found = load(Level(3, math.inf), 10, send, clock)
    assert (most, found["completed"]) == (3, 10)
    load(Level(None, math.inf), 10, send, clock)
    assert most == 10


def test_prompts_beside_the_load_arrive_at_intervals_and_are_not_counted() -> None:
    sent: list[str] = []

    async def run() -> Any:
        enough, ended = asyncio.Event(), asyncio.Event()

        async def send(prompt: Prompt) -> Reply:
            sent.append(str(prompt.content))
            if prompt.content == "own":
                await enough.wait()
                return Reply(0, [1], 1, 1, 1)
            if sent.count("beside") == 5:
                enough.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            raise AssertionError

        beside = Beside(lambda: Prompt("beside", 1), 2.0)
        found = await run_level(
            Level(2, math.inf), [Prompt("own", 1)] * 2, send, random.Random(3), beside=beside, clock=FakeClock()
        )
        assert ended.is_set()
        return found

    found = asyncio.run(asyncio.wait_for(run(), 30))
    assert found["completed"] == 2 and found["failed"] == 0 and sent.count("beside") >= 5


# ---------------------------------------------------------------- prompts of a file
def talk(*texts: str) -> dict[str, Any]:
    return {"conversations": [{"from": "x", "value": text} for text in texts]}


def test_a_sharegpt_file_gives_questions_and_the_length_of_their_answers(api: FakeAPI, tmp_path: Path) -> None:
    file = tmp_path / "talks.json"
    fitting = [talk(f"What is the capital of country {i}?", "x" * 4 * (10 + i), "more") for i in range(4)]
    others = [talk("Hi"), talk("Hi", "x" * 40), talk("A long question: " + "x" * 5000, "y" * 40), {"conversations": []}]
    file.write_text(json.dumps([*others, *fitting]))
    words = ["--dataset-name", "sharegpt", "--dataset-path", str(file), "--num-prompts", "4", "--num-warmups", "0"]
    _, document = bench(api, tmp_path / "x.json", *words)
    assert sorted(api.prompts) == [f"What is the capital of country {i}?" for i in range(4)]
    assert document["levels"][0]["output_tokens"] == 10 + 11 + 12 + 13
    bench(api, tmp_path / "x.json", *words, "--sharegpt-output-len", "6")
    assert {b["max_tokens"] for b in api.bodies[4:]} == {6}


@pytest.mark.parametrize(
    ("content", "told"),
    [("[]", "has 0 fitting"), ("{", "is not JSON"), ("[1]", "not a list of ShareGPT"), (None, "cannot read")],
)
def test_a_file_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, told: str
) -> None:
    file = tmp_path / "talks.json"
    if content is not None:
        file.write_text(content)
    assert main(["bench", "serve", "--dataset-name", "sharegpt", "--dataset-path", str(file)]) == 2
    assert told in capsys.readouterr().err


# ---------------------------------------------------------------- the command line
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--num-promts 3", "unknown flag --num-promts; did you mean --num-prompts?"),
        ("--max-concurrency 1,0", "--max-concurrency must be at least 1; got 0"),
        ("--max-concurrency 1,x", "--max-concurrency must be a whole number; got 'x'"),
        ("--request-rate nan", "--request-rate must be a finite number"),
        ("--request-rate 0", "--request-rate must be greater than 0"),
        ("--url ftp://x", "--url must be HOST:PORT or an http or https address; got 'ftp://x'"),
        ("--endpoint /v1/embeddings", "--endpoint must be one of /v1/completions, /v1/chat/completions"),
        ("--dataset-name sharegpt", "--dataset-name sharegpt and --dataset-path must be given together"),
        ("--beside-interval 2", "--beside-interval goes with --beside-input-len"),
        ("--backend openai-chat", "--endpoint chooses the route"),
        ("--host 127.0.0.1", "--url http://HOST:PORT"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("octavo bench serve: error: ") and told in error


def test_settings_of_vllms_users_are_understood(api: FakeAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = "--backend vllm --num_prompts=2 --request-rate inf --disable-tqdm --save-result --max-concurrency 1 2"
    assert main(["bench", "serve", "--base-url", api.url, *words.split(), "--model", "org/tiny"]) == 0
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("bench-serve-org-tiny-")
    assert [level["max_concurrency"] for level in json.loads(file.read_text())["levels"]] == [1, 2]


def test_the_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 2 and main(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"bench {name}" in text for name in ("serve", "throughput", "latency", "kernels"))
    assert main(["bench", "serv"]) == 2
    assert capsys.readouterr().err == "octavo bench: error: unknown command serv; did you mean serve?\n"
    assert main(["benhc"]) == 2
    assert "did you mean bench?" in capsys.readouterr().err
