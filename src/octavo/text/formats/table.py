"""The formats that octavo knows, one row each."""

from __future__ import annotations

from typing import Final

from octavo.text.formats.base import ReasoningFormat, ToolFormat
from octavo.text.formats.json_calls import JsonCalls
from octavo.text.formats.named_calls import NamedCalls

# DeepSeek's marks are written with a full-width bar and a lower block.
_CALLS: Final = "<\uff5ctool\u2581calls\u2581begin\uff5c>"
_CALLS_END: Final = "<\uff5ctool\u2581calls\u2581end\uff5c>"
_CALL: Final = "<\uff5ctool\u2581call\u2581begin\uff5c>"
_CALL_END: Final = "<\uff5ctool\u2581call\u2581end\uff5c>"
_SEP: Final = "<\uff5ctool\u2581sep\uff5c>"
_HERMES: Final = JsonCalls(before="\n", after="\n", end="</tool_call>")

_TOOL_ROWS: Final = (
    # Hermes 2 Pro and later, Qwen2.5, Qwen3
    ToolFormat("hermes", _HERMES, ("<tool_call>",), ("</tool_call>",)),
    # any model: a list of calls, as the grammar of `required` makes it
    ToolFormat("json", JsonCalls("parameters", is_list=True, only_known=True), openers="[{"),
    ToolFormat(
        "llama3_json",
        JsonCalls("parameters", separator="; ", only_known=True),
        ("<|python_tag|>",), ("<|eom_id|>", "<|eot_id|>"), openers="{",
    ),
    ToolFormat(
        "granite", JsonCalls(is_list=True), ("<|tool_call|>", "<tool_call>", "<function_call>"),
        ("</tool_call>", "</function_call>"),
    ),
    ToolFormat(
        "phi4_mini_json", JsonCalls(is_list=True), ("functools", "<|tool_call|>"), ("<|/tool_call|>",)
    ),
    ToolFormat(
        "internlm", JsonCalls("parameters", before="\n", end="<|action_end|>"),
        ("<|action_start|><|plugin|>", "<|action_start|> <|plugin|>"), ("<|action_end|>",),
    ),
    ToolFormat(
        "jamba", JsonCalls(is_list=True, before="\n", after="\n", end="</tool_calls>"),
        ("<tool_calls>",), ("</tool_calls>",),
    ),
    ToolFormat(
        "deepseek_v3",
        NamedCalls(
            ("\n```json\n", "\n```\n", "\n", _SEP), opening=f"function{_SEP}", closing=("\n```", _CALL_END),
            begin=_CALL, end=_CALLS_END,
        ),
        (_CALL,), (_CALLS_END,), noise=(_CALLS, _CALL_END, _CALLS_END), extra_marks=(_SEP,),
    ),
    ToolFormat(
        "deepseek_v31",
        NamedCalls((_SEP,), closing=(_CALL_END,), begin=_CALL, end=_CALLS_END),
        (_CALL,), (_CALLS_END,), noise=(_CALLS, _CALL_END, _CALLS_END), extra_marks=(_SEP,),
    ),
    ToolFormat(
        "kimi_k2",
        NamedCalls(
            ("<|tool_call_argument_begin|>",), closing=("<|tool_call_end|>",), is_numbered=True,
            begin="<|tool_call_begin|>", end="<|tool_calls_section_end|>",
        ),
        ("<|tool_call_begin|>",), ("<|tool_calls_section_end|>",),
        noise=("<|tool_calls_section_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"),
        extra_marks=("<|tool_call_argument_begin|>",),
    ),
)  # fmt: skip

_THINK: Final = ("<think>", "</think>")
_REASONING_ROWS: Final = (
    ReasoningFormat("deepseek_r1", *_THINK, is_implicit=True),
    ReasoningFormat("qwen3", *_THINK),
    ReasoningFormat("glm45", *_THINK),
    ReasoningFormat("kimi_k2", *_THINK),
    ReasoningFormat("deepseek_v3", *_THINK),
    ReasoningFormat("minimax_m2", *_THINK, is_implicit=True),
    ReasoningFormat("mistral", "[THINK]", "[/THINK]"),
    ReasoningFormat("seed_oss", "<seed:think>", "</seed:think>"),
    ReasoningFormat(
        "granite", "Here is my thought process:", "Here is my response:",
        other_begins=("Here's my thought process:",), other_ends=("Here's my response:",),
    ),
)  # fmt: skip

#: Name -> row. What is written here once is never changed, but for rows that plug-ins add.
TOOL_FORMATS: Final = {row.name: row for row in _TOOL_ROWS}
REASONING_FORMATS: Final = {row.name: row for row in _REASONING_ROWS}
