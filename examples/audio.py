"""A question about a sound: `python audio.py FILE.wav`. Needs a model that hears, such as Ultravox."""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

if len(sys.argv) != 2:
    sys.exit(__doc__)
sound = Path(sys.argv[1])
client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
data = base64.b64encode(sound.read_bytes()).decode()
reply = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "input_audio", "input_audio": {"data": data, "format": sound.suffix.lstrip(".")}},
                {"type": "text", "text": "What is said here?"},
            ],
        }
    ],
    max_tokens=128,
    temperature=0,
)
print(reply.choices[0].message.content)
print(f"({reply.usage.prompt_tokens} tokens, {reply.usage.prompt_tokens_details.audio_tokens} of them for the sound)")
