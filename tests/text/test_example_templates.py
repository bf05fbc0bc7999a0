"""The templates in examples/ (T16): the text is transformers' for the same template, and the format's of the model."""

# ruff: noqa: RUF001  (some models' marks are written in wide characters)

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from octavo.base.errors import InvalidRequest
from octavo.text.templates.chat_template import ChatTemplate, load_template
from octavo.text.templates.conversation import render_conversation

EXAMPLES = Path(__file__).parents[2] / "examples"
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
#: The names that vLLM's users know.
PLAIN = ["alpaca", "baichuan", "chatglm", "chatglm2", "chatml", "falcon", "falcon_180b", "inkbot", "llava"]
TOOLS = [
    "hermes", "mistral", "mistral_parallel", "llama3.1_json", "llama3.2_pythonic", "granite", "deepseekv3",
    "deepseekv31", "phi4_mini", "internlm2_tool", "jamba", "qwen3coder", "functiongemma", "toolace",
]  # fmt: skip
FILES = [*(f"template_{name}" for name in PLAIN), *(f"tool_chat_template_{name}" for name in TOOLS)]

#: Long ids, as the server gives them (F28).
IDS = ["chatcmpl-tool-0123456789abcdef", "chatcmpl-tool-fedcba9876543210"]
ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "string"}}},
            "required": ["a"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def calls(*arguments: Any, names: tuple[str, ...] = ("add", "now")) -> dict[str, Any]:
    made = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": given}}
        for call_id, name, given in zip(IDS, names, arguments, strict=False)
    ]
    return {"role": "assistant", "content": "", "tool_calls": made}


SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "Yes <&> 'é'."}
RESULTS = [
    {"role": "tool", "tool_call_id": IDS[0], "content": "3"},
    {"role": "tool", "tool_call_id": IDS[1], "content": '{"time": "noon"}'},
]
CHATS: list[list[dict[str, Any]]] = [
    [user("Hi")],
    [SYSTEM, user("Hi")],
    [SYSTEM, user("Hi"), ANSWER, user("Why?")],
    [user("Hi"), ANSWER],
]
TOOL_CHATS: list[list[dict[str, Any]]] = [
    *CHATS,
    [user("Sum?"), calls({"a": 1})],
    [SYSTEM, user("Sum?"), calls({"a": 1, "b": ["x", "é"]}), RESULTS[0]],
    [user("Sum?"), calls({"a": 1}, {}), *RESULTS],
    [user("Hi"), ANSWER, user("Sum?"), calls({"a": 1, "b": []}, {}), *RESULTS, ANSWER, user("Why?")],
]


def source(name: str) -> str:
    return (EXAMPLES / f"{name}.jinja").read_text(encoding="utf-8")


def shown(name: str, messages: list[dict[str, Any]], tools: Any = None, **options: Any) -> str:
    """As the server renders it."""
    return render_conversation(ChatTemplate(source(name), SPECIALS), messages, "auto", tools=tools, **options)


def reference(name: str, messages: list[dict[str, Any]], tools: Any = None, **options: Any) -> str:
    rendered = render_jinja_template([messages], chat_template=source(name), tools=tools, **SPECIALS, **options)
    return str(rendered[0][0])


def test_t16_all_are_there_and_described() -> None:
    assert {path.name for path in EXAMPLES.glob("*.jinja")} == {f"{name}.jinja" for name in FILES}
    page = (EXAMPLES.parent / "docs" / "chat-templates.md").read_text(encoding="utf-8")
    assert [name for name in FILES if f"`{name}.jinja`" not in page] == []


@pytest.mark.parametrize("name", FILES)
def test_t16_t28_an_example_passes_the_check_of_a_start(name: str) -> None:
    load_template(source(name), SPECIALS, name)


