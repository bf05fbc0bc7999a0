"""What a model thinks, apart from what it answers; the thinking ends after a number of tokens.

Needs a server with `--reasoning-parser auto` and a model that thinks before it answers, such as Qwen3.
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = client.models.list().data[0].id

stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Which is more: 7 times 8, or 55?"}],
    temperature=0,
    max_tokens=512,
    stream=True,
    stream_options={"include_usage": True},
    extra_body={"enable_thinking": True, "thinking_token_budget": 48},
)
part = ""
for chunk in stream:
    for choice in chunk.choices:
        for name in ("reasoning", "content"):
            text = getattr(choice.delta, name, None)
            if text:
                print(text if name == part else f"\n{name}: {text}", end="", flush=True)
                part = name
    if chunk.usage:
        details = chunk.usage.completion_tokens_details
        print(f"\n({details.reasoning_tokens if details else 0} tokens of reasoning)")
