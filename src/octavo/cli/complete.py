"""`octavo complete`: texts continued by a running server, in the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from octavo.base.errors import OctavoError
from octavo.cli.client import Client, ClientConfig, client_config, client_table
from octavo.cli.flags import Flag
from octavo.cli.line_reader import converse, piped_text
from octavo.cli.reply import Reply, receive
from octavo.cli.screen import Screen, tolerate_any_text

_EPILOG = """\
Text that is piped to stdin is continued without its last line break, and only the continuation goes to stdout.
At the prompt a line that ends in \\ goes on in the next; triple quotes hold several lines. Ctrl-C ends a reply, Ctrl-D
ends the program."""


def table() -> dict[str, Flag]:
    """The command's flags."""
    return client_table(ClientConfig)


def run(argv: Sequence[str]) -> int:
    config: ClientConfig
    config, sampling = client_config("complete", ClientConfig, "Continue a text with a running server.", _EPILOG, argv)
    client = Client(config, sampling)
    tolerate_any_text()
    screen = Screen(sys.stdout, sys.stderr, os.environ)

    def extend(text: str) -> Reply:
        reply = receive(client, screen, "/completions", {"prompt": text})
        if config.stats:
            screen.say(reply.figures(), dim=True)
        return reply

    def answer(text: str) -> bool:
        try:
            if text and extend(text).is_stopped:
                screen.say("(stopped)", dim=True)
        except OctavoError as e:
            screen.say(f"error: {e.message}")
        return True

    text = config.quick if config.quick is not None else piped_text("--quick")
    if text is not None:
        if extend(text).is_stopped:
            raise KeyboardInterrupt
        return 0
    screen.say(f"{client.look_up()} continues what you write. Ctrl-D ends.", dim=True)
    return converse(screen, lambda message: answer(message.text))
