"""Several pictures over two turns: `python images.py FILE FILE ...`. Needs a model that sees, and a server with
--limit-mm-per-prompt image=N."""

import base64
import mimetypes
import os
import sys
from pathlib import Path

from openai import OpenAI

if len(sys.argv) < 3:
    sys.exit(__doc__)
client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = client.models.list().data[0].id


def part(name: str) -> dict:
    kind = mimetypes.guess_type(name)[0] or "image/png"
    data = base64.b64encode(Path(name).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}


messages = []
# The pictures are sent with every turn, and prepared with the first.
for content in (
    [{"type": "text", "text": "What do these pictures have in common?"}, *map(part, sys.argv[1:])],
    [{"type": "text", "text": "And how do they differ?"}],
):
    messages.append({"role": "user", "content": content})
    reply = client.chat.completions.create(model=model, messages=messages, max_tokens=64, temperature=0)
    answer = reply.choices[0].message.content
    messages.append({"role": "assistant", "content": answer})
    print(f"{content[0]['text']}\n  {answer}")
