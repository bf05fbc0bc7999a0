"""A tool of an MCP server, which octavo calls itself: the list of tools, the call and the answer are one response.

Needs a model that was taught to call functions, such as Qwen2.5-Coder, `octavo[mcp]`, and a server that knows the MCP
server:

    octavo serve MODEL --enable-auto-tool-choice \\
      --mcp-servers '{"weather": {"command": "python", "args": ["examples/mcp_server.py"]}}'
"""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = client.models.list().data[0].id
question = "What is the weather in Oslo?"

# Without `require_approval: "never"` the model's calls wait for somebody to approve them.
tool = {"type": "mcp", "server_label": "weather", "require_approval": "never"}
response = client.responses.create(model=model, input=question, tools=[tool], temperature=0, max_output_tokens=256)
for item in response.output:
    if item.type == "mcp_call":
        print(f"{item.name}({item.arguments}) -> {item.output or item.error}")
print(response.output_text)

# With approval, and streamed: the call is made in a second response, once it is allowed.
tool["require_approval"] = "always"
asked = client.responses.create(model=model, input=question, tools=[tool], temperature=0, max_output_tokens=256)
answers = [
    {"type": "mcp_approval_response", "approval_request_id": item.id, "approve": True}
    for item in asked.output
    if item.type == "mcp_approval_request"
]
with client.responses.stream(
    model=model, input=answers, previous_response_id=asked.id, tools=[tool], temperature=0, max_output_tokens=256
) as stream:
    for event in stream:
        if event.type == "response.mcp_call.completed":
            print("(called)")
        elif event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
print()
