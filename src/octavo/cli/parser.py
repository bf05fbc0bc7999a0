"""The command line of a command: argparse over the table of flags, with our own errors.

argparse lays out the help and splits the words. Before it sees them, `octavo.cli.words` gives every flag its one
spelling, checks those of other programs, and refuses what is no flag with the nearest name.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from typing import Any, NoReturn

from octavo.base.errors import InvalidConfig
from octavo.cli.config_file import read_config_file
from octavo.cli.flags import Flag
from octavo.cli.foreign import Foreign
from octavo.cli.help_topics import find_topic
from octavo.cli.words import normalise

#: Where the value of --model is kept beside that of MODEL.
_MODEL_OPTION = "model_option"


class Parser(argparse.ArgumentParser):
    """argparse, with errors that are `InvalidConfig` (one line, exit code 2) instead of a page of usage."""

    takes_model = False  # as MODEL or with --model

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


def make_parser(
    prog: str, usage: str, description: str, epilog: str, table: dict[str, Flag], *, model_help: str | None = None
) -> Parser:
    """A parser with the flags of `table` under their headings, and --config. Nothing that is not given is set.

    `model_help`: the command takes a model, as MODEL or with --model; see `read_words`.
    """
    parser = Parser(
        prog=prog,
        usage=f"{prog} {usage}",
        description=description,
        formatter_class=_Help,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        epilog=epilog,
    )
    if model_help is not None:
        parser.takes_model = True
        parser.add_argument("model", nargs="?", metavar="MODEL", help=model_help)
        parser.add_argument(
            "--model",
            dest=_MODEL_OPTION,
            metavar="MODEL",
            action=_Once,
            help="the same as MODEL; vLLM's older spelling",
        )
    parser.add_argument("--config", metavar="FILE", action="append", help="YAML file with long flag names as keys")
    _add_flags(parser, table)
    return parser


def _add_flags(parser: Parser, table: dict[str, Flag]) -> None:
    for title in dict.fromkeys(flag.group for flag in table.values()):
        group = parser.add_argument_group(title)
        for flag in table.values():
            if flag.group == title:
                _add_flag(group, flag)


def read_words(
    parser: Parser, words: Sequence[str], table: dict[str, Flag], foreign: Foreign | None = None
) -> dict[str, Any]:
    """What the command line and its config file give, by field name; the command line wins.

    `foreign` takes note of the flags of other programs. Help that is asked for is printed, and ends the program.
    """
    foreign = foreign or Foreign()
    words = normalise(words, table, foreign, ("--config", *(["--model"] if parser.takes_model else [])))
    if words and words[0].startswith("--help="):
        _print_topic(parser, words[0].removeprefix("--help="), table, foreign)
        parser.exit()
    given: dict[str, Any] = vars(parser.parse_args(words))
    model = given.pop(_MODEL_OPTION, None)
    if model is not None and given.setdefault("model", model) != model:
        raise InvalidConfig(f"the model is given twice, as {given['model']!r} and as --model {model!r}")
    files = given.pop("config", [])
    if len(files) > 1:
        raise InvalidConfig("--config may be given only once")
    given |= foreign.settings
    foreign.settings = {}
    values = read_config_file(files[0], table, foreign, takes_model=parser.takes_model) if files else {}
    return values | foreign.settings | given


def _print_topic(parser: Parser, word: str, table: dict[str, Flag], foreign: Foreign) -> None:
    topic = find_topic(word, table, foreign)
    if topic.table is table:
        parser.print_help()
        return
    flags_alone = Parser(usage=argparse.SUPPRESS, formatter_class=_Help, add_help=False)
    _add_flags(flags_alone, topic.table)
    print(topic.text + flags_alone.format_help(), end="")


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
        # With several words, `--api-key KEY MODEL` would make the model a key.
        nargs = None if flag.one_word else "+"
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
