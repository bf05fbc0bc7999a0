"""Libraries above the clients of single APIs, run as their users write them (docs/clients.md)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from support.scripted_server import ScriptedServer

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import asks the internet for prices
langchain_openai = pytest.importorskip("langchain_openai")
litellm = pytest.importorskip("litellm")
agents = pytest.importorskip("agents")

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
#: What an agent's model says: a call behind a thought, and the answer behind another.
TURNS = [["<think>", "Let me ", "ask.</think>", CALL], ["<think>Now I know.", "</think>It ", "rains."]]
OSLO: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "Tells the weather.", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
ENCRYPTED = ["reasoning.encrypted_content"]


class City(BaseModel):
    """A city."""

    name: str
    population: int


CITY, CITY_TEXT = City(name="Oslo", population=700_000), '{"name": "Oslo", "population": 700000}'


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(tools="hermes", reasoning="qwen3", enable_auto_tool_choice=True) as server:
        yield server


def thoughts_sent(server: ScriptedServer) -> list[str]:
    """What the model was shown of its own thinking."""
    return [message["reasoning_content"] for message in server.sent if message.get("reasoning_content")]


# ------------------------------------------------------------------------------------------------ litellm
@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "anthropic", "ollama_chat"])
def test_litellm_completion(server: ScriptedServer, provider: str) -> None:
    """Whole and streamed, with a call and its result, by each of the APIs that it speaks."""
    base = server.url + ("v1" if provider in ("openai", "hosted_vllm") else "")
    fields = {"model": f"{provider}/tiny", "api_base": base, "api_key": "none", "max_tokens": 300, "timeout": 60}
    server.replies = [TURNS[0], TURNS[0], TURNS[1]]
    chunks = list(litellm.completion(messages=OSLO, tools=[TOOL], stream=True, **fields))
    for reply in (
        litellm.stream_chunk_builder(chunks, messages=OSLO),
        litellm.completion(messages=OSLO, tools=[TOOL], **fields),
    ):
        message = reply.choices[0].message
        [call] = message.tool_calls
        assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Oslo"}')
        assert message.reasoning_content == "Let me ask." and reply.choices[0].finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": call.id, "name": "get_weather", "content": "rain"}
    answer = litellm.completion(messages=[*OSLO, message.model_dump(), result], tools=[TOOL], **fields)
    assert answer.choices[0].message.content == "It rains." and answer.usage.prompt_tokens == 5
    assert [message["role"] for message in server.sent] == ["user", "assistant", "tool"]
    assert server.sent[2]["content"] == "rain"


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellm_responses(server: ScriptedServer, provider: str) -> None:
    fields = {"model": f"{provider}/tiny", "api_base": f"{server.url}v1", "api_key": "none", "timeout": 60}
    server.replies = [TURNS[0]]
    tools = [{"type": "function", **FUNCTION}]
    thought, call = litellm.responses(input="Oslo?", tools=tools, include=ENCRYPTED, store=False, **fields).output
    assert call.arguments == '{"city": "Oslo"}' and thought.encrypted_content
    events = list(litellm.responses(input="Oslo?", tools=tools, stream=True, **fields))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "anthropic"])
def test_litellm_anthropic_route(server: ScriptedServer, provider: str) -> None:
    """Anthropic's API as litellm offers it, whatever it speaks to the server: for `openai` that is /v1/responses."""
    base = server.url + ("v1" if provider != "anthropic" else "")
    server.replies = [["Hi ", "there."]]
    ask = litellm.anthropic_messages(
        model=f"{provider}/tiny", messages=OSLO, max_tokens=300, api_base=base, api_key="none", timeout=60
    )
    assert asyncio.run(ask)["content"][0]["text"] == "Hi there."


def test_litellm_formats(server: ScriptedServer) -> None:
    server.replies = [[CITY_TEXT]]
    fields = {"model": "openai/tiny", "api_base": f"{server.url}v1", "api_key": "none", "timeout": 60}
    reply = litellm.completion(messages=OSLO, response_format=City, **fields)
    assert City.model_validate_json(reply.choices[0].message.content) == CITY
    assert "population" in str(server.server.grammars.specs[-1].source)


