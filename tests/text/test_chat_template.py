"""Chat templates: the text is transformers', errors are the template's own, and no template can run away."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from octavo.base.errors import CheckpointError, InvalidRequest, StartupError
from octavo.text.templates import chat_template
from octavo.text.templates.chat_template import ChatTemplate, load_template, read_template_option
from octavo.text.templates.conversation import render_conversation
from octavo.text.tokenizers.tokenizer import load_tokenizer

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = """\
{% for message in messages %}
    {% if loop.first and message.role != 'system' %}
{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}
    {% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA3 = """\
{{- bos_token }}
{%- if tools is defined and tools is not none %}{{- 'Tools: ' }}
{%- for tool in tools %}{{- tool | tojson(indent=2) ~ '\\n' }}{%- endfor %}{%- endif %}
{%- for message in messages %}
  {%- set content = '<|h|>' ~ message['role'] ~ '<|/h|>\\n\\n' ~ message.content | trim ~ '<|eot|>' %}
  {%- if message.tool_calls %}{%- set content = content ~ (message.tool_calls | tojson) %}{%- endif %}
  {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|h|>assistant<|/h|>\\n\\n' }}{%- endif %}"""

MISTRAL = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system_message is defined %}{{- '[INST] ' + system_message + '\\n\\n' }}
        {%- else %}{{- '[INST] ' }}{%- endif %}
        {{- message['content'] + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}{{- ' ' + message['content'] + eos_token }}
    {%- else %}{{- raise_exception('Only user and assistant roles are supported!') }}{%- endif %}
{%- endfor %}"""

GEMMA = """\
{{ bos_token }}{% set ns = namespace(first='') %}
{%- if messages[0].role == 'system' -%}{%- set ns.first = messages[0].content + '\\n\\n' -%}
{%- set rest = messages[1:] -%}{%- else -%}{%- set rest = messages -%}{%- endif -%}
{%- for message in rest -%}
{%- set role = 'model' if message.role == 'assistant' else message.role -%}
{{ '<start_of_turn>' + role + '\\n' + (ns.first if loop.first else '') }}
    {%- if message.content is string -%}{{ message.content | trim }}
    {%- else -%}{%- for item in message.content -%}{{ item.text | trim }}{%- endfor -%}{%- endif -%}
{{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""

ODDITIES = """\
{%- macro show(x) -%}<{{ x }}>{%- endmacro -%}
{%- for message in messages -%}
    {%- if loop.index > 3 %}{% break %}{% endif -%}
    {{ show(message.role) }}{% generation %}{{ message.content | upper }}{% endgeneration %}
    {{- {'html': '<b>&"', 'u': 'é'} | tojson }}{{ dict(a=1)['a'] }}{{ 3 * 'ab' }}{{ 2 ** 3 }}{{ '%s!' % 'x' }}
{%- endfor -%}
{{ strftime_now('%Y') | length }}{{ undefined_thing }}{{ range(3) | list }}{{ 'a,b'.split(',') | join('-') }}"""

TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "gemma": GEMMA, "oddities": ODDITIES}
USER = {"role": "user", "content": " Hi <there> & 'you' é \n"}
ASSISTANT = {"role": "assistant", "content": "  Yes,  "}
SYSTEM = {"role": "system", "content": "Short."}
CHATS: list[list[dict[str, Any]]] = [
    [USER],
    [SYSTEM, USER],
    [USER, ASSISTANT, USER],
    [SYSTEM, USER, ASSISTANT],
    [USER, ASSISTANT],
]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"a<b": "é"}}}]


def reference(source: str, messages: list[dict[str, Any]], specials: dict[str, str], **options: Any) -> str:
    variables: dict[str, Any] = {**options, **specials}
    rendered = render_jinja_template([messages], chat_template=source, **variables)
    return str(rendered[0][0])


@pytest.mark.parametrize("name", TEMPLATES)
def test_t6_text_is_that_of_transformers(name: str) -> None:
    source = TEMPLATES[name]
    template = ChatTemplate(source, SPECIALS)
    for messages in CHATS:
        for prompt in (True, False):
            expected = reference(source, messages, SPECIALS, add_generation_prompt=prompt)
            assert template.render(messages, add_generation_prompt=prompt) == expected
        if name in ("llama3", "oddities"):
            expected = reference(source, messages, SPECIALS, tools=TOOLS, add_generation_prompt=True)
            assert template.render(messages, TOOLS) == expected
        if messages[-1] is ASSISTANT and name != "oddities":  # which shouts
            expected = reference(source, messages, SPECIALS, continue_final_message=True)
            actual = template.render(messages, add_generation_prompt=False, continue_final_message=True)
            assert actual == expected


