"""Which formats a model writes, from the marks in its chat template and among its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class _Rule:
    """The first rule whose `needs` all stand in the text, and whose `lacks` do not, names the format."""

    format: str
    needs: tuple[str, ...]
    lacks: tuple[str, ...] = ()


_DEEPSEEK_CALL: Final = "tool\u2581call\u2581begin"

_TOOL_TEMPLATES: Final = (
    _Rule("openai", ("<|channel|>", "<|message|>")),
    _Rule("kimi_k2", ("<|tool_calls_section_begin|>",)),
    _Rule("deepseek_v4", ("\uff5cDSML\uff5c", "tool_calls>")),
    _Rule("deepseek_v32", ("\uff5cDSML\uff5c",)),
    _Rule("deepseek_v3", (_DEEPSEEK_CALL, "```json")),
    _Rule("deepseek_v31", (_DEEPSEEK_CALL,)),
    _Rule("step3", ("steptml:invoke",)),
    _Rule("seed_oss", ("<seed:tool_call>",)),
    _Rule("minimax_m2", ("<minimax:tool_call>",)),
    _Rule("glm47", ("<arg_key>", "}<arg_key>")),
    _Rule("glm45", ("<arg_key>",)),
    _Rule("qwen3_coder", ("<function=", "<parameter=")),
    _Rule("functiongemma", ("<start_function_call>",)),
    _Rule("gemma4", ("<|tool_call>",)),
    _Rule("gemma3", ("```tool_code",)),
    _Rule("lfm2", ("<|tool_call_start|>",)),
    _Rule("lfm2", ("<|tool_list_start|>",)),
    _Rule("olmo3", ("<function_calls>",)),
    _Rule("mistral_v11", ("[TOOL_CALLS]", "[ARGS]")),
    _Rule("mistral", ("[TOOL_CALLS]",)),
    _Rule("internlm", ("<|action_start|>", "<|plugin|>")),
    _Rule("granite", ("<|tool_call|>",), ("<|/tool_call|>", "<|/tool|>")),
    _Rule("phi4_mini_json", ("<|tool|>", "<|/tool|>")),
    _Rule("phi4_mini_json", ("<|/tool_call|>",)),
    _Rule("hunyuan_a13b", ("<tool_calls>", "<answer>")),
    _Rule("jamba", ("<tool_calls>",)),
    _Rule("hermes", ("<tool_call>",)),
    _Rule("granite-20b-fc", ("<function_call>",)),
    _Rule("llama4_pythonic", ("<|header_start|>", "[func_name1(")),
    _Rule("llama4_json", ("<|header_start|>", '"parameters"')),
    _Rule("pythonic", ("[func_name1(",)),
    _Rule("llama3_json", ("<|python_tag|>",)),
    _Rule("llama3_json", ("<|start_header_id|>", '"parameters"')),
)

#: Marks that are tokens of the vocabulary, for models whose template knows no tools.
_TOOL_TOKENS: Final = (
    _Rule("openai", ("<|channel|>", "<|message|>", "<|call|>")),
    _Rule("kimi_k2", ("<|tool_calls_section_begin|>",)),
    _Rule("internlm", ("<|action_start|>", "<|plugin|>")),
    _Rule("functiongemma", ("<start_function_call>",)),
    _Rule("gemma4", ("<|tool_call>", "<tool_call|>")),
    _Rule("lfm2", ("<|tool_call_start|>",)),
    _Rule("mistral_v11", ("[TOOL_CALLS]", "[ARGS]")),
    _Rule("mistral", ("[TOOL_CALLS]",)),
    _Rule("phi4_mini_json", ("<|tool_call|>", "<|/tool_call|>")),
    _Rule("glm45", ("<tool_call>", "<arg_key>")),
    _Rule("hermes", ("<tool_call>", "</tool_call>")),
    _Rule("llama4_json", ("<|python_start|>", "<|header_start|>")),
    _Rule("llama3_json", ("<|python_tag|>", "<|start_header_id|>")),
)

_REASONING_TEMPLATES: Final = (
    _Rule("openai", ("<|channel|>", "<|message|>")),
    _Rule("gemma4", ("<|channel>", "<channel|>")),
    _Rule("mistral", ("[THINK]",)),
    _Rule("seed_oss", ("<seed:think>",)),
    _Rule("hunyuan_a13b", ("<think>", "<answer>")),
    _Rule("ernie45", ("<think>", "<response>")),
    _Rule("minimax_m2", ("<think>", "<minimax:tool_call>")),
    _Rule("step3", ("<think>", "steptml:invoke")),
    _Rule("olmo3", ("<think>", "<functions>")),
    _Rule("glm45", ("<think>", "<arg_key>")),
    _Rule("kimi_k2", ("<think>", "<|tool_calls_section_begin|>")),
    _Rule("deepseek_v31", ("</think>", "<\uff5cAssistant\uff5c>", "thinking")),
    _Rule("deepseek_r1", ("</think>", "<\uff5cAssistant\uff5c>")),
    _Rule("qwen3", ("<think>",)),
    _Rule("qwen3", ("</think>",)),
    _Rule("granite", ("Here is my thought process:",)),
)

_REASONING_TOKENS: Final = (
    _Rule("openai", ("<|channel|>", "<|message|>", "<|call|>")),
    _Rule("gemma4", ("<|channel>", "<channel|>")),
    _Rule("mistral", ("[THINK]", "[/THINK]")),
    _Rule("seed_oss", ("<seed:think>", "</seed:think>")),
    _Rule("qwen3", ("<think>", "</think>")),
)


def detect_tool_format(templates: Mapping[str, str], tokens: Callable[[str], int | None]) -> str | None:
    """The name of the format; None if nothing tells. `templates`: by name; `tokens`: the id of a special token."""
    return _detected(templates, tokens, _TOOL_TEMPLATES, _TOOL_TOKENS)


def detect_reasoning_format(templates: Mapping[str, str], tokens: Callable[[str], int | None]) -> str | None:
    """As `detect_tool_format`, for what the model thinks."""
    return _detected(templates, tokens, _REASONING_TEMPLATES, _REASONING_TOKENS)


def _detected(
    templates: Mapping[str, str],
    tokens: Callable[[str], int | None],
    by_template: tuple[_Rule, ...],
    by_token: tuple[_Rule, ...],
) -> str | None:
    text = "\n".join(templates.values())
    found = _first(by_template, lambda mark: mark in text)
    return found or _first(by_token, lambda mark: tokens(mark) is not None)


def _first(rules: tuple[_Rule, ...], has: Callable[[str], bool]) -> str | None:
    for rule in rules:
        if all(map(has, rule.needs)) and not any(map(has, rule.lacks)):
            return rule.format
    return None
