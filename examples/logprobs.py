"""How likely each token of a reply was, and what else could have stood in its place."""

import math
import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = client.models.list().data[0].id

reply = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Is water wet? Answer yes or no."}],
    max_tokens=6,
    temperature=0,
    logprobs=True,
    top_logprobs=3,
)
for token in reply.choices[0].logprobs.content:
    others = ", ".join(f"{other.token!r} {math.exp(other.logprob):.0%}" for other in token.top_logprobs)
    print(f"{token.token!r:>12} {math.exp(token.logprob):4.0%}   of {others}")
