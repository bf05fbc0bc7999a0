"""Thinking on real weights: a template that opens it, a budget that ends it, a constraint that begins after it (U4)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openai import OpenAI

from support.server_process import ServerProcess

pytestmark = pytest.mark.model

MODEL = "smol"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
    "{% if enable_thinking is false %}\n</think>\n\n{% endif %}{% endif %}"
)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "sure": {"type": "boolean"}},
    "required": ["city", "sure"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
ASK: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def client(smollm2_gguf: Path) -> Iterator[OpenAI]:
    flags = ("--served-model-name", MODEL, "--max-model-len", "1024", "--num-kv-blocks-override", "256")
    with ServerProcess(smollm2_gguf, *flags, "--reasoning-parser", "qwen3", "--chat-template", TEMPLATE) as process:
        process.wait_ready(180)
        with OpenAI(base_url=f"{process.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            yield client


def ask(client: OpenAI, **fields: Any) -> tuple[str | None, str | None, str, Any]:
    """(reasoning, content, finish reason, usage); the stream gives the same."""
    extra = {name: fields.pop(name) for name in ("thinking_token_budget", "enable_thinking") if name in fields}
    fields = {"model": MODEL, "messages": ASK, "max_tokens": 80, "temperature": 0, "extra_body": extra} | fields
    reply = client.chat.completions.create(**fields)
    choice = reply.choices[0]
    thought, content = "", ""
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        for part in chunk.choices:
            thought += getattr(part.delta, "reasoning_content", None) or ""
            content += part.delta.content or ""
    reasoning: str | None = choice.message.reasoning_content  # type: ignore[attr-defined]
    assert (thought or None, content or None) == (reasoning, choice.message.content)
    usage = chunks[-1].usage
    assert usage is not None and usage.completion_tokens_details == reply.usage.completion_tokens_details  # type: ignore[union-attr]
    return reasoning, choice.message.content, choice.finish_reason, reply.usage


def test_a_budget_ends_the_thinking_and_the_answer_fits_its_schema(client: OpenAI) -> None:
    reasoning, content, reason, usage = ask(client, thinking_token_budget=12, response_format=FORMAT)
    assert reasoning and reason == "stop"
    jsonschema.validate(json.loads(content or ""), SCHEMA)
    # The mark is no special token of this vocabulary: it takes some tokens to spell.
    assert 1 <= usage.completion_tokens_details.reasoning_tokens <= 12 + 6
    assert usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens


def test_no_budget_at_all_goes_to_the_answer_at_once(client: OpenAI) -> None:
    reasoning, content, _, _ = ask(client, thinking_token_budget=0, response_format=FORMAT)
    assert reasoning is None
    jsonschema.validate(json.loads(content or ""), SCHEMA)


def test_thinking_that_a_limit_cuts_off_leaves_no_content(client: OpenAI) -> None:
    reasoning, content, reason, usage = ask(client, max_tokens=6)
    assert reasoning and (content, reason) == (None, "length")
    assert usage.completion_tokens_details.reasoning_tokens == 6


def test_thinking_that_the_template_closes_leaves_all_to_the_answer(client: OpenAI) -> None:
    reasoning, content, _, usage = ask(client, enable_thinking=False, response_format=FORMAT)
    assert reasoning is None
    jsonschema.validate(json.loads(content or ""), SCHEMA)
    assert usage.completion_tokens_details.reasoning_tokens == 0
