"""Two responses, the second going on from the first, which the server has kept; its text as it is generated."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = client.models.list().data[0].id

first = client.responses.create(model=model, input="Name three colours.", max_output_tokens=48, temperature=0)
print(first.output_text)
more = "Now three more."
with client.responses.stream(
    model=model, input=more, previous_response_id=first.id, max_output_tokens=48, temperature=0
) as stream:
    for event in stream:
        if event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
        elif event.type in ("response.completed", "response.incomplete"):
            usage = event.response.usage
print(f"\n({usage.input_tokens} tokens of input, {usage.output_tokens} of output)")