@pytest.mark.parametrize("name", FILES)
def test_t16_the_text_is_that_of_transformers(name: str) -> None:
    with_tools = name.startswith("tool_")
    for messages in TOOL_CHATS if with_tools else CHATS:
        for tools in ([ADD, NOW], [NOW], None) if with_tools else (None,):
            for prompt in (True, False):
                expected = reference(name, messages, tools, add_generation_prompt=prompt)
                assert shown(name, messages, tools, add_generation_prompt=prompt) == expected
    ending = {"add_generation_prompt": False, "continue_final_message": True}
    assert shown(name, CHATS[3], **ending) == reference(name, CHATS[3], **ending)
    assert shown(name, CHATS[3], **ending).endswith(ANSWER["content"])


@pytest.mark.parametrize("name", FILES)
def test_t12_parts_and_arguments_as_text_render_as_what_they_stand_for(name: str) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert shown(name, [user(parts)]) == shown(name, [user("one\ntwo")])
    if name.startswith("tool_"):
        as_text = [user("Sum?"), calls('{"a": 1}', ""), *RESULTS]
        assert shown(name, as_text, [ADD]) == shown(name, [user("Sum?"), calls({"a": 1}, {}), *RESULTS], [ADD])
        nulls = [user("Sum?"), {**calls({"a": 1}, {}), "content": None}, *RESULTS]
        assert shown(name, nulls, [ADD]) == shown(name, as_text, [ADD])


#: For: a system prompt, a question, an answer, and another question.
PLAIN_TEXTS = {
    "template_alpaca": "S\n\n### Instruction:\nQ\n\n### Response:\nA\n\n### Instruction:\nR\n\n### Response:\n",
    "template_baichuan": "S<reserved_106>Q<reserved_107>A<reserved_106>R<reserved_107>",
    "template_chatglm": "S\n[Round 0]\n问：Q\n答：A\n[Round 1]\n问：R\n答：",
    "template_chatglm2": "S\n\n[Round 1]\n\n问：Q\n\n答：A\n\n[Round 2]\n\n问：R\n\n答：",
    "template_chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n"
    "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n",
    "template_falcon": "System: S\nUser: Q\nAssistant: A\nUser: R\nAssistant:",
    "template_falcon_180b": "System: S\nUser: Q\nFalcon: A\nUser: R\nFalcon:",
    "template_inkbot": "<#meta#>\n- Date: 2024-01-02\n- Task: general\n<#system#>\nS\n<#chat#>\n<#user#>\nQ\n"
    "<#bot#>\nA\n<#user#>\nR\n<#bot#>\n",
    "template_llava": "<s>S USER: Q ASSISTANT: A</s>USER: R ASSISTANT:",
}


@pytest.mark.parametrize("name", PLAIN_TEXTS)
def test_t16_plain_formats(name: str) -> None:
    messages = [{"role": "system", "content": "S"}, user("Q"), {"role": "assistant", "content": "A"}, user("R")]
    assert shown(name, messages, kwargs={"current_date": "2024-01-02"}) == PLAIN_TEXTS[name]


def test_t16_roles_that_only_a_format_has() -> None:
    context = {"role": "user_context", "content": "C"}
    assert shown("template_alpaca", [user("Q"), context]) == "### Instruction:\nQ\n\n### Input:\nC\n\n### Response:\n"
    head = [{"role": "meta-current_date", "content": "2020-02-02"}, {"role": "meta-task_name", "content": "kg"}]
    assert shown("template_inkbot", [*head, user("Q"), context]) == (
        "<#meta#>\n- Date: 2020-02-02\n- Task: kg\n<#system#>\nA conversation between a user and a bot.\n<#chat#>\n"
        "<#user#>\nQ\n<#user_context#>\nC\n<#bot#>\n"
    )
    image = user([{"type": "text", "text": "Q"}, {"type": "image"}])
    assert ChatTemplate(source("template_llava"), SPECIALS).render([image]) == "<s>USER: <image>\nQ ASSISTANT:"
    for name in ("alpaca", "baichuan", "chatglm", "chatglm2", "falcon", "inkbot", "llava"):
        with pytest.raises(InvalidRequest, match="role odd"):
            shown(f"template_{name}", [user("Q"), {"role": "odd", "content": "x"}])


