"""The tool templates in examples/ and the output formats: what a template shows of earlier calls, its parser reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.text.formats.base import Tool
from octavo.text.formats.detect import detect_tool_format
from octavo.text.formats.output_parser import OutputFormat, OutputParser
from octavo.text.formats.registry import tool_format
from octavo.text.templates.chat_template import ChatTemplate
from octavo.text.templates.conversation import render_conversation

EXAMPLES = Path(__file__).parents[2] / "examples"
#: Template -> its format, and what ends a turn, which the model does not send as text.
FORMATS = {
    "hermes": ("hermes", "<|im_end|>\n"),
    "mistral": ("mistral", "</s>"),
    "mistral_parallel": ("mistral", "</s>"),
    "llama3.1_json": ("llama3_json", "<|eot_id|>"),
    "llama3.2_pythonic": ("pythonic", "<|eot_id|>"),
    "toolace": ("pythonic", "<|eot_id|>"),
    "granite": ("granite", "<|end_of_text|>\n"),
    "deepseekv3": ("deepseek_v3", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    "deepseekv31": ("deepseek_v31", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    "phi4_mini": ("phi4_mini_json", "<|end|>"),
    "internlm2_tool": ("internlm", "<|im_end|>\n"),
    "jamba": ("jamba", "<|eom|>"),
    "qwen3coder": ("qwen3_coder", "<|im_end|>\n"),
    "functiongemma": ("functiongemma", "<end_of_turn>\n"),
}
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "array"}, "c": {"type": "string"}},
}
CALLS = [("add", {"a": 1, "b": ["x", True, None], "c": 'say "hi"'}), ("now", {})]


def template(name: str) -> ChatTemplate:
    return ChatTemplate((EXAMPLES / f"tool_chat_template_{name}.jinja").read_text(encoding="utf-8"), SPECIALS)


def test_t16_every_tool_template_has_a_format() -> None:
    names = {path.name for path in EXAMPLES.glob("tool_chat_template_*.jinja")}
    assert names == {f"tool_chat_template_{name}.jinja" for name in FORMATS}


@pytest.mark.parametrize("name", FORMATS)
def test_t16_u2_the_format_is_told_from_the_template_and_named_in_it(name: str) -> None:
    source, (wanted, _) = template(name).source, FORMATS[name]
    assert detect_tool_format({"default": source}, lambda token: None) == wanted
    assert f"--tool-call-parser {wanted}" in " ".join(source.split())


@pytest.mark.parametrize("name", FORMATS)
def test_t16_the_parser_reads_what_the_template_shows_of_calls(name: str) -> None:
    wanted, end = FORMATS[name]
    made: list[dict[str, Any]] = [
        {"id": f"call-1234{i}", "type": "function", "function": {"name": function, "arguments": arguments}}
        for i, (function, arguments) in enumerate(CALLS)
    ]
    tools = [{"type": "function", "function": {"name": called, "parameters": PARAMETERS}} for called, _ in CALLS]
    question: list[dict[str, Any]] = [{"role": "user", "content": "Q"}]
    before = render_conversation(template(name), question, "auto", tools=tools)
    messages = [*question, {"role": "assistant", "content": None, "tool_calls": made}]
    whole = render_conversation(template(name), messages, "auto", tools=tools, add_generation_prompt=False)
    assert whole.startswith(before) and whole.endswith(end)
    known = [Tool(called, PARAMETERS) for called, _ in CALLS]
    parser = OutputParser(OutputFormat(tool_format(wanted), known_tools=known))
    deltas = [parser.push(whole.removeprefix(before).removesuffix(end)), parser.finish(truncated=False)]
    names = [call.name for delta in deltas for call in delta.calls if call.name is not None]
    texts: dict[int, str] = {}
    for delta in deltas:
        for call in delta.calls:
            texts[call.index] = texts.get(call.index, "") + call.arguments
    assert [(called, json.loads(texts[i])) for i, called in enumerate(names)] == CALLS
    assert "".join(delta.content for delta in deltas).strip() == ""
