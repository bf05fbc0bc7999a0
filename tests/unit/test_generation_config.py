"""Where the defaults of requests come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidConfig
from octavo.files.generation_config import default_sampling
from support.server_fakes import CONTEXT, make_server

FILE = {
    "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": None, "repetition_penalty": 1, "max_new_tokens": 99,
    "do_sample": True, "eos_token_id": [1, 2], "transformers_version": "5.0",
}  # fmt: skip
READ = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.0, "max_tokens": 99}


def write(directory: Path, content: Any) -> Path:
    (directory / "generation_config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


def defaults(model: Path, **config: Any) -> dict[str, Any]:
    return default_sampling(ServerConfig(**config), str(model))


def refused(model: Path, **config: Any) -> str:
    with pytest.raises(InvalidConfig) as caught:
        defaults(model, **config)
    return caught.value.message


def test_auto_reads_the_models_own_file(tmp_path: Path) -> None:
    assert defaults(tmp_path) == {}
    assert defaults(tmp_path / "model.gguf") == {}
    assert defaults(write(tmp_path, FILE)) == READ


def test_vllm_reads_none(tmp_path: Path) -> None:
    assert defaults(write(tmp_path, FILE), generation_config="vllm") == {}


def test_a_directory_or_file_may_be_named_and_must_be_there(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert "generation_config.json" in refused(tmp_path, generation_config=str(other))
    write(other, FILE)
    assert defaults(tmp_path, generation_config=str(other)) == READ
    assert defaults(tmp_path, generation_config=str(other / "generation_config.json")) == READ


def test_the_override_wins_and_null_takes_away(tmp_path: Path) -> None:
    override = '{"temperature": 0.1, "top_k": null, "min_p": 0.05}'
    expected = {name: value for name, value in READ.items() if name != "top_k"} | {"temperature": 0.1, "min_p": 0.05}
    assert defaults(write(tmp_path, FILE), override_generation_config=override) == expected
    assert defaults(tmp_path, generation_config="vllm", override_generation_config=override) == {
        "temperature": 0.1, "min_p": 0.05,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"temperature": True}, "temperature must be a number"),
        ({"top_k": 1.5}, "top_k must be a number"),
        ({"temperature": -1}, "`temperature` must be in"),
        ({"top_p": -0.1}, "`top_p` must be in"),
        ({"max_new_tokens": 0}, "`max_tokens` must be at least 1"),
        ("[" * 100_000, "not valid JSON"),
        (" " * (1 << 20) + "{}", "larger than"),
    ],
)
def test_what_cannot_be_a_default_is_refused_at_start(tmp_path: Path, content: Any, said: str) -> None:
    message = refused(write(tmp_path, content))
    assert said in message
    assert str(tmp_path) in message
    assert defaults(tmp_path, generation_config="vllm") == {}


def test_an_override_that_means_nothing_is_refused(tmp_path: Path) -> None:
    assert "did you mean temperature" in refused(tmp_path, override_generation_config='{"temprature": 1}')
    assert "not valid JSON" in refused(tmp_path, override_generation_config="temperature=1")


# ---------------------------------------------------------------- what requests make of them
def test_defaults_are_for_what_a_request_leaves_out_or_gives_as_null() -> None:
    server = make_server(default_sampling={"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.2})
    server.chat()
    server.complete(temperature=None, top_k=None)
    server.chat(temperature=1.5, top_k=-1, repetition_penalty=1.0)
    seen = [(p.temperature, p.top_k, p.repetition_penalty) for p in (r.params for r in server.engine.requests)]
    assert seen == [(0.6, 20, 1.2), (0.6, 20, 1.2), (1.5, 0, 1.0)]


def test_a_default_of_max_tokens_never_makes_a_request_too_long() -> None:
    server = make_server(default_sampling={"max_tokens": 50})
    server.chat("x" * 5)
    server.chat("x" * (CONTEXT - 20 - len("user:")), max_tokens=None)
    server.chat("x", min_tokens=60)
    server.chat("x", max_tokens=70)
    assert [r.params.max_tokens for r in server.engine.requests] == [50, 20, 60, 70]


def test_s16_the_16_tokens_of_text_completions_never_make_a_request_too_long_either() -> None:
    server = make_server(default_sampling={"max_tokens": 50})
    for fields in ({}, {"max_tokens": None}):
        server.complete([1] * 10, **fields)
        server.complete([1] * (CONTEXT - 5), **fields)
        server.complete([1] * 10, min_tokens=60, **fields)
    assert [r.params.max_tokens for r in server.engine.requests] == [16, 5, 60] * 2
