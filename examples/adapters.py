"""The same question to the model and to each of its adapters, which are models of their own."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
for model in client.models.list().data:
    reply = client.completions.create(model=model.id, prompt="The capital of France is", max_tokens=16, temperature=0)
    adapter_of = (model.model_extra or {}).get("parent")
    kind = f"adapter of {adapter_of}" if adapter_of else "model"
    print(f"{model.id} ({kind}):{reply.choices[0].text}")
