"""`octavo.LLM` on real weights gives what the server gives."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from octavo import LLM, SamplingParams, StructuredOutputsParams
from support.server_process import ServerProcess, bound

PROMPTS = ["The capital of France is", "Once upon a time", "def add(a, b):"]
CHAT = [{"role": "user", "content": "Name a river."}]
LIMITS = {"max_model_len": 512, "num_kv_blocks_override": 128}


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path) -> Iterator[ServerProcess]:
    flags = [word for name, value in LIMITS.items() for word in (f"--{name}", str(value))]
    with ServerProcess(smollm2_gguf, *flags) as process:
        yield process.wait_ready(180)


@pytest.fixture(scope="module")
def llm(smollm2_gguf: Path) -> Iterator[LLM]:
    with LLM(str(smollm2_gguf), **LIMITS) as llm:
        yield llm


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.9, "seed": 5, "n": 2}], ids=str)
def test_a_batch_is_what_the_server_says_to_each_prompt(llm: LLM, server: ServerProcess, sampling: dict) -> None:
    results = llm.generate(PROMPTS, SamplingParams(max_tokens=12, logprobs=2, **sampling), use_tqdm=False)
    for prompt, result in zip(PROMPTS, results, strict=True):
        choices = server.complete(prompt, max_tokens=12, logprobs=2, **sampling).json["choices"]
        assert [o.text for o in result.outputs] == [c["text"] for c in choices]
        assert [o.finish_reason for o in result.outputs] == [c["finish_reason"] for c in choices]
        for output, choice in zip(result.outputs, choices, strict=True):
            assert output.logprobs is not None
            pairs = zip(output.token_ids, output.logprobs, strict=True)
            own = [position[token_id].logprob for token_id, position in pairs]
            assert own == pytest.approx(choice["logprobs"]["token_logprobs"])
            assert output.cumulative_logprob == pytest.approx(sum(own))
            assert all(1 <= len(position) <= 3 for position in output.logprobs)
            assert min(entry.rank for position in output.logprobs for entry in position.values()) == 1


def test_a_conversation_gets_the_server_s_reply(llm: LLM, server: ServerProcess) -> None:
    (result,) = llm.chat(CHAT, SamplingParams(temperature=0.0, max_tokens=16), use_tqdm=False)  # type: ignore[arg-type]
    body = {"messages": CHAT, "temperature": 0, "max_tokens": 16}
    reply = server.request("POST", "/v1/chat/completions", body).json
    assert result.outputs[0].text == reply["choices"][0]["message"]["content"]
    assert len(result.prompt_token_ids) == reply["usage"]["prompt_tokens"]


def test_a_program_that_forgets_to_close_it_ends_in_silence(smollm2_gguf: Path) -> None:
    program = (
        "import sys; from octavo import LLM; llm = LLM(sys.argv[1], max_model_len=64); print(len(llm.generate('a')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(smollm2_gguf)],
        capture_output=True,
        text=True,
        timeout=bound(120),
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert "Traceback" not in done.stderr, done.stderr


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.0, "seed": 7, "n": 2}], ids=str)
@pytest.mark.parametrize(
    "constraint", [{"json": SCHEMA}, {"regex": r"[A-Z][a-z]{2,8}, \d{2}"}], ids=lambda c: next(iter(c))
)
def test_g20_a_constraint_holds_and_gives_the_server_s_text(
    llm: LLM, server: ServerProcess, constraint: dict[str, Any], sampling: dict[str, Any]
) -> None:
    params = SamplingParams(max_tokens=64, structured_outputs=StructuredOutputsParams(**constraint), **sampling)
    results = llm.generate(PROMPTS, params, use_tqdm=False)
    for prompt, result in zip(PROMPTS, results, strict=True):
        choices = server.complete(prompt, max_tokens=64, structured_outputs=constraint, **sampling).json["choices"]
        assert [o.text for o in result.outputs] == [c["text"] for c in choices]
        assert [o.finish_reason for o in result.outputs] == [c["finish_reason"] for c in choices]
        for output in result.outputs:
            if output.finish_reason == "length":
                continue
            if "regex" in constraint:
                assert re.fullmatch(constraint["regex"], output.text)
            else:
                jsonschema.validate(json.loads(output.text), SCHEMA)
