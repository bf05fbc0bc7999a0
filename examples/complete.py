"""Text completions: two prompts with two samples each, in one request. The same seed gives the same texts again."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = client.models.list().data[0].id

prompts = ["The capital of France is", "Once upon a time"]
reply = client.completions.create(
    model=model,
    prompt=prompts,
    n=2,
    max_tokens=24,
    temperature=0.8,
    seed=7,
    stop=["\n\n"],
    extra_body={"min_p": 0.05, "repetition_penalty": 1.1},  # what vLLM has beyond OpenAI's API
)
for choice in reply.choices:
    print(f"{prompts[choice.index // 2]}|{choice.text}  ({choice.finish_reason})")
