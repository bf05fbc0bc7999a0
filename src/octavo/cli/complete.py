"""`octavo complete`: texts continued by a running server, in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.cli.client import Client, ClientConfig, client_config, client_table
from octavo.cli.flags import Flag


def table() -> dict[str, Flag]:
    """The command's flags."""
    return client_table(ClientConfig)


def run(argv: Sequence[str]) -> int:
    config: ClientConfig = client_config("complete", ClientConfig, "Continue a text with a running server.", argv)
    client = Client(config)
    if config.quick is not None:
        _continue(client, config.quick)
        return 0
    print(f"{client.model} continues what you write. Ctrl-D or Ctrl-C ends.")
    while True:
        try:
            text = input("> ")
        except EOFError:
            print()
            return 0
        if text:
            _continue(client, text)


def _continue(client: Client, text: str) -> None:
    for choice in client.stream("/completions", {"prompt": text}):
        print(choice["text"], end="", flush=True)
    print()
