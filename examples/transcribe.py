"""What is said in a sound, piece by piece: `python transcribe.py FILE.wav`. Needs a model that transcribes."""

import os
import sys
from pathlib import Path

from openai import OpenAI

if len(sys.argv) != 2:
    sys.exit(__doc__)
client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
reply = client.audio.transcriptions.create(
    model=client.models.list().data[0].id, file=Path(sys.argv[1]), response_format="verbose_json"
)
for segment in reply.segments or []:
    print(f"{segment.start:7.2f} {segment.end:7.2f} {segment.text.strip()}")
