"""The format of a model is told from its files (U2). The templates are octavo's own, in the manner of each family."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.text.formats import detect
from octavo.text.formats.detect import detect_reasoning_format, detect_tool_format
from octavo.text.formats.registry import reasoning_format, tool_format
from octavo.text.tokenizers.tokenizer import load_tokenizer

_CALL = "<\uff5ctool\u2581calls\u2581begin\uff5c><\uff5ctool\u2581call\u2581begin\uff5c>"
_HERMES = (
    "{% if tools %}Call with <tool_call>\n{'name': ..., 'arguments': ...}\n</tool_call>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
)
_QWEN3 = _HERMES + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
_LLAMA = (
    '<|start_header_id|>system<|end_header_id|>Answer with {"name": the function, "parameters": its arguments}.'
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}<|eot_id|>{% endfor %}"
)

#: family -> (template, format of calls, format of thinking)
FAMILIES: dict[str, tuple[str, str | None, str | None]] = {
    "Qwen2.5": (_HERMES, "hermes", None),
    "Hermes": ("<tools>{{ tools }}</tools> <tool_call>", "hermes", None),
    "Qwen3": (_QWEN3, "hermes", "qwen3"),
    "Qwen3-Coder": (_HERMES + "<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>", "qwen3_coder", None),
    "Llama 3.1": (_LLAMA + "{% if builtin_tools %}<|python_tag|>{% endif %}", "llama3_json", None),
    "Llama 3.2": (_LLAMA, "llama3_json", None),
    "Llama 3.2, Python": ("Write [func_name1(param1=value1)] <|start_header_id|>", "pythonic", None),
    "Llama 4": (_LLAMA.replace("start_header_id", "header_start"), "llama4_json", None),
    "Llama 4, Python": ("<|header_start|> Write [func_name1(param1=value1)]", "llama4_pythonic", None),
    "Mistral v0.3": ("[AVAILABLE_TOOLS]{{ tools }}[/AVAILABLE_TOOLS][TOOL_CALLS] {{ calls }}", "mistral", None),
    "Mistral v11": ("[TOOL_CALLS]{{ c.name }}[CALL_ID]{{ c.id }}[ARGS]{{ c.arguments }}", "mistral_v11", None),
    "Magistral": ("[TOOL_CALLS]{{ c.name }}[ARGS]{{ a }}[THINK]{{ t }}[/THINK]", "mistral_v11", "mistral"),
    "DeepSeek V3": (f"<\uff5cAssistant\uff5c>{_CALL}function\n```json\n", "deepseek_v3", None),
    "DeepSeek R1": (f"{_CALL}function\n```json\n{{{{ c.split('</think>')[-1] }}}}<\uff5cAssistant\uff5c>",
                    "deepseek_v3", "deepseek_r1"),
    "DeepSeek V3.1": (f"{{% if thinking %}}<think>{{% else %}}</think>{{% endif %}}{_CALL}<\uff5cAssistant\uff5c>",
                      "deepseek_v31", "deepseek_v31"),
    "DeepSeek V3.2": ("<\uff5cDSML\uff5cfunction_calls>", "deepseek_v32", None),
    "Kimi K2": ("<|tool_calls_section_begin|><|tool_call_begin|>", "kimi_k2", None),
    "GLM 4.5": ("<tool_call>{name}\n<arg_key>{k}</arg_key>\n<arg_value></arg_value> <think></think>", "glm45", "glm45"),
    "GLM 4.7": ("<tool_call>{name}<arg_key>{k}</arg_key><arg_value></arg_value> <think></think>", "glm47", "glm45"),
    "Granite 3": ("<|start_of_role|>tools<|end_of_role|> Write <|tool_call|> and a list.", "granite", None),
    "Granite 4": ("<|start_of_role|>system<|end_of_role|><tool_call></tool_call>", "hermes", None),
    "Phi-4-mini": ("<|system|>{{ m.content }}<|tool|>{{ m.tools }}<|/tool|><|end|>", "phi4_mini_json", None),
    "InternLM 2": ("<|im_start|>system name=<|plugin|>{{ tools }} <|action_start|><|plugin|>", "internlm", None),
    "Jamba": ("<tool_calls>[{{ calls }}]</tool_calls>", "jamba", None),
    "Hunyuan": ("<tool_calls> <think></think><answer></answer>", "hunyuan_a13b", "hunyuan_a13b"),
    "Gemma 3": ("<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>", None, None),
    "FunctionGemma": ("<start_function_call>call:{{ name }}", "functiongemma", None),
    "Gemma 4": ("<|tool_call>call:{{ name }} <|channel>thought <channel|>", "gemma4", "gemma4"),
    "gpt-oss": ("<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>", "openai", "openai"),
    "MiniMax M2": ("<minimax:tool_call><invoke name=\"{{ n }}\"> <think>", "minimax_m2", "minimax_m2"),
    "Seed-OSS": ("<seed:tool_call><function=f><parameter=k> <seed:think>", "seed_oss", "seed_oss"),
    "Olmo 3": ("<functions>{{ tools }}</functions><function_calls> <think>", "olmo3", "olmo3"),
    "LFM2": ("<|tool_list_start|>{{ tools }}<|tool_list_end|>", "lfm2", None),
    "ChatML": ("<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>", None, None),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_u2_the_template_of_a_family_tells_its_formats(family: str) -> None:
    template, calls, thinking = FAMILIES[family]
    assert detect_tool_format({"default": template}, lambda text: None) == calls
    assert detect_reasoning_format({"default": template}, lambda text: None) == thinking
    assert detect_tool_format({"default": "{{ messages }}", "tool_use": template}, lambda text: None) == calls


@pytest.mark.parametrize(
    ("tokens", "calls", "thinking"),
    [
        (set(), None, None),
        ({"<|action_start|>", "<|plugin|>"}, "internlm", None),
        ({"<tool_call>", "</tool_call>", "<think>", "</think>"}, "hermes", "qwen3"),
        ({"[TOOL_CALLS]"}, "mistral", None),
        ({"[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"}, "mistral_v11", "mistral"),
        ({"<|python_tag|>", "<|start_header_id|>"}, "llama3_json", None),
    ],
)
def test_u2_where_the_template_is_silent_special_tokens_tell(
    tokens: set[str], calls: str | None, thinking: str | None
) -> None:
    def token_to_id(text: str) -> int | None:
        return 7 if text in tokens else None

    assert detect_tool_format({}, token_to_id) == calls
    assert detect_reasoning_format({"default": "{{ messages }}"}, token_to_id) == thinking


def test_every_rule_names_a_format_and_can_be_reached() -> None:
    for rules, by_name in (
        (detect._TOOL_TEMPLATES, tool_format),
        (detect._TOOL_TOKENS, tool_format),
        (detect._REASONING_TEMPLATES, reasoning_format),
        (detect._REASONING_TOKENS, reasoning_format),
    ):
        for i, rule in enumerate(rules):
            by_name(rule.format)
            hidden = [before for before in rules[:i] if {*before.needs} <= {*rule.needs} and not before.lacks]
            assert not hidden, (rule, hidden)


@pytest.mark.model
def test_u2_the_formats_of_the_test_models(qwen_gguf: Path, smollm2_gguf: Path, gemma_gguf: Path) -> None:
    """SmolLM2's template and that of a base model know nothing of tools."""
    for path, wanted in ((qwen_gguf, "hermes"), (smollm2_gguf, None), (gemma_gguf, None)):
        tokenizer = load_tokenizer(path)
        assert detect_tool_format(tokenizer.chat_templates, tokenizer.token_to_id) == wanted
        assert detect_reasoning_format(tokenizer.chat_templates, tokenizer.token_to_id) is None