def test_t16_hermes() -> None:
    name, now = "tool_chat_template_hermes", '{"type": "function", "function": {"name": "now"}}'
    text = shown(name, [SYSTEM, user("Q"), calls({"a": 1, "b": ["é"]}, {}), *RESULTS], [NOW])
    head, rest = text.split("<|im_end|>\n", 1)
    assert head.startswith("<s><|im_start|>system\nBe brief.\n\n")
    assert f"<tools>\n{now}\n</tools>\n" in head
    assert '<tool_call>\n{"name": <function name>, "arguments": <object of arguments>}\n</tool_call>' in head
    assert rest == (
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": ["é"]}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>\n<|im_start|>tool\n'
        '<tool_response>\n{"name": "add", "content": "3"}\n</tool_response>\n'
        '<tool_response>\n{"name": "now", "content": "{\\"time\\": \\"noon\\"}"}\n</tool_response><|im_end|>\n'
        "<|im_start|>assistant\n"
    )
    assert "<tools>" not in shown(name, [SYSTEM, user("Q")])
    talking = {**calls({"a": 1}), "content": "Let me add."}
    assert "assistant\nLet me add.\n<tool_call>\n" in shown(name, [user("Q"), talking])


@pytest.mark.parametrize("name", ["tool_chat_template_hermes", "tool_chat_template_functiongemma"])
def test_f31_a_result_has_the_name_it_says_or_its_calls_or_is_refused(name: str) -> None:
    history = [user("Q"), calls({"a": 1})]
    assert "other" in shown(name, [*history, {**RESULTS[0], "name": "other"}])
    for result in ({"role": "tool", "content": "3"}, RESULTS[1]):
        with pytest.raises(InvalidRequest, match="needs the name of its function"):
            shown(name, [*history, result])


MISTRAL_CALLS = '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "789abcdef"}, '
MISTRAL_CALLS += '{"name": "now", "arguments": {}, "id": "876543210"}]</s>'
MISTRAL_RESULTS = '[TOOL_RESULTS] {"content": "3", "call_id": "789abcdef"}[/TOOL_RESULTS]'
MISTRAL_RESULTS += '[TOOL_RESULTS] {"content": "{\\"time\\": \\"noon\\"}", "call_id": "876543210"}[/TOOL_RESULTS]'
MISTRAL_TOOLS = '[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "now"}}][/AVAILABLE_TOOLS]'


def test_t16_mistral() -> None:
    name = "tool_chat_template_mistral"
    history = [user("Q"), calls({"a": 1}, {}), *RESULTS]
    assert shown(name, history, [NOW]) == f"<s>{MISTRAL_TOOLS}[INST] Q[/INST]{MISTRAL_CALLS}{MISTRAL_RESULTS}"
    answered = [SYSTEM, *history, {"role": "assistant", "content": "A"}, user("R")]
    assert shown(name, answered, [NOW]) == (
        f"<s>[INST] Q[/INST]{MISTRAL_CALLS}{MISTRAL_RESULTS} A</s>{MISTRAL_TOOLS}[INST] Be brief.\n\nR[/INST]"
    )
    for call_id in ("12345678", "", None):
        short: dict[str, Any] = calls({"a": 1})
        short["tool_calls"][0]["id"] = call_id
        with pytest.raises(InvalidRequest, match="at least 9 characters"):
            shown(name, [user("Q"), short])


def test_t16_mistral_parallel_asks_for_one_array_of_calls_when_there_are_tools() -> None:
    plain, parallel = "tool_chat_template_mistral", "tool_chat_template_mistral_parallel"
    for messages in CHATS:
        assert shown(parallel, messages) == shown(plain, messages)
    text = shown(parallel, [SYSTEM, user("Q")], [NOW])
    begin, end = f"<s>{MISTRAL_TOOLS}[INST] Be brief.\n\n", "\n\nQ[/INST]"
    assert text.startswith(begin) and text.endswith(end)
    asked = text.removeprefix(begin).removesuffix(end)
    assert "one JSON array" in asked and "[TOOL_CALLS]" in asked


