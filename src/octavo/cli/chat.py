"""`octavo chat`: a conversation with a running server, in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.cli.client import ChatConfig, Client, client_config, client_table
from octavo.cli.flags import Flag


def table() -> dict[str, Flag]:
    """The command's flags."""
    return client_table(ChatConfig)


def run(argv: Sequence[str]) -> int:
    config: ChatConfig = client_config("chat", ChatConfig, "Talk to a running server.", argv)
    client = Client(config)
    messages = [{"role": "system", "content": config.system_prompt}] if config.system_prompt else []
    if config.quick is not None:
        _ask(client, [*messages, {"role": "user", "content": config.quick}])
        return 0
    print(f"Talking to {client.model}. Ctrl-D or Ctrl-C ends.")
    while True:
        try:
            text = input("> ")
        except EOFError:
            print()
            return 0
        if text.strip():
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": _ask(client, messages)})


def _ask(client: Client, messages: list[dict[str, str]]) -> str:
    """Print the reply as it comes; return it."""
    pieces = []
    for choice in client.stream("/chat/completions", {"messages": messages}):
        piece = choice["delta"].get("content") or ""
        print(piece, end="", flush=True)
        pieces.append(piece)
    print()
    return "".join(pieces)
