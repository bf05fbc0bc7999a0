"""Every tool format from generated tokens to the official client: marks as plain text, and as special tokens (F20 to
F30, C7).

The text is forced, but for the places where the model chooses, through requests in auto mode; the parser sees the
tokens of a real engine, streamed and not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from openai import OpenAI

from api.tool_clients import reply_of
from octavo.text.formats.table import TOOL_FORMATS
from support.server_process import TESTS, ServerProcess
from support.tool_fakes import CLOCK
from support.tool_texts import OPEN, TEXTS

pytestmark = pytest.mark.model

FLAGS = (
    "--enable-auto-tool-choice", "--tool-call-parser", "json", "--max-model-len", "2048",
    "--num-kv-blocks-override", "256", "--served-model-name", *TOOL_FORMATS,
)  # fmt: skip
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}
#: What tells a token from words: <...> and [...].
_TOKEN = re.compile(r"<[^<>\s]+>|\[[A-Z_/]+\]")
_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def make_model(directory: Path, source: Path) -> Path:
    """A tiny random model whose vocabulary has the marks of all formats as special tokens."""
    tokenizer = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    marks = {token for row in TOOL_FORMATS.values() for mark in row.marks for token in _TOKEN.findall(mark)}
    tokenizer.add_special_tokens(sorted(marks))
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "chat_template": _TEMPLATE})
    )
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=-(-tokenizer.get_vocab_size() // 64) * 64, hidden_size=64, intermediate_size=128,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=2048,
        tie_word_embeddings=True, eos_token_id=tokenizer.token_to_id("<|im_end|>"),
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def client_of(model: Path) -> Iterator[OpenAI]:
    with ServerProcess(model, *FLAGS, program=TESTS / "support" / "format_serve.py") as process:
        url = process.wait_ready(180).url
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            yield client


@pytest.fixture(scope="module")
def plain(smollm2_hf: Path) -> Iterator[OpenAI]:
    yield from client_of(smollm2_hf)


@pytest.fixture(scope="module")
def special(smollm2_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    yield from client_of(make_model(tmp_path_factory.mktemp("model"), smollm2_hf))


def ask(client: OpenAI, name: str, text: str, **fields: Any) -> Any:
    return reply_of(
        client, model=name, messages=[{"role": "user", "content": "What is the weather?"}], tools=[WEATHER, CLOCK],
        max_tokens=600, extra_body={"guided_choice": [text]}, **fields,
    )  # fmt: skip


def check(name: str, client: OpenAI) -> None:
    text = TEXTS[name]
    reply = ask(client, name, text)
    (function, arguments), *others = reply.calls
    assert function == "get_weather"
    first = json.loads(arguments)
    assert re.fullmatch(OPEN["CITY"], first.pop("city"))
    assert first.pop("days") in range(1, 10) and not first
    assert others == ([("get_time", "{}")] if "get_time" in text else [])
    assert (reply.content or "").strip() == ("Let me see." if text.count("Let me see.") else "")
    assert reply.finish_reason == "tool_calls"
    style = {"mistral": "[A-Za-z0-9]{9}", "kimi_k2": r"functions\.\w+:\d"}.get(name.removesuffix("_v11"))
    assert all(re.fullmatch(style or "chatcmpl-tool-[0-9a-f]{32}", call_id) for call_id in reply.call_ids)


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_calls_are_read_from_marks_in_plain_text(name: str, plain: OpenAI) -> None:
    check(name, plain)


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_calls_are_read_from_marks_that_are_special_tokens(name: str, special: OpenAI) -> None:
    check(name, special)


@pytest.mark.parametrize("name", [name for name, row in TOOL_FORMATS.items() if row.pipeline is None])
def test_forced_calls_are_written_and_read_with_special_tokens(name: str, special: OpenAI) -> None:
    """F5, F6: a model that knows nothing cannot do otherwise."""
    schema = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema | {"additionalProperties": False}}}
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        reply = reply_of(
            special, model=name, messages=[{"role": "user", "content": "Go."}], tools=[tool], tool_choice=choice,
            parallel_tool_calls=False, max_tokens=600,
        )  # fmt: skip
        assert [function for function, _ in reply.calls] == ["f"]
        assert json.loads(reply.calls[0][1])["city"] in ("Oslo", "Rome")
        assert not reply.content


def test_there_is_a_text_for_every_format() -> None:
    assert TEXTS.keys() == TOOL_FORMATS.keys()