#: Name -> how two calls, their results and what follows are written.
HISTORIES = {
    "llama3.1_json": '{"name": "add", "parameters": {"a": 1, "b": ["x", null]}}; {"name": "now", "parameters": {}}'
    '<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n{"output": "3"}<|eot_id|>'
    '<|start_header_id|>ipython<|end_header_id|>\n\n{"output": "{\\"time\\": \\"noon\\"}"}<|eot_id|>'
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "llama3.2_pythonic": '[add(a=1, b=["x", None]), now()]<|eot_id|>'
    "<|start_header_id|>ipython<|end_header_id|>\n\n3<|eot_id|>"
    '<|start_header_id|>ipython<|end_header_id|>\n\n{"time": "noon"}<|eot_id|>'
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "granite": '<|tool_call|>[{"name": "add", "arguments": {"a": 1, "b": ["x", null]}}, '
    '{"name": "now", "arguments": {}}]'
    "<|end_of_text|>\n<|start_of_role|>tool_response<|end_of_role|>3<|end_of_text|>\n"
    '<|start_of_role|>tool_response<|end_of_role|>{"time": "noon"}<|end_of_text|>\n'
    "<|start_of_role|>assistant<|end_of_role|>",
    "deepseekv3": "<｜Assistant｜><｜tool▁calls▁begin｜>"
    '<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"a": 1, "b": ["x", null]}\n```<｜tool▁call▁end｜>\n'
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    "<｜end▁of▁sentence｜><｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>3<｜tool▁output▁end｜>\n"
    '<｜tool▁output▁begin｜>{"time": "noon"}<｜tool▁output▁end｜><｜tool▁outputs▁end｜>',
    "deepseekv31": "<｜Assistant｜></think><｜tool▁calls▁begin｜>"
    '<｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1, "b": ["x", null]}<｜tool▁call▁end｜>'
    "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
    '<｜tool▁output▁begin｜>3<｜tool▁output▁end｜><｜tool▁output▁begin｜>{"time": "noon"}<｜tool▁output▁end｜>',
    "phi4_mini": 'functools[{"name": "add", "arguments": {"a": 1, "b": ["x", null]}}, '
    '{"name": "now", "arguments": {}}]<|end|>'
    '<|tool_response|>3<|end|><|tool_response|>{"time": "noon"}<|end|><|assistant|>',
    "internlm2_tool": '<|action_start|><|plugin|>\n{"name": "add", "parameters": {"a": 1, "b": ["x", null]}}'
    '<|action_end|><|action_start|><|plugin|>\n{"name": "now", "parameters": {}}<|action_end|><|im_end|>\n'
    "<|im_start|>environment name=<|plugin|>\n3<|im_end|>\n"
    '<|im_start|>environment name=<|plugin|>\n{"time": "noon"}<|im_end|>\n<|im_start|>assistant\n',
    "jamba": '<tool_calls>[\n  {"name": "add", "arguments": {"a": 1, "b": ["x", null]}},\n'
    '  {"name": "now", "arguments": {}}\n]</tool_calls><|eom|>'
    '<|bom|><|tool|> 3<|eom|><|bom|><|tool|> {"time": "noon"}<|eom|><|bom|><|assistant|> ',
    "qwen3coder": '<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n["x", null]\n'
    "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call><|im_end|>\n"
    "<|im_start|>user\n<tool_response>\n3\n</tool_response>\n"
    '<tool_response>\n{"time": "noon"}\n</tool_response>\n<|im_end|>\n<|im_start|>assistant\n',
    "functiongemma": "<start_of_turn>model\n<start_function_call>call:add{a:1,b:[<escape>x<escape>,null]}"
    "<end_function_call><start_function_call>call:now{}<end_function_call>"
    "<start_function_response>response:add{value:<escape>3<escape>}<end_function_response>"
    '<start_function_response>response:now{value:<escape>{"time": "noon"}<escape>}<end_function_response>',
}
HISTORIES["toolace"] = HISTORIES["llama3.2_pythonic"]

