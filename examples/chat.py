"""A conversation of two turns."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = client.models.list().data[0].id

messages = [{"role": "system", "content": "You answer in one short sentence."}]
for question in ("What is the capital of Japan?", "And of France?"):
    messages.append({"role": "user", "content": question})
    reply = client.chat.completions.create(model=model, messages=messages, max_tokens=48, temperature=0)
    answer = reply.choices[0].message.content
    messages.append({"role": "assistant", "content": answer})
    print(f"{question}\n  {answer}")
