"""How a setting is declared and checked: a field with its help text and its bounds."""

from __future__ import annotations

import json
import math
from dataclasses import field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from octavo.base.errors import InvalidConfig
from octavo.base.suggest import nearest


def opt(default: Any, help: str, **metadata: Any) -> Any:
    """A field with its help text; a callable `default` is called for each new object.

    metadata: `low`, `high` (inclusive), `above` (exclusive) and `choices` bound the value, or each of a list;
    `infinite` allows infinity; `unit="bytes"` lets the command line write 2G for 2 GiB; `aliases` are other spellings
    of the flag, `short` is one with a single dash, `inverse` are those of its opposite; `positional` says that there is
    no flag; `secret` that the value is never shown; `json` that the text is a JSON object, which the config file may
    spell in YAML; `one_word` that a list takes one word of the command line at a time.
    """
    meta = {"help": help, **metadata}
    if callable(default):
        return field(default_factory=default, metadata=meta)
    return field(default=default, metadata=meta)


def flag_name(name: str) -> str:
    """The command line's spelling of a field."""
    return "--" + name.replace("_", "-")


def json_object(data: str | bytes, place: str) -> dict[str, Any]:
    """The object that a setting holds as JSON text. Raises `InvalidConfig`, which begins with `place`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidConfig(f"{place} is not valid JSON") from None
    if not isinstance(value, dict):
        raise InvalidConfig(f"{place} must be a JSON object")
    return value


def check_fields(config: Any) -> None:
    """Check every field of a configuration by its own bounds. Raises `InvalidConfig` naming the flag."""
    hints = get_type_hints(type(config))
    for f in fields(config):
        value = getattr(config, f.name)
        if value is not None and not is_dataclass(value):
            _check_value(f.name, value, hints[f.name], f.metadata)
            if f.metadata.get("json"):
                json_object(value, flag_name(f.name))


def _check_value(name: str, value: Any, hint: Any, bounds: Any) -> None:
    if get_origin(hint) is list:
        for item in value:
            _check_value(name, item, get_args(hint)[0], bounds)
        return
    choices = bounds.get("choices") or (get_args(hint) if get_origin(hint) is Literal else None)
    if choices is not None and value not in choices:
        allowed = ", ".join(map(str, choices))
        hint_text = nearest(value, choices) if isinstance(value, str) else ""
        raise InvalidConfig(f"{flag_name(name)} must be one of {allowed}; got {value!r}{hint_text}")
    if isinstance(value, float) and not (math.isfinite(value) or (bounds.get("infinite") and value == math.inf)):
        raise InvalidConfig(f"{flag_name(name)} must be a finite number")
    low, high, above = bounds.get("low"), bounds.get("high"), bounds.get("above")
    if (
        (low is not None and value < low)
        or (above is not None and value <= above)
        or (high is not None and value > high)
    ):
        least = f"at least {low}" if low is not None else f"greater than {above}"
        most = f" and at most {high}" if high is not None else ""
        raise InvalidConfig(f"{flag_name(name)} must be {least}{most}; got {value}")
