"""A function that the model calls: the call, the function's result, and the answer that is made of it.

Needs a server with `--enable-auto-tool-choice` and a model that was taught to call functions, such as Qwen2.5-Coder.
"""

import json
import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = client.models.list().data[0].id


def get_weather(city: str) -> str:
    return f"It snows in {city}, at -7 degrees."


tools = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "The name of the city, such as Rome."}},
                "required": ["city"],
            },
        },
    }
]
messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
reply = client.chat.completions.create(model=model, messages=messages, tools=tools, temperature=0).choices[0].message
messages.append(reply)
for call in reply.tool_calls or []:
    arguments = json.loads(call.function.arguments)
    print(f"{call.function.name}({arguments})")
    messages.append({"role": "tool", "tool_call_id": call.id, "content": get_weather(**arguments)})

# The answer, as it is generated.
stream = client.chat.completions.create(
    model=model, messages=messages, tools=tools, temperature=0, max_tokens=64, stream=True
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
print()
