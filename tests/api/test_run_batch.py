"""`octavo run-batch` as a process: killed at any line, stopped, over HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from support.client_fakes import TOKENIZER
from support.file_server import file_server
from support.server_process import TESTS, bound, eventually

NUM_LINES = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    TOKENIZER._backend.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text("{}")
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return directory


def batch_lines() -> str:
    body = {"model": "coder", "max_tokens": 8, "ignore_eos": True, "return_token_ids": True}
    lines = [
        {"custom_id": f"line {i}", "method": "POST", "url": "/v1/completions",
         "body": body | {"prompt": f"text {i}", "seed": i}}
        for i in range(NUM_LINES)
    ]  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in lines)


class Run:
    """The command with the fake model, 4 lines at a time."""

    def __init__(self, model: Path, source: str, target: str, *flags: str, step_seconds: float = 0.0) -> None:
        path = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, str(TESTS / "support" / "fake_serve.py"), "run-batch", "-i", source, "-o", target]
        self.process = subprocess.Popen(
            [*command, "--model", str(model), "--served-model-name", "coder", "--max-num-seqs", "2", *flags],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            env=os.environ | {"PYTHONPATH": path, "FAKE_STEP_SECONDS": str(step_seconds)},
        )  # fmt: skip

    def end(self) -> tuple[int, str]:
        """Exit code and log."""
        _, log = self.process.communicate(timeout=bound(60))
        return self.process.returncode, log


def results_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def ids_by_line(results: list[dict[str, Any]]) -> dict[str, list[int]]:
    return {result["custom_id"]: result["response"]["body"]["choices"][0]["token_ids"] for result in results}


def test_e40_killed_at_any_line_it_goes_on_and_loses_and_repeats_nothing(model: Path, tmp_path: Path) -> None:
    source, target, whole = tmp_path / "in", tmp_path / "out", tmp_path / "whole"
    source.write_text(batch_lines())
    for kill_after, signum in ((5, signal.SIGKILL), (23, signal.SIGTERM)):
        run = Run(model, str(source), str(target), step_seconds=0.02)
        eventually(
            lambda at=kill_after: (target.exists() and target.read_bytes().count(b"\n") >= at) or None, 30, "lines"
        )
        run.process.send_signal(signum)
        code, log = run.end()
        assert code == (-9 if signum == signal.SIGKILL else 143), log
        assert kill_after <= len(results_of(target)) < NUM_LINES
    with target.open("ab") as file:
        file.write(b'{"id":"batch_req_')  # as a kill in the middle of a write leaves it
    code, log = Run(model, str(source), str(target)).end()
    assert code == 0, log
    assert re.search(rf"{NUM_LINES} lines, (2[3-9]|[345]\d) of them done before", log)
    results = results_of(target)
    assert set(Counter(result["custom_id"] for result in results).values()) == {1}
    assert Run(model, str(source), str(whole)).end()[0] == 0
    assert ids_by_line(results) == ids_by_line(results_of(whole)) and len(results) == NUM_LINES
    code, log = Run(model, str(source), str(target)).end()
    assert code == 0 and "engine:" not in log, "nothing is left to do, and no model is loaded"


def test_e40_over_http_results_wait_until_they_can_be_put(model: Path, tmp_path: Path) -> None:
    with file_server() as server:
        server.files["/in"] = batch_lines().encode() + b"nonsense\n"
        flags = ["--output-tmp-dir", str(tmp_path), "--enable-metrics", "--url", "127.0.0.1", "--port", "0"]
        run = Run(model, server.url("/in"), server.url("/out?sig=1"), *flags, step_seconds=0.02)
        assert run.process.stderr is not None
        log: list[str] = []
        while not (found := re.search(r"metrics at (http://127.0.0.1:\d+/metrics)", log[-1] if log else "")):
            log.append(run.process.stderr.readline())
            assert log[-1], "".join(log)
        with urllib.request.urlopen(found[1], timeout=bound(10)) as reply:
            assert b'model_name="coder"' in reply.read()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(found[1].replace("/metrics", "/v1/models"), timeout=bound(10))
        server.refusals = [403]
        code, rest = run.end()
        assert code == 1 and "PUT" in rest and "it answered 403 Forbidden" in rest
        assert "sig" not in rest
        # The next signature is another one.
        code, rest = Run(model, server.url("/in"), server.url("/out?sig=2"), "--output-tmp-dir", str(tmp_path)).end()
        assert code == 3 and "1 results are errors" in rest and "engine:" not in rest
        results = [json.loads(line) for line in server.files["/out?sig=2"].splitlines()]
        assert len(results) == NUM_LINES + 1 and sum(result["error"] is not None for result in results) == 1
        assert list(tmp_path.iterdir()) == [], "what was put is not kept"