CALL = {"id": "call-12345", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": "<é>"}'}}
PARSED = {**CALL, "function": {"name": "add", "arguments": {"a": 1, "b": "<é>"}}}
RESULT = {"role": "tool", "content": "3", "tool_call_id": "call-12345", "name": "add"}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.model  # which is not seen from a fixture's name that comes as a parameter
@pytest.mark.parametrize("fixture", ["smollm2_gguf", "qwen_gguf", "smollm2_hf"])
def test_t6_t13_conversations_with_real_models_render_as_in_transformers(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    """Messages as they come over the wire; the reference gets parsed arguments, which it expects."""
    path: Path = request.getfixturevalue(fixture)
    tokenizer = load_tokenizer(path)
    source, specials = tokenizer.chat_templates["default"], tokenizer.special_tokens_map
    template = load_template(source, specials, "template")
    chats = [*CHATS, [USER, CALLING, RESULT], [SYSTEM, USER, CALLING, RESULT, ASSISTANT, USER], [SYSTEM, USER, USER]]
    num_rendered = 0
    for messages in chats:
        parsed = [message | {"tool_calls": [PARSED]} if message is CALLING else message for message in messages]
        for tools in (None, TOOLS):
            try:
                expected = reference(source, parsed, specials, tools=tools, add_generation_prompt=True)
            except TemplateError as error:  # in words of the template's own
                with pytest.raises(InvalidRequest) as caught:
                    render_conversation(template, messages, "auto", tools=tools)
                assert caught.value.message == error.message
                continue
            assert render_conversation(template, messages, "auto", tools=tools) == expected
            num_rendered += 1
    assert num_rendered >= 2 * len(CHATS)


def test_t4_a_real_model_without_a_template_has_none(gemma_gguf: Path) -> None:
    assert load_tokenizer(gemma_gguf).chat_templates == {}


def test_t5_a_templates_refusal_is_the_callers_error_in_its_own_words() -> None:
    with pytest.raises(
        InvalidRequest, match=r"^Conversation roles must alternate user/assistant/user/assistant/\.\.\.$"
    ):
        ChatTemplate(MISTRAL, SPECIALS).render([USER, USER])
    with pytest.raises(InvalidRequest, match="is undefined"):
        ChatTemplate("{{ nothing.at.all }}", {}).render([USER])
    with pytest.raises(InvalidRequest, match="ZeroDivisionError"):
        ChatTemplate("{{ 1 / 0 }}", {}).render([USER])


def test_t7_tools_are_undefined_or_none_as_the_template_asks() -> None:
    by_defined = ChatTemplate("{% if tools is defined %}{{ tools | length }}{% else %}none{% endif %}", {})
    assert by_defined.render([USER]) == "none"
    assert by_defined.render([USER], TOOLS) == "1"
    assert ChatTemplate("{{ 'given' if tools is not none else 'none' }}", {}).render([USER]) == "none"


def test_messages_are_shown_without_their_empty_fields_and_stay_as_they_were() -> None:
    message = {"role": "assistant", "content": "x", "tool_calls": None}
    template = ChatTemplate("{{ 'tool_calls' in messages[0] }}{{ messages[0].content }}", {})
    assert template.render([message]) == "Falsex"
    assert template.render([message], add_generation_prompt=False, continue_final_message=True) == "Falsex"
    assert message == {"role": "assistant", "content": "x", "tool_calls": None}


def test_t20_continuing_a_message_needs_one_that_is_shown() -> None:
    def go(source: str, message: dict[str, Any]) -> str:
        return ChatTemplate(source, {}).render([message], add_generation_prompt=False, continue_final_message=True)

    assert go("[{{ messages[-1].content }}]", ASSISTANT) == "[  Yes,  "
    assert go("[{{ messages[-1].content | trim }}]", ASSISTANT) == "[Yes,"
    parts = {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b "}]}
    assert go("{% for part in messages[0].content %}({{ part.text }}){% endfor %}", parts) == "(a)(b "
    for source, message in (("fixed", ASSISTANT), ("{{ messages[0].content[-4:] }}", ASSISTANT), ("x", {"role": "a"})):
        with pytest.raises(InvalidRequest) as caught:
            go(source, message)
        assert caught.value.param == "continue_final_message"
    with pytest.raises(InvalidRequest, match="both"):
        ChatTemplate(CHATML, {}).render([USER], continue_final_message=True)


GROW = "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = X %}{% endfor %}"
HOSTILE = {
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "globals": "{{ lipsum.__globals__ }}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "brackets": "{{ " + "(" * 6000 + ")" * 6000 + " }}",
    "silent loops": "{% set r = range(99999) %}" + "{% for a in r %}" * 3 + "{% endfor %}" * 3,
    "recursion": "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "wide recursion": "{% macro m(n) %}{% if n %}{% set a = m(n - 1) ~ m(n - 1) %}{% endif %}{% endmacro %}{{ m(60) }}",
    "product": "{{ 'x' * 10**10 }}",
    "list product": "{{ [1] * 10**10 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "squares": "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x > 1 }}",
    "doubling by ~": GROW.replace("X", "n.x ~ n.x"),
    "doubling by +": GROW.replace("X", "n.x + n.x"),
    "doubling by replace": GROW.replace("X", "n.x.replace('a', 'aaaa')"),
    "width": "{{ 'x'.ljust(10**10) }}",
    "center": "{{ 'x' | center(10**10) }}",
    "format": "{{ '%10000000000d' % 1 }}",
    "format method": "{{ '{:10000000000}'.format(1) }}",
    "long output": "{% set x = 'x' * 100000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
    "syntax": "{% if %}",
    "underscore": "{% set n = namespace(_x=1) %}",
    "source": "x" * (2 << 20),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
def test_w01_a_hostile_template_is_refused_at_start_in_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.5)
    begin = time.process_time()
    with pytest.raises(CheckpointError, match=r"^The template of m "):
        load_template(HOSTILE[name], SPECIALS, "The template of m")
    assert time.process_time() - begin < 5


def test_a_long_conversation_is_no_long_output() -> None:
    long = {"role": "user", "content": "x" * (6 << 20)}
    assert len(ChatTemplate(CHATML, {}).render([long])) > 6 << 20


def test_t2_t3_the_option_names_a_template_a_file_or_is_the_template(tmp_path: Path) -> None:
    # C5: a name works everywhere.
    named = {"default": "D", "tool_use": "T"}
    assert read_template_option("tool_use", named)[0] == "T"
    file = tmp_path / "t.jinja"
    file.write_text("{{ 1 }}\\n")
    assert read_template_option(str(file), named)[0] == "{{ 1 }}\\n"
    assert read_template_option(r"{{ 'é€' }}\n", named)[0] == "{{ 'é€' }}\n"
    with pytest.raises(StartupError, match="looks like a file path, but failed to open"):
        read_template_option(str(tmp_path / "none.jinja"), named)
    with pytest.raises(StartupError, match="looks like a file path, but failed to open"):
        read_template_option("\0", named)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHATML, "string"),
        (LLAMA3, "string"),
        (MISTRAL, "string"),
        (GEMMA, "openai"),
        ("{% for m in messages %}{% for p in m['content'] %}{% endfor %}{% endfor %}", "openai"),
        ("{% for m in messages[1:] %}{% set c = m.content %}{% for p in c %}{% endfor %}{% endfor %}", "openai"),
        ("{% set l = messages %}{% for m in l | reverse %}{% for p in m.content | list %}{% endfor %}{% endfor %}",
         "openai"),
        ("{% for p in messages[0]['content'] %}{% endfor %}", "openai"),
        ("{% for m in messages %}{% for c in m.tool_calls %}{{ c.content }}{% endfor %}{% endfor %}", "string"),
        ("{% for m in messages %}{% for w in m.content.split() %}{% endfor %}{% endfor %}", "string"),
    ],
)  # fmt: skip
def test_t21_content_format_is_read_from_the_loops(source: str, expected: str) -> None:
    assert ChatTemplate(source, {}).content_format == expected
