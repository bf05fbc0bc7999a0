"""An agent of the OpenAI Agents SDK (`pip install openai-agents`) that calls a function, whole and streamed.

Needs a server with `--enable-auto-tool-choice` and a model that was taught to call functions, such as Qwen2.5-Coder.
"""

import asyncio
import os

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent

set_tracing_disabled(True)


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: The name of the city, such as Rome.
    """
    print(f"get_weather({city!r})")
    return f"It snows in {city}, at -7 degrees."


async def main() -> None:
    client = AsyncOpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    name = (await client.models.list()).data[0].id
    agent = Agent(
        name="forecaster",
        instructions="Call get_weather once. When you have its result, answer with it in one short sentence.",
        model=OpenAIChatCompletionsModel(model=name, openai_client=client),
        model_settings=ModelSettings(temperature=0, max_tokens=128),
        tools=[get_weather],
    )
    question = "What is the weather in Oslo?"
    print((await Runner.run(agent, question)).final_output)
    streamed = Runner.run_streamed(agent, question)
    async for event in streamed.stream_events():
        if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent):
            print(event.data.delta, end="", flush=True)
    print()


asyncio.run(main())