# ------------------------------------------------------------------------------------------------ langchain-openai
def chat_model(server: ScriptedServer, **fields: Any) -> Any:
    return langchain_openai.ChatOpenAI(
        model="tiny", base_url=f"{server.url}v1", api_key="none", max_retries=0, timeout=60, **fields
    )


LANGCHAIN: dict[str, dict[str, Any]] = {
    "chat": {"stream_usage": True},
    "responses": {"use_responses_api": True},
    "responses that are kept": {"use_previous_response_id": True},
    "responses that are not kept": {"store": False, "include": ENCRYPTED, "output_version": "responses/v1"},
}


@pytest.mark.parametrize("name", LANGCHAIN)
def test_langchain_tools(server: ScriptedServer, name: str) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    model = chat_model(server, **LANGCHAIN[name]).bind_tools([TOOL])
    server.replies = [TURNS[0], TURNS[0], TURNS[1]]
    question = HumanMessage("What is the weather in Oslo?")
    streamed = None
    for chunk in model.stream([question]):
        streamed = chunk if streamed is None else streamed + chunk
    for said in (streamed, model.invoke([question])):
        assert said is not None
        [call] = said.tool_calls
        assert (call["name"], call["args"]) == ("get_weather", {"city": "Oslo"})
        assert said.usage_metadata["input_tokens"] == 5
    answer = model.invoke([question, said, ToolMessage("rain", tool_call_id=call["id"])])
    assert answer.text == "It rains."
    assert [message["role"] for message in server.sent] == ["user", "assistant", "tool"]
    assert thoughts_sent(server) == ([] if name == "chat" else ["Let me ask."])  # over chat it sends none back


@pytest.mark.parametrize("fields", [{}, {"use_responses_api": True}], ids=["chat", "responses"])
def test_langchain_structured_output(server: ScriptedServer, fields: dict[str, Any]) -> None:
    server.replies = [[CITY_TEXT], [f'<tool_call>\n{{"name": "City", "arguments": {CITY_TEXT}}}\n</tool_call>']]
    model = chat_model(server, **fields)
    assert model.with_structured_output(City).invoke("Oslo?") == CITY
    assert "population" in str(server.server.grammars.specs[-1].source)
    assert model.with_structured_output(City, method="function_calling").invoke("Oslo?") == CITY


def test_langchain_completions_and_batches(server: ScriptedServer) -> None:
    server.replies = [["two"]]
    llm = langchain_openai.OpenAI(model="tiny", base_url=f"{server.url}v1", api_key="none", max_retries=0)
    assert llm.invoke("one") == "two" == "".join(llm.stream("one"))
    assert [reply.content for reply in chat_model(server).batch(["a", "b"])] == ["two", "two"]


# ------------------------------------------------------------------------------------------------ openai-agents
@pytest.mark.parametrize("settings", [{}, {"store": False, "response_include": ENCRYPTED}], ids=["kept", "not kept"])
def test_an_agent_that_thinks_sees_its_thoughts_again(server: ScriptedServer, settings: dict[str, Any]) -> None:
    """In its default mode, whole and streamed."""
    agents.set_tracing_disabled(True)

    @agents.function_tool  # type: ignore[untyped-decorator]
    def get_weather(city: str) -> str:
        """Tells the weather."""
        return f"rain in {city}"

    async def work() -> None:
        async with agents.AsyncOpenAI(base_url=f"{server.url}v1", api_key="none", max_retries=0) as client:
            model = agents.OpenAIResponsesModel(model="tiny", openai_client=client)
            agent = agents.Agent(
                name="a", model=model, tools=[get_weather], model_settings=agents.ModelSettings(**settings)
            )
            server.replies = [*TURNS, *TURNS]
            done = await agents.Runner.run(agent, "Oslo?")
            assert done.final_output == "It rains." and thoughts_sent(server) == ["Let me ask."]
            running = agents.Runner.run_streamed(agent, "Oslo?")
            kinds = [event.name async for event in running.stream_events() if event.type == "run_item_stream_event"]
            assert running.final_output == "It rains." and thoughts_sent(server) == ["Let me ask."]
            assert {"tool_called", "tool_output", "message_output_created"} <= set(kinds)

    asyncio.run(work())
