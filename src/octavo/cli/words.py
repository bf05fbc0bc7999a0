"""The words of a command line, each flag in its one spelling."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from octavo.base.errors import InvalidConfig
from octavo.base.suggest import nearest
from octavo.cli.flags import Flag
from octavo.cli.foreign import Foreign

_BOOLEAN_WORDS = ("true", "false")
#: A level that sticks to its flag, as compilers have it.
_STUCK = re.compile(r"(-O)(\d+)")


def normalise(words: Sequence[str], table: dict[str, Flag], foreign: Foreign, also: Sequence[str] = ()) -> list[str]:
    """The words with every flag in its one canonical spelling. Raises `InvalidConfig` for one that does not exist.

    `also`: further options with a value. Flags of other programs are checked here and left out of the result. Where
    help is asked for, that alone is the result: `--help`, or `--help=TOPIC`.
    """
    return _Normaliser(table, foreign, also).run(words)


class _Normaliser:
    def __init__(self, table: dict[str, Flag], foreign: Foreign, also: Sequence[str]) -> None:
        self._foreign = foreign
        self._switches = {o: (f, True) for f in table.values() if f.kind is bool for o in f.options}
        self._switches |= {o: (f, False) for f in table.values() for o in f.off_options}
        self._valued = {o for f in table.values() if f.kind is not bool for o in f.options} | set(also)
        self._shorts = foreign.shorts | {f.short: f.option for f in table.values() if f.short} | {"-h": "--help"}
        self._given: dict[str, bool] = {}  # field of a switch -> what it was set to
        self._rest: list[str] = []
        self._result: list[str] = []

    def run(self, words: Sequence[str]) -> list[str]:
        self._rest = list(words)
        while self._rest:
            word = self._rest.pop(0)
            if word == "--":
                return [*self._result, word, *self._rest]
            if not word.startswith("-") or word == "-" or word[1:2].isdigit():
                self._result.append(word)
                continue
            if match := _STUCK.fullmatch(word):
                word = f"{match[1]}={match[2]}"
            name, equals, value = word.partition("=")
            name = self._canonical(name)
            if name == "--help":
                return [name + equals + value]
            self._take(name, value if equals else None)
        return self._result

    def _canonical(self, name: str) -> str:
        """A flag's name with dashes; the long one for a short one."""
        if name.startswith("--"):
            return "--" + name[2:].replace("_", "-")
        if name not in self._shorts:
            raise InvalidConfig(f"unknown flag {name}{nearest(name, self._shorts)}")
        return self._shorts[name]

    def _take(self, name: str, value: str | None) -> None:
        """One flag, with the words after it that are its own."""
        rows = self._foreign.rows
        positive = "--" + name[5:] if name.startswith("--no-") else name
        if name in self._valued:
            self._take_valued(name, value)
        elif name in self._switches:
            flag, sense = self._switches[name]
            on = self._switch_value(name, value) == sense
            if self._given.setdefault(flag.field, on) != on:
                raise InvalidConfig(f"{flag.option} is both switched on and switched off")
            self._result.append(flag.option if on else "--no-" + flag.option[2:])
        elif self._foreign.is_switch(positive):
            on = self._switch_value(name, value) == (name == positive)
            self._foreign.check(positive, ["true" if on else "false"])
        elif name in rows:
            self._foreign.check(name, self._foreign_values(name, value))
        else:
            raise InvalidConfig(self._unknown(name))

    def _take_valued(self, name: str, value: str | None) -> None:
        if name in self._foreign.own:
            text = self._foreign.rename(name, self._next_value(name) if value is None else value)
            self._result += [] if text is None else [f"{name}={text}"]
        else:
            self._result.append(name if value is None else f"{name}={value}")

    def _switch_value(self, name: str, value: str | None) -> bool:
        """What a boolean flag is set to: true when bare; a following true or false belongs to it."""
        if value is None:
            value = self._rest.pop(0) if self._rest and self._rest[0].lower() in _BOOLEAN_WORDS else "true"
        if value.lower() not in _BOOLEAN_WORDS:
            raise InvalidConfig(f"{name} must be true or false; got {value!r}")
        return value.lower() == "true"

    def _foreign_values(self, name: str, value: str | None) -> list[str]:
        """The values of another program's flag: one, or for a list all words up to the next flag."""
        is_list = self._foreign.rows[name].kind == "list"
        words = [self._next_value(name) if value is None else value]
        while is_list and value is None and self._rest and not self._rest[0].startswith("-"):
            words.append(self._rest.pop(0))
        if is_list and words[0].startswith("["):
            try:
                return [str(item) for item in json.loads(words[0])]
            except ValueError:
                raise InvalidConfig(f"{name}: {words[0]!r} is not a JSON list") from None
        return words

    def _next_value(self, name: str) -> str:
        if not self._rest or self._rest[0].startswith("--"):
            raise InvalidConfig(f"{name} needs a value")
        return self._rest.pop(0)

    def _unknown(self, name: str) -> str:
        known: Mapping[str, object] = dict.fromkeys([*self._switches, *self._valued, *self._foreign.rows, "--help"])
        hint = nearest(name, known)
        whole, dot, _ = name.partition(".")
        if dot and whole in known and "." not in hint:
            return f"unknown flag {name}: give {whole} as one JSON object"
        return f"unknown flag {name}{hint}"
