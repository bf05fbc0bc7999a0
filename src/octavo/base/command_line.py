"""A configuration as the command line that gives it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import Field, fields
from typing import Any

from octavo.base.config import ServeConfig, flag_name

#: Stands where a secret was given.
HIDDEN = "***"


def command_line(config: ServeConfig) -> str:
    """`octavo serve MODEL` and all settings that are not the defaults, for a shell to read; secrets are hidden."""
    engine = config.engine
    words = ["octavo", "serve", shell_word(engine.model.model)]
    parts = engine.model, engine.cache, engine.scheduler, engine.parallel, engine.lora, engine.prompt_adapter
    for part in (*parts, config.server):
        default = type(part)()
        for field in fields(part):
            value = getattr(part, field.name)
            if not field.metadata.get("positional") and value != getattr(default, field.name):
                words += _setting(field, value)
    return " ".join(words)


def _setting(field: Field[Any], value: Any) -> Iterator[str]:
    """The words that give a field its value."""
    flag = flag_name(field.name)
    if isinstance(value, bool):
        yield flag if value else "--no-" + flag[2:]
    elif field.metadata.get("secret"):
        for _ in value if isinstance(value, list) else [value]:
            yield f"{flag} {shell_word(HIDDEN)}"
    elif not isinstance(value, list):
        yield _with_value(flag, str(value))
    elif field.metadata.get("one_word") and value:
        for item in value:
            yield _with_value(flag, str(item))
    elif value and not any(str(item).startswith(("-", "[")) for item in value):
        yield " ".join([flag, *(shell_word(str(item)) for item in value)])
    else:  # as words these would be flags, or lists, or nothing
        yield _with_value(flag, json.dumps(value))


def _with_value(flag: str, text: str) -> str:
    return f"{flag}{'=' if text.startswith('-') else ' '}{shell_word(text)}"


def shell_word(text: str) -> str:
    """`text` as one word of a shell, on one line. What cannot be printed becomes an escape, as bash and zsh read it."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = re.sub(r"[\\']", r"\\\g<0>", text)
    return "$'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in escaped) + "'"
