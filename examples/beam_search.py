"""The two best of four beams. Their order is that of their score: log probability by length."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = client.models.list().data[0].id

reply = client.completions.create(
    model=model,
    prompt="The three primary colours are",
    n=2,
    best_of=4,
    max_tokens=16,
    temperature=0,
    logprobs=0,
    extra_body={"use_beam_search": True, "length_penalty": 1.0, "early_stopping": False},
)
for choice in reply.choices:
    print(f"{sum(choice.logprobs.token_logprobs):8.3f} {choice.text!r}")
