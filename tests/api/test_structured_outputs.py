"""Structured output, end to end: a small model that knows little of JSON, and documents that are always valid."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from openai import OpenAI

from support.server_process import ServerProcess

pytestmark = pytest.mark.model

MODEL = "smol"
FLAGS = ("--served-model-name", MODEL, "--max-model-len", "1024", "--num-kv-blocks-override", "256")
ASK: list[Any] = [{"role": "user", "content": "Describe a person named Ann as JSON."}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["kind", "tall", "old"]}, "maxItems": 3},
        "born": {"type": "string", "format": "date"},
    },
    "required": ["name", "age", "tags", "born"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path) -> Iterator[ServerProcess]:
    with ServerProcess(smollm2_gguf, *FLAGS) as process:
        yield process.wait_ready(180)


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def text_of(client: OpenAI, **fields: Any) -> tuple[str, str]:
    fields = {"model": MODEL, "messages": ASK, "max_tokens": 200, "temperature": 1.0, "seed": 3} | fields
    (choice,) = client.chat.completions.create(**fields).choices
    return choice.message.content or "", choice.finish_reason


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_schema_yields_a_valid_document(client: OpenAI, seed: int) -> None:
    text, reason = text_of(client, response_format=FORMAT, seed=seed)
    assert reason == "stop"
    jsonschema.validate(json.loads(text), SCHEMA, format_checker=jsonschema.FormatChecker())


def test_streamed_is_whole(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "messages": ASK, "max_tokens": 200, "temperature": 0}
    whole = client.chat.completions.create(**fields, response_format=FORMAT)
    events = list(client.chat.completions.create(**fields, response_format=FORMAT, stream=True))
    streamed = "".join(c.delta.content or "" for event in events for c in event.choices)
    assert streamed == whole.choices[0].message.content
    json.loads(streamed)
    assert [c.finish_reason for event in events for c in event.choices if c.finish_reason] == ["stop"]


def test_other_kinds(client: OpenAI) -> None:
    assert text_of(client, extra_body={"guided_choice": ["red", "green"]})[0] in ("red", "green")
    text, _ = text_of(client, extra_body={"guided_regex": r"[a-c]{3}-\d{2}"})
    assert re.fullmatch(r"[a-c]{3}-\d{2}", text)
    text, _ = text_of(client, extra_body={"guided_grammar": 'root ::= ("x" | "y") "=" [0-9] [0-9]'})
    assert re.fullmatch(r"[xy]=\d\d", text)
    text, reason = text_of(client, response_format={"type": "json_object"}, max_tokens=300, temperature=0)
    assert reason == "length" or isinstance(json.loads(text), dict)
    text, _ = text_of(client, extra_body={"structured_outputs": {"json": {"type": "boolean"}}})
    assert text in ("true", "false")


def test_completions_samples_and_logprobs(client: OpenAI) -> None:
    reply = client.completions.create(
        model=MODEL, prompt=["A colour:", "A number:"], n=2, max_tokens=20, temperature=1.0, seed=1, logprobs=2,
        extra_body={"guided_choice": ["red", "blue", "seven"]},
    )  # fmt: skip
    assert len(reply.choices) == 4
    for choice in reply.choices:
        assert choice.text in ("red", "blue", "seven") and choice.finish_reason == "stop"
        assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
        assert all(value is not None and value > -200 for value in choice.logprobs.token_logprobs)


def test_min_tokens_and_ignore_eos_and_stop_strings(client: OpenAI) -> None:
    # The grammar's end comes first, whatever min_tokens says.
    assert text_of(client, extra_body={"guided_choice": ["red"], "min_tokens": 50})[0] == "red"
    text, reason = text_of(client, max_tokens=40, extra_body={"guided_regex": "[ab]+", "min_tokens": 30})
    assert re.fullmatch("[ab]+", text) and (reason == "length" or len(text) >= 30)
    text, reason = text_of(client, max_tokens=40, extra_body={"guided_regex": "[ab]+", "ignore_eos": True})
    assert re.fullmatch("[ab]+", text) and reason == "length"
    text, _ = text_of(client, stop=['"age"'], response_format=FORMAT)
    assert text.startswith("{") and '"age"' not in text


def test_a_text_that_is_dictated_is_counted_and_searched_like_any_other(client: OpenAI) -> None:
    """G26: its tokens arrive many at once."""
    sentence = "The quick brown fox jumps over the lazy dog."
    fields: dict[str, Any] = {"model": MODEL, "messages": ASK, "extra_body": {"guided_choice": [sentence]}}
    whole = client.chat.completions.create(**fields, max_tokens=60, n=2)
    assert [choice.message.content for choice in whole.choices] == [sentence, sentence]
    assert whole.usage is not None and 2 * 10 <= whole.usage.completion_tokens <= 2 * len(sentence)
    events = list(client.chat.completions.create(**fields, max_tokens=60, stream=True))
    deltas = [c.delta.content for event in events for c in event.choices if c.delta.content]
    assert "".join(deltas) == sentence and len(deltas) <= 5
    assert text_of(client, **fields, stop=["fox"]) == ("The quick brown ", "stop")
    for max_tokens in (1, 2, 5):
        cut = client.chat.completions.create(**fields, max_tokens=max_tokens)
        assert cut.usage is not None and cut.usage.completion_tokens == max_tokens
        assert cut.choices[0].finish_reason == "length"
        assert sentence.startswith(cut.choices[0].message.content or "?")


def test_a_grammar_that_cannot_be_used_is_a_400_and_the_next_request_is_served(client: OpenAI) -> None:
    bodies: list[Any] = [
        {"guided_json": {"if": {}}},
        {"guided_grammar": "start: missing"},
        {"guided_regex": "a{1000000000}{1000000000}"},
        {"guided_json": {"oneOf": [{"type": "integer"}, {"type": "number"}]}},
    ]
    for body in bodies:
        with pytest.raises(openai.BadRequestError) as caught:
            text_of(client, extra_body=body)
        assert str(caught.value.param).startswith(next(iter(body)))
    assert text_of(client, extra_body={"guided_choice": ["red"]}) == ("red", "stop")


def test_a_deep_chain_of_references_is_compiled_on_both_sides(client: OpenAI) -> None:
    chain: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(1000)}
    schema = {"$defs": {**chain, "d1000": {"type": "boolean"}}, "$ref": "#/$defs/d0"}
    assert text_of(client, extra_body={"guided_json": schema})[0] in ("true", "false")


def test_guided_and_free_requests_share_the_steps(client: OpenAI) -> None:
    def ask(i: int) -> tuple[bool, str]:
        guided = i % 2 == 0
        extra: dict[str, Any] = {"response_format": FORMAT} if guided else {}
        return guided, text_of(client, seed=i, max_tokens=150, **extra)[0]

    with ThreadPoolExecutor(8) as pool:
        for guided, text in pool.map(ask, range(8)):
            assert text
            if guided:
                jsonschema.validate(json.loads(text), SCHEMA)
