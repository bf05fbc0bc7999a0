"""`octavo chat`: a conversation with a running server, in the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from octavo.base.errors import OctavoError
from octavo.cli.chat_commands import file_path, run_command
from octavo.cli.client import ChatConfig, Client, client_config, client_table
from octavo.cli.conversation import Conversation
from octavo.cli.flags import Flag
from octavo.cli.line_reader import Message, converse, piped_text
from octavo.cli.screen import Screen, tolerate_any_text

_EPILOG = """\
/help in a conversation lists the commands. Text that is piped to stdin is sent as one message, and only the reply goes
to stdout. Ctrl-C ends a reply, Ctrl-D ends the conversation."""


def table() -> dict[str, Flag]:
    """The command's flags."""
    return client_table(ChatConfig)


def run(argv: Sequence[str]) -> int:
    config: ChatConfig
    config, sampling = client_config("chat", ChatConfig, "Talk to a running server.", _EPILOG, argv)
    client = Client(config, sampling)
    tolerate_any_text()
    screen = Screen(sys.stdout, sys.stderr, os.environ)
    chat = Conversation(client, screen, config.system_prompt, tells_stats=config.stats)
    for name in config.image:
        chat.show(file_path("--image", name))
    question = config.quick if config.quick is not None else piped_text("--quick")
    if question is not None:
        if chat.ask(question).is_stopped:
            raise KeyboardInterrupt
        return 0
    screen.say(f"Talking to {client.look_up()}. /help lists the commands, Ctrl-D ends.", dim=True)
    return converse(screen, lambda message: answer(chat, message))


def answer(chat: Conversation, message: Message) -> bool:
    """Send a message or run a command; False: the conversation is over. Errors are printed, and it goes on."""
    text = message.text
    if not text.strip():
        return True
    try:
        if text.startswith("/") and not text.startswith("//") and not message.is_quoted:
            return run_command(chat, text)
        reply = chat.ask(text.removeprefix("/") if text.startswith("//") and not message.is_quoted else text)
    except OctavoError as e:
        chat.screen.say(f"error: {e.message}")
        return True
    if reply.is_stopped:
        chat.screen.say("(stopped)", dim=True)
    elif reply.finish_reason == "length":
        chat.screen.say("(cut off at the limit of tokens: /set max_tokens N)", dim=True)
    elif not reply.text:
        chat.screen.say("(an empty reply)", dim=True)
    return True
