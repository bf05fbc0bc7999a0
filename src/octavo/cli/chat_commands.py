"""The commands of a conversation: lines that begin with a slash."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from octavo.base.config import check, flag_name
from octavo.base.errors import InvalidConfig, OctavoError
from octavo.base.suggest import nearest
from octavo.cli.client import Sampling
from octavo.cli.conversation import Conversation
from octavo.cli.flags import flags

_SETTINGS = flags({"sampling": Sampling})
#: The word that gives a setting back to the server.
_DEFAULT = "default"
_KEYS = (
    ("a line that ends in \\", "goes on in the next line"),
    ('""" ... """', "a message of any lines"),
    ("//...", "a message that begins with /"),
    ("Ctrl-C", "ends the reply; at the prompt drops the line, and twice ends"),
)


def run_command(chat: Conversation, line: str) -> bool:
    """Do what the line says; False: the conversation is over. Raises `OctavoError`."""
    name, *rest = line.split(maxsplit=1)
    words = rest[0].strip() if rest else ""
    if name not in COMMANDS:
        hint = nearest(name, COMMANDS) or "; /help lists them"
        raise OctavoError(f"there is no command {name}{hint}. To send a message that begins with /, write it as //")
    usage, _, action = COMMANDS[name]
    if words and usage == name:
        raise OctavoError(f"{name} takes nothing after it")
    return action(chat, words)


def _help(chat: Conversation, words: str) -> bool:
    rows = [(usage, text) for usage, text, _ in COMMANDS.values()]
    chat.screen.say("\n".join(f"  {left:<24}{right}" for left, right in [*rows, *_KEYS]))
    return True


def _clear(chat: Conversation, words: str) -> bool:
    chat.clear()
    chat.screen.say("A new conversation.", dim=True)
    return True


def _system(chat: Conversation, words: str) -> bool:
    if words:
        chat.system = None if words == "-" else words
    chat.screen.say("No system prompt." if chat.system is None else f"System prompt: {chat.system}", dim=True)
    return True


def _set(chat: Conversation, words: str) -> bool:
    name, _, value = words.replace("=", " ", 1).partition(" ")
    name = name.replace("-", "_")
    if name and name not in _SETTINGS:
        raise OctavoError(f"there is no setting {name}{nearest(name, _SETTINGS) or '; /set lists them'}")
    if value.strip():
        chat.client.sampling = _changed(chat.client.sampling, name, value.strip())
    for flag in _SETTINGS.values():
        if name in ("", flag.field):
            setting = getattr(chat.client.sampling, flag.field)
            shown = "(the server's)" if setting is None else setting
            chat.screen.say(f"  {flag.field:<20}{shown!s:<16}{flag.help}")
    if not name:
        chat.screen.say(f"  /set NAME VALUE changes one, /set NAME {_DEFAULT} leaves it to the server")
    return True


def _changed(sampling: Sampling, name: str, text: str) -> Sampling:
    """Raises `OctavoError` for a value that does not fit."""
    try:
        value = None if text == _DEFAULT else _SETTINGS[name].from_text(text)
        changed = dataclasses.replace(sampling, **{name: value})
        check(changed)
    except InvalidConfig as e:
        raise OctavoError(e.message.replace(flag_name(name), name)) from None
    return changed


def _stats(chat: Conversation, words: str) -> bool:
    chat.screen.say(f"  last: {chat.stats.last_line()}\n  all:  {chat.stats.all_line()}")
    return True


def _save(chat: Conversation, words: str) -> bool:
    path = file_path("/save", words)
    chat.save(path)
    chat.screen.say(f"Saved to {path}.", dim=True)
    return True


def _load(chat: Conversation, words: str) -> bool:
    path = file_path("/load", words)
    chat.load(path)
    chat.screen.say(f"{len(chat.messages)} messages from {path}.", dim=True)
    return True


def _image(chat: Conversation, words: str) -> bool:
    path = file_path("/image", words)
    chat.show(path)
    chat.screen.say(f"{path} goes with the next message.", dim=True)
    return True


def file_path(command: str, words: str) -> Path:
    if not words:
        raise OctavoError(f"{command} needs the name of a file")
    try:
        return Path(words).expanduser()
    except RuntimeError as e:  # ~nobody
        raise OctavoError(f"{command} {words}: {e}") from None


def _quit(chat: Conversation, words: str) -> bool:
    return False


#: Name -> how it is written, what it does, and the function. Usage that is the name alone: it takes no words.
COMMANDS: dict[str, tuple[str, str, Callable[[Conversation, str], bool]]] = {
    "/help": ("/help", "lists the commands", _help),
    "/clear": ("/clear", "begins a new conversation", _clear),
    "/system": ("/system [TEXT]", "shows the system prompt, or sets it; - for none", _system),
    "/set": ("/set [NAME [VALUE]]", "shows how replies are sampled, or changes it", _set),
    "/image": ("/image FILE", "shows an image with the next message", _image),
    "/stats": ("/stats", "tokens and times of the last reply, and of all", _stats),
    "/save": ("/save FILE", "writes the conversation to a file, as JSON", _save),
    "/load": ("/load FILE", "goes on with a conversation that was saved", _load),
    "/quit": ("/quit", "ends, as Ctrl-D does", _quit),
}
