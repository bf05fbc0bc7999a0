"""Flags of other programs that octavo has not, or whose values it calls by other names.

Each is accepted with the values that ask for what octavo does anyway, so that a working command line keeps working, and
refused with a reason otherwise. What was accepted is kept, to be told at start: nothing is read and then ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from octavo.base.errors import InvalidConfig
from octavo.cli.flags import Flag
from octavo.cli.vllm.row import Kind, Row

_NOUNS: dict[Kind, str] = {"int": "a whole number", "float": "a number"}


class Foreign:
    """The rows of a table beside the flags of one command. One object reads one command line.

    `accepted`: what was given and needs nothing done, as words; `settings`: fields of octavo that it stands for.
    """

    def __init__(self, rows: Iterable[Row] = (), table: Mapping[str, Flag] | None = None) -> None:
        """`table`: the command's own flags, which go before rows of the same name."""
        own = {option for flag in (table or {}).values() for option in (*flag.options, *flag.off_options)}
        rows = tuple(rows)
        self.rows = {row.option: row for row in rows if row.option not in own and (row.reason or row.accepts.text)}
        self.own = {row.option: row for row in rows if row.option in own and (row.renamed or row.refused)}
        self.accepted: list[str] = []
        self.settings: dict[str, Any] = {}

    @property
    def shorts(self) -> dict[str, str]:
        """Short spelling -> option."""
        return {row.short: option for option, row in self.rows.items() if row.short}

    def is_switch(self, option: str) -> bool:
        return option in self.rows and self.rows[option].kind == "switch"

    def check(self, option: str, words: list[str]) -> None:
        """Take note of a flag of `rows` with its values (of a switch "true" or "false").

        Raises `InvalidConfig` with the reason unless all of them ask for what octavo does anyway.
        """
        row = self.rows[option]
        shown = _shown(row, words)
        words = [word for word in words if word.lower() not in ("none", "null")]  # as if the flag was not given
        for word in words:
            _check_kind(row, word)
        if not all(row.accepts.hold(word) for word in words):
            hint = f"; only {row.accepts.text} would be accepted" if row.accepts.text and row.kind != "switch" else ""
            raise InvalidConfig(f"{shown}: {row.reason}{hint}")
        for word in words:
            self.settings |= row.sets.get(word.lower(), {})
        if shown not in self.accepted:
            self.accepted.append(shown)

    def check_file(self, option: str, value: Any) -> None:
        """The same for a value of the config file."""
        row = self.rows[option]
        if value is None:
            value = "none"
        values = value if row.kind == "list" and isinstance(value, list) else [value]
        words = [v if isinstance(v, str) else json.dumps(v, default=str) for v in values]
        if row.kind == "switch" and any(word not in ("true", "false") for word in words):
            raise InvalidConfig(f"{option} must be true or false; got {words[0]}")
        self.check(option, words)

    def rename(self, option: str, text: str) -> str | None:
        """The value of one of octavo's own flags as octavo calls it; None: as if the flag was not given.

        Raises `InvalidConfig` for a value that octavo has not, with the reason.
        """
        row, key = self.own.get(option), text.lower()
        if row is None:
            return text
        if key in row.refused:
            raise InvalidConfig(f"{option} {text}: {row.refused[key]}")
        if key not in row.renamed:
            return text
        name = row.renamed[key]
        self.accepted.append(f"{option} {text} (as {'the default' if name is None else name})")
        return name


def _shown(row: Row, words: list[str]) -> str:
    if row.kind == "switch":
        return row.option if words == ["true"] else "--no-" + row.option[2:]
    return " ".join([row.option, *words])


def _check_kind(row: Row, word: str) -> None:
    """Raise `InvalidConfig` for a value that is none, though octavo has no use for it."""
    try:
        if row.kind == "int":
            int(word)
        elif row.kind == "float":
            float(word)
    except ValueError:
        raise InvalidConfig(f"{row.option} must be {_NOUNS[row.kind]}; got {word!r}") from None
