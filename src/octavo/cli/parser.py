"""The command line of a command: argparse over the table of flags, with our own errors.

argparse lays out the help and splits the words. Before it sees them, `normalise` makes `_` and `-` the same in
flag names, resolves `--switch=false`, checks vLLM's flags, and refuses what is no flag with the nearest name.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from octavo.cli.compat import Compat
from octavo.cli.config_file import read_config_file
from octavo.cli.flags import Flag
from octavo.errors import InvalidConfig
from octavo.suggest import nearest

_BOOLEAN_WORDS = ("true", "false")


class Parser(argparse.ArgumentParser):
    """argparse, with errors that are `InvalidConfig` (one line, exit code 2) instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ")
        for ending in (": expected one argument", ": expected at least one argument"):
            text = text.replace(ending, " needs a value")
        raise InvalidConfig(text)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Wide columns, and `--[no-]switch` in place of both spellings."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size((100, 24)).columns, 110) - 2
        super().__init__(prog, max_help_position=34, width=width)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return "--[no-]" + action.option_strings[0].removeprefix("--")
        return super()._format_action_invocation(action)


class _Items(argparse.Action):
    """Adds the items of a list flag to those given before."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        words = values if values and isinstance(values[0], list) else [values]
        known = getattr(namespace, self.dest, [])
        setattr(namespace, self.dest, [*known, *(item for word in words for item in word)])


class _Once(argparse.Action):
    """Stores a value; a second, different one is an error and not the last word."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        known = getattr(namespace, self.dest, values)
        if known is not values and known != values:  # NaN differs from itself
            raise InvalidConfig(f"{option} is given twice, with different values")
        setattr(namespace, self.dest, values)


def make_parser(prog: str, usage: str, description: str, epilog: str, table: dict[str, Flag]) -> Parser:
    """A parser with the flags of `table` under their headings, and --config. Nothing that is not given is set."""
    parser = Parser(
        prog=prog,
        usage=f"{prog} {usage}",
        description=description,
        formatter_class=_Help,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        epilog=epilog,
    )
    parser.add_argument("--config", metavar="FILE", action="append", help="YAML file with long flag names as keys")
    for title in dict.fromkeys(flag.group for flag in table.values()):
        group = parser.add_argument_group(title)
        for flag in table.values():
            if flag.group == title:
                _add_flag(group, flag)
    return parser


def read_words(
    parser: Parser, words: Sequence[str], table: dict[str, Flag], compat: Mapping[str, Compat]
) -> dict[str, Any]:
    """What the command line and its config file give, by field name; the command line wins."""
    given: dict[str, Any] = vars(parser.parse_args(normalise(words, table, compat)))
    files = given.pop("config", [])
    if len(files) > 1:
        raise InvalidConfig("--config may be given only once")
    values = read_config_file(files[0], table, compat) if files else {}
    return values | given


def _add_flag(group: Any, flag: Flag) -> None:
    shown = flag.help.replace("%", "%%")
    if flag.kind is bool:
        help_text = f"{shown} [{'on' if flag.default else 'off'}]"
        group.add_argument(flag.option, dest=flag.field, action=argparse.BooleanOptionalAction, help=help_text)
        return
    if len(flag.choices) > 4:
        shown = f"{shown} One of {', '.join(map(str, flag.choices))}."
    if flag.default is not None and flag.default not in ("", []):
        shown = f"{shown} [{_shown(flag.default)}]"
    metavar = "{" + ",".join(map(str, flag.choices)) + "}" if flag.choices and len(flag.choices) <= 4 else None
    if metavar is None:
        metavar = {int: "N", float: "X", str: "TEXT"}[flag.kind]
    if flag.is_list:
        # An API key takes one word: with several, `--api-key KEY MODEL` would make the model a key.
        nargs = None if flag.field == "api_key" else "+"
        group.add_argument(
            flag.option,
            dest=flag.field,
            action=_Items,
            nargs=nargs,
            type=flag.items_from_text,
            metavar=metavar,
            help=shown,
        )
        return
    once: dict[str, Any] = {"dest": flag.field, "action": _Once, "type": flag.from_text}
    group.add_argument(flag.option, metavar=metavar, help=shown, **once)
    for option in flag.options[1:]:
        group.add_argument(option, help=argparse.SUPPRESS, **once)


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, list) else str(default)


def normalise(words: Sequence[str], table: dict[str, Flag], compat: Mapping[str, Compat]) -> list[str]:
    """The words with every flag in its one canonical spelling. Raises `InvalidConfig` for one that does not exist.

    vLLM's spellings (`compat`) of what octavo does anyway are checked here and left out of the result.
    """
    switches = {o: (f, True) for f in table.values() if f.kind is bool for o in f.options}
    switches |= {o: (f, False) for f in table.values() for o in f.off_options}
    valued = {o for f in table.values() if f.kind is not bool for o in f.options} | {"--config"}
    known = {*switches, *valued, *compat, "--help"}
    given: dict[str, bool] = {}
    result: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*result, word, *rest]
        if not word.startswith("-") or word == "-" or word[1:2].isdigit():
            result.append(word)
            continue
        name, equals, value = word.partition("=")
        name = _canonical(name, table, compat)
        positive = "--" + name[5:] if name.startswith("--no-") else name
        if name == "--help":
            return ["--help"]
        if name in valued:
            result.append(name + equals + value)
        elif name in switches:
            flag, sense = switches[name]
            on = _switch_value(name, value if equals else None, rest) == sense
            if given.setdefault(flag.field, on) != on:
                raise InvalidConfig(f"{flag.option} is both switched on and switched off")
            result.append(flag.option if on else "--no-" + flag.option[2:])
        elif positive in compat and (positive == name or compat[positive].switch):
            _check_compat_words(name, positive, compat[positive], value if equals else None, rest)
        else:
            raise InvalidConfig(f"unknown flag {name}{nearest(name, known)}")
    return result


def _canonical(name: str, table: Mapping[str, Flag], compat: Mapping[str, Compat]) -> str:
    """A flag's name with dashes; the long one for a short one."""
    if name.startswith("--"):
        return "--" + name[2:].replace("_", "-")
    if name == "-h":
        return "--help"
    shorts = {c.short: option for option, c in compat.items() if c.short}
    shorts |= {flag.short: flag.option for flag in table.values() if flag.short}
    if name not in shorts:
        raise InvalidConfig(f"unknown flag {name}{nearest(name, [s for s in shorts if s])}")
    return shorts[name]


def _switch_value(name: str, value: str | None, rest: list[str]) -> bool:
    """What a boolean flag is set to: true when bare; a following true or false belongs to it."""
    if value is None:
        value = rest.pop(0) if rest and rest[0].lower() in _BOOLEAN_WORDS else "true"
    if value.lower() not in _BOOLEAN_WORDS:
        raise InvalidConfig(f"{name} must be true or false; got {value!r}")
    return value.lower() == "true"


def _check_compat_words(name: str, option: str, compat: Compat, value: str | None, rest: list[str]) -> None:
    if compat.switch:
        compat.check(option, _switch_value(name, value, rest) == (name == option))
    elif not compat.accepts:
        compat.check(option, value)
    elif value is None and not rest:
        raise InvalidConfig(f"{option} needs a value")
    else:
        compat.check(option, rest.pop(0) if value is None else value)
