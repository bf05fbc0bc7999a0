"""What one row of the table says: a flag or a variable of vLLM, and what octavo does when it is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["text", "int", "float", "json", "list", "switch"]


@dataclass(frozen=True, slots=True)
class Values:
    """Some values of a flag. `text` names them in errors and documents; `hold` is asked about each word given."""

    text: str
    hold: Callable[[str], bool]


def only(*values: str) -> Values:
    """These values, in any case."""
    return Values(" or ".join(values), lambda word: word.lower() in values)


def _is_zero(word: str) -> bool:
    try:
        return float(word) == 0
    except ValueError:
        return False


def _is_empty(word: str) -> bool:
    try:
        return not json.loads(word or "null")
    except ValueError:
        return False


ANY = Values("any value", lambda word: True)
NONE = Values("", lambda word: False)
ZERO = Values("0", _is_zero)
EMPTY = Values("an empty value", _is_empty)
ON, OFF = only("true"), only("false")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A flag of vLLM.

    One that octavo has too (a field of its configuration) works; `renamed` and `refused` speak of single values. Any
    other is accepted with the values of `accepts`, which ask for what octavo does anyway, and refused with the rest;
    `reason` says why there is nothing to do, or nothing that octavo could do.
    """

    option: str
    seed: str | None  # the default in vLLM 0.6.0; None: it had no such flag
    today: str | None  # the default in vLLM today; None: it has no such flag any more
    meaning: str = ""  # "": as octavo's own help says
    kind: Kind = "text"
    accepts: Values = NONE
    reason: str = ""
    sets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # value -> fields of octavo that it stands for
    renamed: Mapping[str, str | None] = field(default_factory=dict)  # value -> octavo's; None: as if not given
    refused: Mapping[str, str] = field(default_factory=dict)  # value -> why
    short: str | None = None
    note: str = ""  # what a user of vLLM should know, though the flag works


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """An environment variable that vLLM reads.

    With a `field` it stands for that setting where nothing else gives it; `convert` makes octavo's text of the value
    (None: it asks for the default). Any other is told at start: `accepts` are the values that need nothing done.
    """

    name: str
    seed: str | None
    today: str | None
    meaning: str
    field: str | None = None
    convert: Callable[[str], str | None] = str
    device: str | None = None  # it counts unless another one is given
    accepts: Values = NONE
    reason: str = ""


def ours(option: str, seed: str | None, today: str | None, note: str = "", **more: Any) -> Row:
    """A flag that is a field of octavo's configuration."""
    return Row(option=option, seed=seed, today=today, note=note, **more)


def other(
    option: str, seed: str | None, today: str | None, meaning: str, accepts: Values, reason: str, **more: Any
) -> Row:
    """A flag that octavo has not."""
    return Row(option=option, seed=seed, today=today, meaning=meaning, accepts=accepts, reason=reason, **more)


def switch(option: str, seed: str | None, today: str | None, meaning: str, accepts: Values, reason: str) -> Row:
    """A flag without a value that octavo has not."""
    return other(option, seed, today, meaning, accepts, reason, kind="switch")
