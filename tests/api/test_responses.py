"""The Responses API as its clients have it: the `openai` package, and the Agents SDK in its default mode."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from server.test_responses import TOOLS
from support.client_fakes import TOKENIZER
from support.mcp_fakes import ADD, server_calling
from support.mcp_server import running
from support.server_fakes import Server, answer, make_server
from support.server_process import ServerProcess
from support.tool_fakes import ONE, server_saying

OSLO = "What is the weather in Oslo?"


class Answer(BaseModel):
    n: int


# ------------------------------------------------------------------------------------------------ on fakes
def with_client(server: Server, work: Callable[[AsyncOpenAI], Awaitable[None]]) -> None:
    """The official client on the application, without a socket."""

    async def run() -> None:
        transport = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=server.app))
        url = "http://localhost/v1"
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=transport) as client:
            await asyncio.wait_for(work(client), 20)

    asyncio.run(run())


def test_n2_create_stream_retrieve_and_delete() -> None:
    async def work(client: AsyncOpenAI) -> None:
        made = await client.responses.create(input="Hello", metadata={"a": "b"})
        assert (made.output_text, made.status, made.metadata) == ("Hi!", "completed", {"a": "b"})
        async with client.responses.stream(model="tiny", input="Hello", previous_response_id=made.id) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert final.output_text == "Hi!" and kinds[-1] == "response.completed"
        assert (await client.responses.retrieve(final.id)).previous_response_id == made.id
        items = await client.responses.input_items.list(final.id)
        assert [item.content[0].text for item in items.data] == ["Hello"]  # type: ignore[union-attr]
        await client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)
        count = await client.responses.input_tokens.count(input="Hello")
        assert count.input_tokens == len("user:Hello")

    with_client(make_server(), work)


def test_in_the_background_and_cancelled() -> None:
    async def work(client: AsyncOpenAI) -> None:
        made = await client.responses.create(input="Hello", background=True)
        assert made.status == "queued"
        cancelled = await client.responses.cancel(made.id)
        assert cancelled.status == "cancelled"
        gate.set()
        made = await client.responses.create(input="Hello", background=True)
        stream = await client.responses.retrieve(made.id, stream=True)
        events = [event async for event in stream]
        assert events[-1].type == "response.completed"
        later = await client.responses.retrieve(made.id, stream=True, starting_after=events[-2].sequence_number)
        assert [event.type async for event in later] == ["response.completed"]

    gate = asyncio.Event()
    with_client(make_server(lambda request: [gate, *answer("Hi!")]), work)


def test_parsed_outputs_and_conversations() -> None:
    async def work(client: AsyncOpenAI) -> None:
        parsed = await client.responses.parse(input="A number?", text_format=Answer)
        assert parsed.output_parsed == Answer(n=5)
        talk = await client.conversations.create(items=[{"role": "user", "content": "One"}])
        made = await client.responses.create(input="Two", conversation=talk.id)
        assert made.conversation is not None and made.conversation.id == talk.id
        page = await client.conversations.items.list(talk.id, order="asc")
        assert [item.role for item in page.data] == ["user", "user", "assistant"]  # type: ignore[union-attr]
        await client.conversations.delete(talk.id)

    with_client(make_server(lambda request: answer('{"n": 5}')), work)


def test_a_call_whole_and_streamed_is_the_same() -> None:
    async def work(client: AsyncOpenAI) -> None:
        tools: Any = TOOLS
        made = await client.responses.create(input="Weather?", tools=tools)
        async with client.responses.stream(model="tiny", input="Weather?", tools=tools) as stream:
            final = await stream.get_final_response()
        for response in (made, final):
            [call] = response.output
            assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Oslo"}

    with_client(server_saying(ONE), work)


def test_tools_of_an_mcp_server_with_the_client_and_with_the_agents_sdk() -> None:
    agents = pytest.importorskip("agents")
    agents.set_tracing_disabled(True)

    async def work(client: AsyncOpenAI) -> None:
        tool: Any = {"type": "mcp", "server_label": "small", "server_url": run.url, "require_approval": "never"}
        made = await client.responses.create(input="Sum?", tools=[tool])
        async with client.responses.stream(model="tiny", input="Sum?", tools=[tool]) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert {"response.mcp_list_tools.completed", "response.mcp_call.completed"} <= set(kinds)
        for response in (made, final):
            listed, call, _ = response.output
            assert listed.type == "mcp_list_tools" and listed.tools[0].name == "add"
            assert (call.type == "mcp_call" and call.output, response.output_text) == ("3", "It is 3.")
        agent = agents.Agent(
            name="summer",
            model=agents.OpenAIResponsesModel(model="tiny", openai_client=client),
            tools=[agents.HostedMCPTool(tool_config=tool)],
        )
        assert (await agents.Runner.run(agent, "Sum?")).final_output == "It is 3."

    with running() as run:
        with_client(server_calling(run, *[ADD, "It is 3."] * 3), work)


# ------------------------------------------------------------------------------------------------ a process that dies
def test_u18_a_response_of_a_server_that_was_killed_has_failed(tmp_path: Path) -> None:
    TOKENIZER._backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "chat_template": template}))
    flags = ("--responses-store", str(tmp_path / "responses.db"))
    fields: dict[str, Any] = {"input": "a", "max_output_tokens": 64, "extra_body": {"ignore_eos": True}}
    with ServerProcess(tmp_path, *flags, fake=True, env={"FAKE_STEP_SECONDS": "0.5"}) as process:
        client = OpenAI(base_url=f"{process.wait_ready().url}/v1", api_key="none", max_retries=0)
        done = client.responses.create(input="a", max_output_tokens=1)
        lost = client.responses.create(**fields, background=True)
        process.process.kill()
        process.process.wait()
    with ServerProcess(tmp_path, *flags, fake=True) as process:
        client = OpenAI(base_url=f"{process.wait_ready().url}/v1", api_key="none", max_retries=0)
        assert client.responses.retrieve(done.id).output_text == done.output_text
        kept = client.responses.retrieve(lost.id)
        assert kept.status == "failed" and kept.error is not None and "ended" in kept.error.message
        assert client.responses.create(**fields, previous_response_id=done.id).status == "incomplete"


# ------------------------------------------------------------------------------------------------ real weights
@pytest.fixture(scope="module")
def qwen(qwen_gguf: Path) -> Iterator[OpenAI]:
    template = str(Path(__file__).parent / "result_as_text.jinja")
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--chat-template", template)
    sizes = ("--max-model-len", "1024", "--num-kv-blocks-override", "128")
    with ServerProcess(qwen_gguf, *flags, *sizes, "--served-model-name", "qwen") as process:
        url = process.wait_ready(180).url
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
            yield client


@pytest.mark.model
def test_a_call_its_output_and_the_answer_are_those_of_chat(qwen: OpenAI) -> None:
    tools: Any = TOOLS[:1]
    first = qwen.responses.create(model="qwen", input=OSLO, tools=tools, temperature=0)
    [call] = first.output
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Oslo"}
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "It snows, at -7 degrees."}]
    fields: Any = {"model": "qwen", "tools": tools, "temperature": 0, "previous_response_id": first.id}
    second = qwen.responses.create(input=output, **fields)
    with qwen.responses.stream(input=output, **fields) as stream:
        assert stream.get_final_response().output_text == second.output_text
    messages: Any = [{"role": "user", "content": OSLO}]
    chat: Any = {"model": "qwen", "tools": [{"type": "function", "function": {**TOOLS[0]}}], "temperature": 0}
    del chat["tools"][0]["function"]["type"]
    said = qwen.chat.completions.create(messages=messages, **chat).choices[0].message
    messages += [
        said.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": said.tool_calls[0].id, "content": "It snows, at -7 degrees."},  # type: ignore[index]
    ]
    theirs = qwen.chat.completions.create(messages=messages, **chat)
    assert second.output_text == theirs.choices[0].message.content
    assert second.usage is not None and theirs.usage is not None
    assert second.usage.input_tokens == theirs.usage.prompt_tokens


@pytest.mark.model
def test_an_agent_of_the_agents_sdk_in_its_default_mode(qwen: OpenAI) -> None:
    agents = pytest.importorskip("agents")
    asked = []

    @agents.function_tool
    def get_weather(city: str) -> str:
        """The weather in a city."""
        asked.append(city)
        return f"It snows in {city}, at -7 degrees."

    async def work() -> None:
        async with AsyncOpenAI(base_url=qwen.base_url, api_key="none", max_retries=0) as client:
            agent = agents.Agent(
                name="forecaster",
                instructions="Call get_weather once. When you have its result, answer with it in one short sentence.",
                model=agents.OpenAIResponsesModel(model="qwen", openai_client=client),
                model_settings=agents.ModelSettings(temperature=0, max_tokens=128),
                tools=[get_weather],
            )
            whole = await agents.Runner.run(agent, OSLO)
            streamed = agents.Runner.run_streamed(agent, OSLO)
            async for _ in streamed.stream_events():
                pass
            assert whole.final_output == streamed.final_output and "-7" in whole.final_output

    agents.set_tracing_disabled(True)
    asyncio.run(work())
    assert asked == ["Oslo", "Oslo"]
