"""Messages to ids: content in the template's shape, errors with their place, templates in their order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from octavo.base.config import ContentFormatOption
from octavo.base.errors import CheckpointError, ContextLengthExceeded, InvalidConfig, InvalidRequest, StartupError
from octavo.text.templates.renderer import NO_TEMPLATE, Renderer
from octavo.text.tokenizers.decoder_plan import BYTE_OF_CHAR
from octavo.text.tokenizers.parts import TokenizerParts, set_bos_eos
from octavo.text.tokenizers.tokenizer import Tokenizer

PLAIN = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}|{% endfor %}"
PARTS = "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}"
BOTH = (
    "{% for m in messages %}{% if m.content is string %}={{ m.content }}"
    "{% else %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endif %}{% endfor %}"
)
HI = [{"role": "user", "content": "hi"}]


def tokenizer(**templates: str) -> Tokenizer:
    backend = Backend(models.BPE(vocab=dict(BYTE_OF_CHAR), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", special=True, normalized=False)])
    set_bos_eos(backend, "<s>", None)
    return Tokenizer(
        TokenizerParts(
            backend=backend,
            source="test",
            special_tokens_map={"bos_token": "<s>"},
            eos_token_ids=(),
            chat_templates=templates,
            longest_token=1,
            max_token_id=256,
        )
    )


def text(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    return Renderer(tokenizer(default=template)).chat_text(messages, **options)


def test_t10_bos_comes_from_the_template_alone() -> None:
    renderer = Renderer(tokenizer(default=PLAIN))
    assert renderer.render_text(renderer.chat_text(HI), False) == [256, *b"user:hi|"]
    assert renderer.render_text(renderer.chat_text(HI), True) == [256, 256, *b"user:hi|"]
    assert renderer.render_text("hi") == [256, *b"hi"]
    assert renderer.render_text("hi", add_special_tokens=False) == [*b"hi"]


def test_t12_t21_content_takes_the_shape_that_the_template_reads() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}, "c"]}]
    assert text(PLAIN, parts) == "<s>user:a\nb\nc|"
    assert text(PLAIN, [{"role": "assistant", "content": None}, {"role": "user"}]) == "<s>assistant:|user:|"
    assert text(PARTS, parts) == "[a][b][c]"
    assert text(PARTS, HI) == "[hi]"
    assert text(BOTH, parts) == "[a][b][c]"
    assert text(BOTH, HI) == "=hi"
    forced = Renderer(tokenizer(default=PARTS), content_format="string")
    assert forced.chat_text(HI) == "[][]"  # as asked: the letters of a string have no text


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}], "messages[1].content[1]"),
        ([{"type": "input_audio"}], "messages[1].content[0]"),
        ([{"type": ["text"]}], "messages[1].content[0]"),
        ([{"type": "text"}], "messages[1].content[0].text"),
        ([{"type": "text", "text": 5}], "messages[1].content[0].text"),
        ([5], "messages[1].content[0]"),
        (5, "messages[1].content"),
    ],
)
def test_what_is_not_text_is_refused_with_its_place(content: object, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        text(PLAIN, [HI[0], {"role": "user", "content": content}])
    assert caught.value.param == param


def test_t25_a_developer_is_the_system_unless_the_template_knows_better() -> None:
    messages = [{"role": "developer", "content": "x"}]
    assert text(PLAIN, messages) == "<s>system:x|"
    assert text(PLAIN + "{# developer #}", messages) == "<s>developer:x|"


def test_t13_arguments_of_tool_calls_are_objects() -> None:
    def shown(arguments: object) -> str:
        calls = [{"id": "1", "function": {"name": "f", "arguments": arguments}}]
        messages = [{"role": "assistant", "content": None, "tool_calls": calls}]
        source = "{% if messages[0].tool_calls %}{{ messages[0].tool_calls[0].function.arguments | tojson }}{% endif %}"
        return text(source, messages)

    assert shown('{"a": [1, "é"]}') == '{"a": [1, "é"]}'
    assert shown({"a": 1}) == '{"a": 1}'
    for nothing in ("", " ", "{}", "null", {}, None):
        assert shown(nothing) == "{}"


#: Templates write arguments as JSON, as they are, or member by member.
SHOWN = "{% set a = (messages[0].tool_calls or [{'function': {'arguments': {}}}])[0].function.arguments %}"
AS_JSON, AS_TEXT = SHOWN + "{{ a | tojson }}", SHOWN + "{{ a }}"
AS_MEMBERS = SHOWN + "{% for k, v in a.items() %}{{ k }}={{ v }};{% endfor %}"


@pytest.mark.parametrize(
    ("arguments", "written", "members"),
    [
        ('{"path": "/tmp/a", "text": "The s', '{"path": "/tmp/a", "text": "The s', "path=/tmp/a;text=The s;"),
        ('{"a": 1, "b": ', '{"a": 1, "b": ', "a=1;"),
        ('{"a": ', '{"a": ', 'arguments={"a": ;'),
        ('{"a": NaN}', '{"a": NaN}', "a=None;"),
        ("{oops}", "{oops}", "arguments={oops};"),
        ("[1]", "[1]", "arguments=[1];"),
        ('"a"', '"a"', 'arguments="a";'),
        ("x", "x", "arguments=x;"),
        ([1], "[1]", "arguments=[1];"),
        (True, "true", "arguments=true;"),
        (0, "0", "arguments=0;"),
        ("[" * 100_000, "[" * 100_000, "arguments=" + "[" * 100_000 + ";"),
    ],
)
def test_d17_arguments_that_are_no_json_object_are_shown_as_they_were_written(
    arguments: object, written: str, members: str
) -> None:
    """A reply that was cut off within a call can be sent back."""
    messages = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]
    assert text(AS_JSON, messages) == written
    assert text(AS_TEXT, messages) == written
    assert text(AS_MEMBERS, messages) == members


@pytest.mark.parametrize("arguments", ['{"a": [1, "é"]}', '{"a": "cut o', {"a": 1}, ""])
def test_t13_a_template_that_adds_arguments_to_its_text_gets_their_text(arguments: Any) -> None:
    messages = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]
    shown = arguments if isinstance(arguments, str) else json.dumps(arguments)
    assert text(SHOWN + "{{ '<' + a + '>' }}", messages) == f"<{shown or '{}'}>"
    assert text(SHOWN + "{{ a + '>' }}", messages) == f"{shown or '{}'}>"


def test_d17_arguments_without_any_json_form_are_refused_with_their_place() -> None:
    calls = [{"function": {"name": "f", "arguments": "{}"}}, {"function": {"name": "f", "arguments": {1}}}]
    with pytest.raises(InvalidRequest) as caught:
        text(PLAIN, [HI[0], {"role": "assistant", "tool_calls": calls}])
    assert caught.value.param == "messages[1].tool_calls[1].function.arguments"


@pytest.mark.parametrize("call", [{}, {"function": None}, {"function": "f"}, {"type": "custom", "custom": {}}, 5])
def test_d17_a_tool_call_without_a_function_is_refused_with_its_place(call: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        text(PLAIN, [{"role": "assistant", "tool_calls": [call]}])
    assert caught.value.param == "messages[0].tool_calls[0].function"


def test_t13_ids_and_names_are_kept_and_an_empty_list_is_no_call() -> None:
    source = "{% for m in messages %}{% if 'tool_calls' in m %}{{ m.tool_calls[0].id }}{% endif %}"
    source += "{{ m.tool_call_id }}{{ m.name }}|{% endfor %}"
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]
    messages: list[dict[str, Any]] = [
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "content": "x", "tool_call_id": "c1", "name": "f"},
        {"role": "assistant", "content": "y", "tool_calls": []},
    ]
    assert text(source, messages) == "c1|c1f||"
    assert messages[2]["tool_calls"] == []


def test_t7_fields_keep_their_order_and_what_is_no_message_is_refused() -> None:
    message = {"tool_calls": [], "x": 1, "content": [{"type": "text", "text": "a"}], "role": "user"}
    assert text("{{ messages[0] | tojson }}", [message]) == '{"x": 1, "content": "a", "role": "user"}'
    for messages, param in ((["a"], "messages[0]"), ([HI[0], {"tool_calls": 5}], "messages[1].tool_calls")):
        with pytest.raises(InvalidRequest) as caught:
            text(PLAIN, messages)  # type: ignore[arg-type]
        assert caught.value.param == param


def test_t27_reasoning_reaches_the_template_under_every_name() -> None:
    source = "{{ messages[0].reasoning_content }},{{ messages[0].reasoning }},{{ messages[0].thinking }}"
    for name in ("reasoning_content", "reasoning", "thinking"):
        assert text(source, [{"role": "assistant", "content": "", name: "r"}]) == "r,r,r"
    both = {"role": "assistant", "content": "", "reasoning": "a", "reasoning_content": "b"}
    assert text(source, [both]) == "b,a,b"
    assert text(source, HI) == ",,"
    with pytest.raises(InvalidRequest) as caught:
        text(source, [{"role": "assistant", "content": "", "reasoning": {"a": 1}}])
    assert caught.value.param == "messages[0].reasoning"


def test_t1_t3_the_requests_template_comes_before_the_servers_before_the_models() -> None:
    mine = tokenizer(default="model", tool_use="model's tools {{ tools | length }}", other="other")
    tools = [{"type": "function", "function": {"name": "f"}}]
    own, server = Renderer(mine), Renderer(mine, "server {{ 1 }}")
    assert own.chat_text(HI) == "model"
    assert own.chat_text(HI, tools=tools) == "model's tools 1"
    assert server.chat_text(HI, tools=tools) == "server 1"
    assert server.chat_text(HI, chat_template="{{ 'request' }}") == "request"
    assert server.chat_text(HI, chat_template="other") == "other"
    assert Renderer(mine, "tool_use").chat_text(HI, tools=tools) == "model's tools 1"
    with pytest.raises(InvalidRequest, match="cannot be compiled") as caught:
        own.chat_text(HI, chat_template="{% if %}")
    assert caught.value.param == "chat_template"
    own.close()
    server.close()


def test_t4_t26_without_a_template_completions_work_and_chat_says_why_not() -> None:
    renderer = Renderer(tokenizer())
    assert not renderer.has_template
    assert renderer.render_text("a", add_special_tokens=False) == [97]
    with pytest.raises(InvalidRequest) as caught:
        renderer.chat_text(HI)
    assert caught.value.message == NO_TEMPLATE
    with pytest.raises(InvalidRequest, match="name one of them in `chat_template`: rag"):
        Renderer(tokenizer(rag="x")).chat_text(HI)


def test_t7_t23_variables_come_from_the_request_before_the_server() -> None:
    source = "{{ a }}{{ b }}{{ bos_token }}{% if documents %}{{ documents[0].text }}{% endif %}"
    renderer = Renderer(tokenizer(default=source), default_template_kwargs={"a": 1, "b": 2})
    assert renderer.chat_text(HI) == "12<s>"
    assert renderer.chat_text(HI, chat_template_kwargs={"a": 3, "bos_token": "!"}) == "32!"
    assert renderer.chat_text(HI, documents=[{"title": "t", "text": "d"}]) == "12<s>d"
    for name in ("messages", "tools", "add_generation_prompt", "_octavo_tick"):
        with pytest.raises(InvalidRequest) as caught:
            renderer.chat_text(HI, chat_template_kwargs={name: 1})
        assert caught.value.param == f"chat_template_kwargs.{name}"
        with pytest.raises(InvalidConfig, match=f"--default-chat-template-kwargs: `{name}`"):
            Renderer(tokenizer(default=source), default_template_kwargs={name: 1})


def test_t24_a_template_gets_only_the_variables_that_it_reads() -> None:
    source = "{% if x is not defined %}{% set x = 'd' %}{% endif %}{{ x }}{{ range(2) | length }}{{ bos_token }}"
    renderer = Renderer(tokenizer(default=source), default_template_kwargs={"range": "a", "tokenize": True})
    assert renderer.template_variables == {"x", "bos_token"}
    assert renderer.chat_text(HI) == "d2<s>"
    given = {"x": "!", "range": "b", "raise_exception": 1, "self": 2, "context": 3, "_octavo_concat": 4, "messages_": 5}
    assert renderer.chat_text(HI, chat_template_kwargs=given) == "!2<s>"
    assert renderer.chat_text(HI, chat_template="{{ x }}{{ y }}", chat_template_kwargs=given | {"y": 1}) == "!1"
    renderer.close()


def test_t23_a_default_that_no_template_reads_is_said_at_start(caplog: pytest.LogCaptureFixture) -> None:
    Renderer(tokenizer(default=PLAIN), default_template_kwargs={"enable_thinking": False})
    assert "does not read enable_thinking" in caplog.text


def test_t1_every_template_of_the_tokenizer_can_be_named_and_a_bad_one_fails_alone() -> None:
    renderer = Renderer(tokenizer(default=PLAIN, rag="rag {{ messages[0].content }}", bad="{% if %}", mute="{{ 1/0 }}"))
    assert renderer.template_names == {"default", "rag", "bad", "mute"}
    assert renderer.chat_text(HI, chat_template="rag") == "rag hi"
    with pytest.raises(InvalidRequest, match="cannot be compiled"):
        renderer.chat_text(HI, chat_template="bad")
    with pytest.raises(InvalidRequest, match="ZeroDivisionError"):
        renderer.chat_text(HI, chat_template="mute")
    assert renderer.chat_text(HI, chat_template="default") == "<s>user:hi|"
    renderer.close()


@pytest.mark.parametrize("content_format", ["auto", "string", "openai"])
@pytest.mark.parametrize("source", [PLAIN, PARTS, BOTH])
def test_a_requests_template_renders_as_the_servers_own(source: str, content_format: ContentFormatOption) -> None:
    calls = [{"function": {"name": "f", "arguments": '{"a": 1}'}}]
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": [{"type": "text", "text": "é"}, "b\ud800"]},
        *HI,
        {"role": "assistant", "content": "c", "tool_calls": calls, "reasoning": "r"},
    ]
    options: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": content_format == "auto"}
    own = Renderer(tokenizer(default=source), content_format=content_format)
    other = Renderer(tokenizer(default="other"), content_format=content_format)
    assert other.chat_text(messages, chat_template=source, **options) == own.chat_text(messages, **options)
    other.close()


def test_no_messages_are_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        text(PLAIN, [])
    assert caught.value.param == "messages"


def test_a_text_that_cannot_fit_is_refused_without_tokenizing() -> None:
    renderer = Renderer(tokenizer(default=PLAIN), max_model_len=100)
    assert len(renderer.render_text("é" * 10)) == 21
    with pytest.raises(ContextLengthExceeded, match="maximum context length is 100 tokens.*at least 666667 tokens"):
        renderer.render_text("é" * 1_000_000)


def test_a_lone_surrogate_is_the_callers_error() -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        renderer = Renderer(tokenizer(default=PLAIN))
        renderer.render_text(renderer.chat_text([{"role": "user", "content": "a\ud800"}]))


def test_t28_a_broken_template_stops_the_start(tmp_path: Path) -> None:
    before = len(psutil.Process().children())
    with pytest.raises(CheckpointError, match="The chat template 'default' of test cannot be compiled"):
        Renderer(tokenizer(default="{% if %}"))
    with pytest.raises(StartupError, match="failed to open"):
        Renderer(tokenizer(), str(tmp_path / "missing.jinja"))
    with pytest.raises(CheckpointError, match="The chat template 'tool_use' of test cannot render"):
        Renderer(tokenizer(default=PLAIN, tool_use="{{ nothing.at.all }}"))
    Renderer(tokenizer(default=PLAIN, rag="{% if %}"))  # one that nobody has asked for
    assert len(psutil.Process().children()) <= before
