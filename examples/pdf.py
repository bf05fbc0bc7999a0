"""A question about a PDF file: `python pdf.py FILE.pdf`. Needs a model that sees, and octavo[media] on the server."""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

if len(sys.argv) != 2:
    sys.exit(__doc__)
file = Path(sys.argv[1])
client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
data = f"data:application/pdf;base64,{base64.b64encode(file.read_bytes()).decode()}"
reply = client.responses.create(
    model=client.models.list().data[0].id,
    input=[
        {
            "role": "user",
            "content": [
                {"type": "input_file", "filename": file.name, "file_data": data},
                {"type": "input_text", "text": "What is this about?"},
            ],
        }
    ],
    max_output_tokens=128,
    temperature=0,
)
print(reply.output_text)
