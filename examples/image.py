"""A question about a picture: `python image.py [FILE or URL]`. Needs a model that sees."""

import base64
import mimetypes
import os
import struct
import sys
import zlib
from pathlib import Path

from openai import OpenAI


def drawn() -> str:
    """A red square as a data URL, where no file is named."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    line = b"\0" + b"\xff\0\0" * 64
    png = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(line * 64))
    data = b"\x89PNG\r\n\x1a\n" + png + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def read(name: str) -> str:
    if name.startswith(("http://", "https://", "data:")):
        return name
    kind = mimetypes.guess_type(name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(Path(name).read_bytes()).decode()}"


client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
reply = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is in this picture?"},
                {"type": "image_url", "image_url": {"url": read(sys.argv[1]) if len(sys.argv) > 1 else drawn()}},
            ],
        }
    ],
    max_tokens=64,
    temperature=0,
)
print(reply.choices[0].message.content)
print(f"({reply.usage.prompt_tokens} tokens, {reply.usage.prompt_tokens_details.image_tokens} of them for the picture)")
