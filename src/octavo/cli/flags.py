"""The flags of a command as a table, made from the fields of its configuration.

A `Flag` knows how to read its value from the command line (text) and from the config file (YAML values); both
give the same type or raise `InvalidConfig`. Ranges and choices are checked afterwards by `config.check`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from octavo.base.config import (
    AccessConfig,
    AdaptersConfig,
    CacheConfig,
    EngineConfig,
    HTTPConfig,
    LimitsConfig,
    LogConfig,
    LogSetup,
    LoraConfig,
    MCPConfig,
    MediaConfig,
    ModelConfig,
    ObserveConfig,
    ParallelConfig,
    PromptAdapterConfig,
    SchedulerConfig,
    ServeConfig,
    ServerConfig,
    StepTimes,
    TextConfig,
    check,
    flag_name,
)
from octavo.base.errors import InvalidConfig
from octavo.base.suggest import nearest

#: Heading in the help -> the dataclass whose fields stand under it.
GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "KV cache": CacheConfig,
    "scheduling": SchedulerConfig,
    "threads and devices": ParallelConfig,
    "adapters": LoraConfig,
    "prompt adapters": PromptAdapterConfig,
    "served adapters": AdaptersConfig,
    "HTTP server": HTTPConfig,
    "keys": AccessConfig,
    "limits of a request": LimitsConfig,
    "images, sounds and files": MediaConfig,
    "MCP servers": MCPConfig,
    "prompts and replies": TextConfig,
    "log": LogConfig,
    "traces, times and profiles": ObserveConfig,
}

T = TypeVar("T")

#: A capital letter alone is the binary unit, as in vLLM.
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_BYTES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclasses.dataclass(frozen=True)
class Flag:
    """One setting: a field of a configuration class, a flag, and a key of the config file."""

    field: str
    group: str
    kind: type  # bool, int, float or str
    is_list: bool
    optional: bool  # None is a value
    default: Any
    help: str
    choices: tuple[Any, ...]
    in_bytes: bool
    is_json: bool  # the text of an object
    aliases: tuple[str, ...]  # other names of the field
    inverse: tuple[str, ...]  # names of the opposite; booleans only
    short: str | None  # "-q"
    home: str  # the group of its field; `group` may be another, for the help
    one_word: bool  # a list takes one word at a time

    @property
    def option(self) -> str:
        return flag_name(self.field)

    @property
    def options(self) -> tuple[str, ...]:
        return (self.option, *map(flag_name, self.aliases))

    @property
    def off_options(self) -> tuple[str, ...]:
        """The spellings that switch a boolean off."""
        if self.kind is not bool:
            return ()
        return (*("--no-" + o[2:] for o in self.options), *map(flag_name, self.inverse))

    def from_text(self, text: str) -> Any:
        """One value of the command line; of a list flag, one item. "None" is what an optional field is by itself."""
        if self.optional and text == "None":
            return None
        if self.kind is bool:
            return _boolean(self.option, text)
        if self.kind is int:
            return _integer(self.option, text, _BYTES if self.in_bytes else _UNITS)
        if self.kind is float:
            try:
                return float(text)
            except ValueError:
                raise InvalidConfig(f"{self.option} must be a number; got {text!r}") from None
        return _pairs(self.option, text) if self.is_json and not text.lstrip().startswith("{") else text

    def items_from_text(self, text: str) -> list[Any]:
        """The items that one word of the command line gives a list flag: itself, or those of a JSON list.

        Numbers and names of choices may be separated by commas; in any other text a comma is a comma.
        """
        if text.startswith("["):
            try:
                value = json.loads(text)
            except ValueError as e:
                raise InvalidConfig(f"{self.option}: {text!r} is not a JSON list: {e}") from None
            return list(self.from_yaml(value))
        return [
            self.from_text(word) for word in (text.split(",") if self.kind in (int, float) or self.choices else [text])
        ]

    def from_yaml(self, value: Any) -> Any:
        """A value of the config file. Text is read as on the command line; other types must fit."""
        if value is None:
            if self.optional:
                return None
            raise InvalidConfig(f"{self.option} has no value in the config file")
        if self.is_list:
            values = value if isinstance(value, list) else [value]
            return [dataclasses.replace(self, is_list=False, optional=False).from_yaml(v) for v in values]
        if isinstance(value, str):
            return self.from_text(value)
        if self.is_json and isinstance(value, dict):
            return _json_text(self.option, value)
        # A bool is an int to Python, and `port: yes` is still a mistake.
        fits = isinstance(value, self.kind) and (self.kind is bool or not isinstance(value, bool))
        if fits or (self.kind is float and isinstance(value, int) and not isinstance(value, bool)):
            return self.kind(value)
        if self.kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        raise InvalidConfig(f"{self.option} must be {_NOUNS[self.kind]}; got {json.dumps(value, default=str)}")


#: Between pairs: a comma with a key behind it, which one inside of a JSON list or text is not.
_PAIR: Final = re.compile(r",(?=\s*[\w.]+=)")
_NOUNS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def flags(groups: Mapping[str, type] = GROUPS) -> dict[str, Flag]:
    """All flags by field name: those of `octavo serve` unless other dataclasses are given.

    A field that is a positional argument (`positional=True` in its metadata) is not among them.
    """
    table = {}
    for group, cls in groups.items():
        hints = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if not field.metadata.get("positional"):
                table[field.name] = _flag(group, field, hints[field.name])
    return table


def _flag(group: str, field: dataclasses.Field[Any], hint: Any) -> Flag:
    optional = False
    if get_origin(hint) in (Union, types.UnionType):
        members = [m for m in get_args(hint) if m is not type(None)]
        optional, hint = len(members) < len(get_args(hint)), members[0]
    is_list = get_origin(hint) is list
    if is_list:
        (hint,) = get_args(hint)
    choices = tuple(field.metadata.get("choices", ()))
    if get_origin(hint) is Literal:
        choices, hint = get_args(hint), type(get_args(hint)[0])
    factory = field.default_factory
    return Flag(
        field=field.name,
        group=group,
        kind=hint,
        is_list=is_list,
        optional=optional,
        default=field.default if factory is dataclasses.MISSING else factory(),
        help=field.metadata["help"],
        choices=choices,
        in_bytes=field.metadata.get("unit") == "bytes",
        is_json=bool(field.metadata.get("json")),
        aliases=tuple(field.metadata.get("aliases", ())),
        short=field.metadata.get("short"),
        home=group,
        one_word=bool(field.metadata.get("one_word")),
        inverse=tuple(field.metadata.get("inverse", ())),
    )


def part(cls: type[T], values: Mapping[str, Any]) -> T:
    """An object of a dataclass from its fields among `values`; what is not among them keeps its default."""
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # all are dataclasses
    return cls(**{name: value for name, value in values.items() if name in known})


def build(values: Mapping[str, Any]) -> ServeConfig:
    """The configuration from values by field name; what is not among them keeps its default. Checked."""
    engine = EngineConfig(
        model=part(ModelConfig, values),
        cache=part(CacheConfig, values),
        scheduler=part(SchedulerConfig, values),
        parallel=part(ParallelConfig, values),
        lora=part(LoraConfig, values),
        prompt_adapter=part(PromptAdapterConfig, values),
        log=part(LogSetup, values),
        step_times=part(StepTimes, values),
    )
    config = ServeConfig(engine=engine, server=part(ServerConfig, values))
    check(config)
    return config


def _boolean(option: str, text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise InvalidConfig(f"{option} must be true or false; got {text!r}{nearest(text.lower(), ('true', 'false'))}")


def _pairs(option: str, text: str) -> str:
    """The JSON object that `key=value,key=value` stands for; a.b is the key b of the object a. What is no JSON object
    and has no pairs stays what it is, and will be refused."""
    result: dict[str, Any] = {}
    for pair in _PAIR.split(text):
        key, equals, word = pair.partition("=")
        if not equals or not key.strip():
            return text
        *outer, last = key.strip().split(".")
        place = result
        for name in outer:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise InvalidConfig(f"{option}: {name} is a value and an object at once")
        try:
            place[last] = json.loads(word)
        except ValueError:
            place[last] = word
    return json.dumps(result)


def _json_text(option: str, value: dict[Any, Any]) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):  # YAML has dates and sets
        raise InvalidConfig(f"{option} must be an object that JSON can hold") from None


def _integer(option: str, text: str, units: Mapping[str, int]) -> int:
    """A whole number, or one with a unit: 8k is 8,000, 8K and 8Ki are 8,192, 25.6k is 25,600; of bytes, 2G, 2g and
    2GiB are 2 * 2**30."""
    match = re.fullmatch(r"([+-]?\d{1,40}(?:\.\d{1,40})?)\s*([A-Za-z]*)", text.strip())
    if match:
        unit = match[2].lower().removesuffix("b") if units is _BYTES else match[2]
        value = Fraction(match[1]) * units.get(unit, 0)
        # "1.0" is no whole number, as everywhere in Python.
        if unit in units and value.denominator == 1 and (unit or "." not in match[1]):
            return value.numerator
    what = "a number of bytes, such as 2G" if units is _BYTES else "a whole number"
    raise InvalidConfig(f"{option} must be {what}; got {text!r}")
