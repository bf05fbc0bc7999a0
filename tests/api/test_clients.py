"""The official clients of other APIs than OpenAI's, as their users write them (docs/clients.md)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import pytest
from anthropic import Anthropic
from ollama import Client

from support.scripted_server import ScriptedServer
from support.server_process import ServerProcess

KEY = "test-key"
GREEDY = {"temperature": 0}
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
OSLO: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"name": "get_weather", "description": "Tells the weather.", "input_schema": SCHEMA}


def get_weather(city: str) -> str:
    """Tells the weather.

    Args:
        city: where
    """
    return f"Rain in {city}"


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(tools="hermes", reasoning="qwen3", api_key=[KEY]) as server:
        yield server


@pytest.fixture(scope="module")
def claude(server: ScriptedServer) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def llama(server: ScriptedServer) -> Iterator[Client]:
    with Client(server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client:
        yield client


# ------------------------------------------------------------------------------------------------ anthropic
def test_anthropic_create(server: ScriptedServer, claude: Anthropic) -> None:
    server.replies = [["<think>", "Hm.</think>", "Hi ", "there."]]
    message = claude.messages.create(model="tiny", max_tokens=100, messages=HELLO, system="Be brief.")
    thinking, text = message.content
    assert (thinking.type, text.type) == ("thinking", "text")
    assert text.type == "text" and text.text == "Hi there."
    assert message.stop_reason == "end_turn" and message.usage.input_tokens == 5
    assert server.sent[0] == {"role": "system", "content": "Be brief."}


def test_anthropic_stream_helper(server: ScriptedServer, claude: Anthropic) -> None:
    server.replies = [["<think>", "Hm.</think>", "Hi ", "there.", CALL]]
    with claude.messages.stream(model="tiny", max_tokens=100, messages=HELLO, tools=[TOOL]) as stream:
        assert "".join(stream.text_stream) == "Hi there."
        message = stream.get_final_message()
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
    call = message.content[2]
    assert call.type == "tool_use" and call.input == {"city": "Oslo"}
    assert message.stop_reason == "tool_use" and message.usage.output_tokens > 10


def test_anthropic_tool_runner(server: ScriptedServer, claude: Anthropic) -> None:
    """The client calls the function, and sends its result back until the model answers in words."""
    server.replies = [["Let me see.", CALL], ["It rains."]]
    tool = anthropic.beta_tool(get_weather)
    runner = claude.beta.messages.tool_runner(model="tiny", max_tokens=100, tools=[tool], messages=OSLO)
    [text] = runner.until_done().content
    assert text.type == "text" and text.text == "It rains."
    assert [message["role"] for message in server.sent] == ["user", "assistant", "tool"]
    assert server.sent[2]["content"] == "Rain in Oslo" and server.sent[2]["name"] == "get_weather"


def test_anthropic_counts_tokens_and_lists_models(claude: Anthropic) -> None:
    assert claude.messages.count_tokens(model="tiny", messages=HELLO).input_tokens == len("user:Hello")
    assert [model.id for model in claude.models.list()] == ["tiny", "alias"]
    assert claude.models.retrieve("alias").max_input_tokens == 1024


def test_anthropic_errors(server: ScriptedServer, claude: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(model="other", max_tokens=9, messages=HELLO)
    assert missing.value.request_id and "does not exist" in str(missing.value)
    with pytest.raises(anthropic.BadRequestError, match="text only"):
        claude.messages.create(model="tiny", max_tokens=9, messages=[{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": "http://localhost/a.png"}}]}])  # fmt: skip
    with pytest.raises(anthropic.AuthenticationError):
        claude.with_options(api_key="wrong").messages.create(model="tiny", max_tokens=9, messages=HELLO)
    server.replies = [["Hi", RuntimeError("broken")]]
    with pytest.raises(anthropic.APIError, match="Internal server error"):
        list(claude.messages.create(model="tiny", max_tokens=9, messages=HELLO, stream=True))


# ------------------------------------------------------------------------------------------------ ollama
def test_ollama_chat(server: ScriptedServer, llama: Client) -> None:
    server.replies = [["<think>", "Hm.</think>", "Hi ", "there."]]
    reply = llama.chat("tiny", HELLO, think=True, options=GREEDY)
    assert (reply.message.content, reply.message.thinking, reply.done_reason) == ("Hi there.", "Hm.", "stop")
    parts = list(llama.chat("tiny", HELLO, stream=True))
    assert "".join(part.message.content or "" for part in parts) == "Hi there."
    assert parts[-1].done and parts[-1].eval_count == len("<think>Hm.</think>Hi there.")


def test_ollama_tools(server: ScriptedServer, llama: Client) -> None:
    server.replies = [[CALL], ["It rains."]]
    messages: list[Any] = list(OSLO)
    reply = llama.chat("tiny", messages, tools=[get_weather])
    [call] = reply.message.tool_calls or []
    messages += [
        reply.message,
        {"role": "tool", "tool_name": "get_weather", "content": get_weather(**call.function.arguments)},
    ]
    assert llama.chat("tiny", messages, tools=[get_weather]).message.content == "It rains."
    assert server.sent[-1]["content"] == "Rain in Oslo"


def test_ollama_generate_and_models(server: ScriptedServer, llama: Client) -> None:
    server.replies = [["Hi."]]
    assert llama.generate("tiny", "Hello", keep_alive=-1).response == "Hi."
    assert [model.model for model in llama.list().models] == ["tiny", "alias"]
    assert llama.ps().models[0].context_length == 1 << 16
    assert llama.show("tiny").capabilities == ["completion", "tools", "thinking"]


def test_ollama_errors(llama: Client) -> None:
    with pytest.raises(ollama.ResponseError, match="does not exist") as missing:
        llama.chat("other", HELLO)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="does not support the Embeddings API"):
        llama.embed("tiny", "Hello")


# ------------------------------------------------------------------------------------------------ real weights
@pytest.fixture(scope="module")
def qwen(qwen_gguf: Path) -> Iterator[str]:
    flags = ("--served-model-name", "qwen", "--max-model-len", "2048", "--num-kv-blocks-override", "256")
    with ServerProcess(qwen_gguf, *flags) as process:
        yield process.wait_ready(180).url


@pytest.mark.model
def test_a_real_model_calls_and_answers_over_both_apis(qwen: str) -> None:
    """Without a flag about tools: both APIs take them wherever the model's files show how it calls."""
    with Anthropic(base_url=qwen, api_key="none", max_retries=0, timeout=120) as client:
        fields: dict[str, Any] = {"model": "qwen", "max_tokens": 80, "tools": [TOOL], "extra_body": GREEDY}
        with client.messages.stream(messages=OSLO, **fields) as stream:
            first = stream.get_final_message()
        call = first.content[-1]
        assert call.type == "tool_use" and (call.name, call.input) == ("get_weather", {"city": "Oslo"})
        assert first.stop_reason == "tool_use"
        result = {
            "type": "tool_result",
            "tool_use_id": call.id,
            "content": [{"type": "text", "text": "rain, 7 degrees"}],
        }
        messages = [*OSLO, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
        del fields["tools"]  # else this small model goes on calling
        second = client.messages.create(messages=messages, **fields)
        assert second.content[0].type == "text" and second.content[0].text
        usage = client.messages.create(messages=messages, **fields | {"max_tokens": 1}).usage
        counted = client.messages.count_tokens(model="qwen", messages=messages).input_tokens
        assert usage.cache_read_input_tokens and usage.input_tokens + usage.cache_read_input_tokens == counted
    reply = Client(qwen, timeout=120).chat("qwen", OSLO, tools=[get_weather], options=GREEDY)
    assert [call.function.arguments for call in reply.message.tool_calls or []] == [{"city": "Oslo"}]
    assert reply.eval_duration and reply.total_duration and reply.total_duration >= reply.eval_duration
