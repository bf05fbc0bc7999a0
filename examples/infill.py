"""Code between a prefix and a suffix. The model's vocabulary must have tokens for it, as Qwen2.5-Coder's has."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = client.models.list().data[0].id

before = 'def add(a, b):\n    """The sum of two numbers."""\n    return '
after = "\n\n\nprint(add(1, 2))\n"
reply = client.completions.create(model=model, prompt=before, suffix=after, max_tokens=32, temperature=0, stop=["\n\n"])
print(before + f"[{reply.choices[0].text}]" + after)
