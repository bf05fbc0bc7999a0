"""Tool calling as a user has it: servers with the flags of the documentation, real weights, the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openai import OpenAI

from api.tool_clients import Reply, folded, reply_of
from support.server_process import ServerProcess
from support.tool_fakes import CLOCK, WEATHER

pytestmark = pytest.mark.model

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = ("--max-model-len", "2048", "--num-kv-blocks-override", "256")
OSLO: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
CITIES: list[Any] = [{"role": "user", "content": "Call get_weather for Oslo and then get_weather for Rome."}]
CALL = ("get_weather", {"city": "Oslo"})


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


# ------------------------------------------------------------------------------------------------ hermes
@pytest.fixture(scope="module")
def qwen(qwen_gguf: Path) -> Iterator[OpenAI]:
    """The documented flags for Hermes models; Qwen2.5 writes calls as they do."""
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--served-model-name", "qwen")
    with ServerProcess(qwen_gguf, *flags, *SIZES) as process:
        url = process.wait_ready(180).url
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            yield client


def ask(client: OpenAI, messages: list[Any] = OSLO, **fields: Any) -> Reply:
    return reply_of(client, **{"model": "qwen", "messages": messages, "tools": [WEATHER, CLOCK]} | fields)


def test_auto_calls_where_a_call_is_due_and_answers_where_none_is(qwen: OpenAI) -> None:
    """F2, F22, F23, F25."""
    reply = ask(qwen)
    assert (reply.decoded, reply.content, reply.finish_reason) == ([CALL], None, "tool_calls")
    reply = ask(qwen, [{"role": "user", "content": "Hello! Who are you?"}], max_tokens=48)
    assert not reply.calls and reply.content and reply.finish_reason in ("stop", "length")


def test_required_calls_one_after_the_other_or_one_alone(qwen: OpenAI) -> None:
    """F6, F9, F30."""
    calls = ask(qwen, CITIES, tool_choice="required").decoded
    assert calls == [("get_weather", {"city": "Oslo"}), ("get_weather", {"city": "Rome"})]
    assert ask(qwen, CITIES, tool_choice="required", parallel_tool_calls=False).decoded == calls[:1]


def test_required_calls_where_the_model_would_not(qwen: OpenAI) -> None:
    """F6: and at any temperature the arguments fit the schema."""
    tools = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in (WEATHER, CLOCK)}
    for seed in (1, 2):
        reply = ask(
            qwen, [{"role": "user", "content": "Hello!"}], tool_choice="required", parallel_tool_calls=False,
            temperature=1.2, seed=seed,
        )  # fmt: skip
        [(name, arguments)] = reply.decoded
        jsonschema.validate(arguments, tools[name])
        assert not reply.content and reply.finish_reason == "tool_calls"


def test_a_named_function_is_called_whatever_was_asked(qwen: OpenAI) -> None:
    """F5, F20, F21: one without parameters is given none."""
    reply = ask(qwen, tool_choice=named("get_time"))
    assert (reply.calls, reply.content, reply.finish_reason) == ([("get_time", "{}")], "", "stop")
    assert ask(qwen, tool_choice=named("get_weather")).decoded == [CALL]


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_of_allowed_tools_only_those_are_called(mode: str, qwen: OpenAI) -> None:
    """F5, F6."""
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named("get_weather")]}}
    assert ask(qwen, tool_choice=allowed).decoded == [CALL]
    if mode == "required":
        allowed["allowed_tools"]["tools"] = [named("get_time")]
        assert ask(qwen, tool_choice=allowed).calls == [("get_time", "{}")]


def test_none_leaves_the_call_as_text(qwen: OpenAI) -> None:
    """F7: the call as this model wrote it, with a fence around it or none."""
    reply = ask(qwen, tool_choice="none")
    content = reply.content or ""
    assert not reply.calls and reply.finish_reason == "stop"
    assert json.loads(content[content.index("{") : content.rindex("}") + 1])["name"] == "get_weather"


def test_strict_tools_are_held_to_their_schema_in_auto_mode(qwen: OpenAI) -> None:
    """F10."""
    schema = {
        "type": "object",
        "properties": {"place": {"enum": ["59.9N 10.7E", "41.9N 12.5E"]}},
        "required": ["place"],
        "additionalProperties": False,
    }
    strict = {"type": "function", "function": {"name": "get_weather", "parameters": schema, "strict": True}}
    [(name, arguments)] = ask(qwen, tools=[strict]).decoded
    assert name == "get_weather"
    jsonschema.validate(arguments, schema)


def test_a_limit_within_a_call_keeps_what_was_written(qwen: OpenAI) -> None:
    """F22, F27. What stands around a call differs between kernels, a fence or nothing: two of the cuts are within."""
    for choice in ("auto", named("get_weather")):
        whole = ask(qwen, tool_choice=choice)
        [(_, written)] = whole.calls
        kept = set()
        for less in range(3, 8):
            reply = ask(qwen, max_tokens=whole.num_tokens - less, tool_choice=choice)
            [(name, arguments)] = reply.calls
            assert name == "get_weather" and arguments and written.startswith(arguments)
            assert not reply.content and reply.finish_reason == "length"
            kept.add(arguments)
        assert len(kept - {written}) >= 2


def test_a_result_goes_back_to_the_model(qwen: OpenAI) -> None:
    """F31: the history as the client has it is understood, and the prompt holds the call and its result."""
    message = (
        qwen.chat.completions.create(model="qwen", messages=OSLO, tools=[WEATHER], temperature=0).choices[0].message
    )
    assert message.tool_calls is not None
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "It snows, at -7 degrees."}
    history = [*OSLO, message.model_dump(exclude_none=True), result]
    root = str(qwen.base_url).removesuffix("/v1/")
    asked: Any = qwen.post(
        f"{root}/tokenize", body={"model": "qwen", "messages": history, "tools": [WEATHER]}, cast_to=object
    )
    told: Any = qwen.post(f"{root}/detokenize", body={"model": "qwen", "tokens": asked["tokens"]}, cast_to=object)
    prompt = told["prompt"]
    assert '"name": "get_weather", "arguments": {"city": "Oslo"}' in prompt
    assert "<tool_response>\nIt snows, at -7 degrees.\n</tool_response>" in prompt
    answer = reply_of(
        qwen, model="qwen", messages=[*OSLO, message, result], tools=[WEATHER], tool_choice="none", max_tokens=48
    )
    assert answer.content and not answer.calls


def test_calls_stream_while_they_are_written(qwen: OpenAI) -> None:
    """F25: a long argument comes in many events, not at the end of the call."""
    poem = {
        "type": "function",
        "function": {
            "name": "print_text",
            "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
        },
    }
    messages: list[Any] = [
        {"role": "user", "content": "Print the sentence: A cat sat on a mat and looked at the moon."}
    ]
    fields: dict[str, Any] = {"model": "qwen", "messages": messages, "tools": [poem], "temperature": 0}
    events = list(qwen.chat.completions.create(**fields, tool_choice="required", stream=True))
    assert "cat" in json.loads(folded(events).calls[0][1])["text"]
    pieces = [news for event in events for choice in event.choices for news in choice.delta.tool_calls or []]
    assert len(pieces) > 8


# ------------------------------------------------------------------------------------------------ mistral
@pytest.fixture(scope="module")
def mistral(smollm2_gguf: Path) -> Iterator[OpenAI]:
    """The documented flags for Mistral models, on a model that knows nothing of their format."""
    template = str(EXAMPLES / "tool_chat_template_mistral_parallel.jinja")
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "mistral", "--chat-template", template)
    with ServerProcess(smollm2_gguf, *flags, "--served-model-name", "m", *SIZES) as process:
        url = process.wait_ready(180).url
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            yield client


def test_the_mistral_recipe(mistral: OpenAI) -> None:
    """C7, F28, F31: calls forced and found, and their history with ids of nine characters."""
    fields: dict[str, Any] = {"model": "m", "messages": OSLO, "tools": [WEATHER, CLOCK], "max_tokens": 200}
    forced = reply_of(mistral, **fields, tool_choice=named("get_weather"))
    assert list(forced.decoded[0][1]) == ["city"]
    text = (
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}}, {"name": "get_time", "arguments": {}}]'
    )
    reply = reply_of(mistral, **fields, extra_body={"guided_choice": [text]})
    assert reply.decoded == [CALL, ("get_time", {})] and reply.finish_reason == "tool_calls"
    assert all(len(call_id) == 9 for call_id in reply.call_ids)
    calls = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for call_id, (name, arguments) in zip(reply.call_ids, reply.calls, strict=True)
    ]
    results = [{"role": "tool", "tool_call_id": call_id, "content": "-7"} for call_id in reply.call_ids]
    fields["messages"] = [*OSLO, {"role": "assistant", "tool_calls": calls}, *results]
    assert reply_of(mistral, **fields, tool_choice="none").content is not None


# ------------------------------------------------------------------------------------------------ documented clients
LLAMA = "NousResearch/Meta-Llama-3-8B-Instruct"


def test_the_documented_clients_run_as_they_are_written(smollm2_gguf: Path) -> None:
    """The two examples of the OpenAI-compatible server's page, but for the port; the model is another of that name."""
    flags = ("--dtype", "auto", "--api-key", "token-abc123", "--served-model-name", LLAMA)
    with ServerProcess(smollm2_gguf, *flags, *SIZES) as process:
        client = OpenAI(
            base_url=f"{process.wait_ready(180).url}/v1",
            api_key="token-abc123",
        )
        completion = client.chat.completions.create(model=LLAMA, messages=[{"role": "user", "content": "Hello!"}])
        assert completion.choices[0].message.content

        completion = client.chat.completions.create(
            model=LLAMA,
            messages=[{"role": "user", "content": "Classify this sentiment: vLLM is wonderful!"}],
            extra_body={"guided_choice": ["positive", "negative"]},
        )
        assert completion.choices[0].message.content in ("positive", "negative")
        client.close()
