"""Which documents fit a question: vectors of texts, and the server's own order. Needs a model of embeddings."""

from __future__ import annotations

import os

import httpx
from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = client.models.list().data[0].id

QUESTION = "Why does the service restart again and again?"
DOCUMENTS = ["The container is in CrashLoopBackOff.", "Tea is served at four.", "The pod ran out of memory."]

reply = client.embeddings.create(model=model, input=[QUESTION, *DOCUMENTS])
question, *documents = (each.embedding for each in reply.data)
for text, vector in zip(DOCUMENTS, documents, strict=True):
    print(f"{sum(a * b for a, b in zip(question, vector, strict=True)):.3f}  {text}")

body = {"model": model, "query": QUESTION, "documents": DOCUMENTS, "top_n": 1}
best = httpx.post(f"{client.base_url}rerank", json=body, headers={"authorization": f"Bearer {client.api_key}"}).json()
print("best:", best["results"][0]["document"]["text"])
