"""Beam search and `suffix` on real weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo import LLM, BeamParams, SamplingParams
from support.server_process import ServerProcess

PROMPT = "The three primary colours are"
LIMITS = ("--max-model-len", "512", "--num-kv-blocks-override", "128")


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path) -> Iterator[ServerProcess]:
    with ServerProcess(smollm2_gguf, *LIMITS) as process:
        yield process.wait_ready(180)


def beams(server: ServerProcess, **fields: Any) -> list[Any]:
    body = {"use_beam_search": True, "best_of": 4, "max_tokens": 12, "logprobs": 1, **fields}
    choices: list[Any] = server.complete(PROMPT, **body).json["choices"]
    return choices


def total(choice: Any) -> float:
    return float(sum(choice["logprobs"]["token_logprobs"]))


def test_s21_beams_are_ranked_and_beat_the_greedy_text(server: ServerProcess) -> None:
    choices = beams(server, n=4, ignore_eos=True)
    assert [total(c) for c in choices] == sorted(map(total, choices), reverse=True)
    assert len({c["text"] for c in choices}) == 4
    greedy = server.complete(PROMPT, max_tokens=12, temperature=0, logprobs=1, ignore_eos=True).json["choices"][0]
    assert total(choices[0]) >= total(greedy) - 1e-4
    # What the beam says of itself is what the model says of its text.
    tokens = "".join(choices[0]["logprobs"]["tokens"])
    assert tokens == choices[0]["text"]


def test_s21_the_same_again_alone_and_in_company(server: ServerProcess) -> None:
    first, again = (beams(server, n=2) for _ in range(2))
    assert [c["text"] for c in first] == [c["text"] for c in again]
    assert [c["text"] for c in beams(server, n=2, best_of=4, stream=False)] == [c["text"] for c in first]
    fields = {"use_beam_search": True, "best_of": 4, "n": 2, "max_tokens": 12}
    texts = ["", ""]
    for item in server.stream("/v1/completions", {"prompt": PROMPT, **fields}):
        for choice in item["choices"] if item != "[DONE]" else ():
            texts[choice["index"]] += choice["text"]
    assert texts == [c["text"] for c in first]


def test_s22_a_length_penalty_changes_what_is_best(server: ServerProcess) -> None:
    """With a large exponent long texts win, with a negative one short ones."""
    prompt = "Q: 1+1?\nA: 2\n\nQ: 2+2?\nA:"
    body = {"use_beam_search": True, "best_of": 4, "max_tokens": 8, "early_stopping": "never"}
    lengths = []
    for penalty in (-8.0, 8.0):
        reply = server.complete(prompt, stop_token_ids=[198], length_penalty=penalty, **body).json
        lengths.append(reply["usage"]["completion_tokens"])
    assert lengths[0] <= lengths[1]


def test_offline_beams_are_the_server_s(smollm2_gguf: Path, server: ServerProcess) -> None:
    expected = [c["text"] for c in beams(server, n=2)]
    params = SamplingParams(temperature=0.0, n=2, max_tokens=12)
    with LLM(str(smollm2_gguf), max_model_len=512, num_kv_blocks_override=128) as llm:
        (result,) = llm.generate(PROMPT, params, use_tqdm=False, beams=BeamParams(width=4))
    assert [output.text for output in result.outputs] == expected


def test_c6_a_model_without_the_tokens_refuses_a_suffix(server: ServerProcess) -> None:
    reply = server.complete("def f():", suffix="x")
    assert (reply.status, reply.json["error"]["param"]) == (400, "suffix")


def test_c6_qwen_coder_fills_the_hole(qwen_gguf: Path) -> None:
    before = 'def add(a, b):\n    """The sum of two numbers."""\n    return '
    after = "\n\n\nprint(add(1, 2))\n"
    with ServerProcess(qwen_gguf, "--max-model-len", "512", "--num-kv-blocks-override", "64") as process:
        server = process.wait_ready(180)
        reply = server.complete(before, suffix=after, max_tokens=24, temperature=0, stop=["\n\n"]).json
        assert reply["choices"][0]["text"].strip() == "a + b"
        ids = [server.request("POST", "/tokenize", {"prompt": text}).json["count"] for text in (before, after)]
        assert reply["usage"]["prompt_tokens"] == sum(ids) + 3