#: Name -> how a tool is declared.
DECLARATIONS = {
    "granite": '<|start_of_role|>available_tools<|end_of_role|>{\n    "name": "now"\n}<|end_of_text|>\n',
    "phi4_mini": '<|tool|>[{"name": "now"}]<|/tool|><|end|>',
    "internlm2_tool": '<|im_start|>system name=<|plugin|>\n[{"name": "now"}]<|im_end|>\n',
    "deepseekv31": "### now\nDescription: none\nParameters: {}\n",
    "functiongemma": "<start_function_declaration>declaration:now{description:<escape><escape>,parameters:{}}"
    "<end_function_declaration><end_of_turn>\n",
    "qwen3coder": "<tools>\n<function>\n<name>now</name>\n<parameters>\n</parameters>\n</function>\n</tools>",
    "llama3.1_json": "Environment: ipython\nCutting Knowledge Date: December 2023\nToday Date: 02 Jan 2024\n\n",
}


@pytest.mark.parametrize("name", HISTORIES)
def test_t16_calls_and_results_in_the_models_format(name: str) -> None:
    messages = [user("Q"), calls({"a": 1, "b": ["x", None]}, {}), *RESULTS]
    text = shown(f"tool_chat_template_{name}", messages, [NOW], kwargs={"date_string": "02 Jan 2024"})
    assert text.endswith(HISTORIES[name])
    assert DECLARATIONS.get(name, '"name": "now"') in text


def test_t16_declarations_with_types() -> None:
    gemma = shown("tool_chat_template_functiongemma", [user("Q")], [ADD])
    assert (
        "declaration:add{description:<escape>Adds numbers.<escape>,parameters:{properties:{a:{type:<escape>INTEGER"
        "<escape>},b:{items:{type:<escape>STRING<escape>},type:<escape>ARRAY<escape>}},required:[<escape>a<escape>],"
        "type:<escape>OBJECT<escape>}}"
    ) in gemma
    coder = shown("tool_chat_template_qwen3coder", [user("Q")], [ADD])
    assert '<parameter>\n<name>b</name>\n<type>array</type>\n<items>{"type": "string"}</items>\n</parameter>' in coder


def test_t16_deepseek_thinks_when_told_and_forgets_what_it_thought() -> None:
    name = "tool_chat_template_deepseekv31"
    history = [user("Q"), {"role": "assistant", "content": "<think>hm</think>A"}, user("R")]
    assert (
        shown(name, history)
        == "<s><｜User｜>Q<｜Assistant｜></think>A<｜end▁of▁sentence｜><｜User｜>R<｜Assistant｜></think>"
    )
    assert shown(name, history, kwargs={"thinking": True}).endswith("<｜User｜>R<｜Assistant｜><think>")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["{}", "[1]"])
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)
PART = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"])}, optional={"text": JSON}) | JSON
CALL = st.fixed_dictionaries(
    {}, optional={"id": JSON, "function": st.fixed_dictionaries({}, optional={"name": JSON, "arguments": JSON}) | JSON}
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer"]) | JSON},
    optional={
        "content": st.lists(PART, max_size=3) | JSON,
        "tool_calls": st.lists(CALL | JSON, max_size=2) | JSON,
        "tool_call_id": JSON,
        "name": JSON,
        "reasoning": JSON,
    },
)


@given(st.sampled_from(FILES), st.lists(MESSAGE, min_size=1, max_size=4), st.none() | st.lists(JSON, max_size=2))
def test_whatever_messages_come_there_is_a_text_or_a_refusal(name: str, messages: Any, tools: Any) -> None:
    with contextlib.suppress(InvalidRequest):
        assert isinstance(shown(name, messages, tools), str)
