"""`octavo completion bash|zsh|fish`: prints a script with which the shell completes octavo's commands and flags.

The script is made from the same tables as the parsers and the help, and is complete in itself: a press of the tab key
starts no Python.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from octavo.base.errors import InvalidConfig
from octavo.base.suggest import nearest
from octavo.cli import COMMANDS
from octavo.cli.completion_scripts import Command, Option, bash, fish, zsh
from octavo.cli.flags import Flag
from octavo.files.sources import DEMO_MODELS


@dataclass(frozen=True)
class _Shell:
    script: Callable[[Sequence[Command]], str]
    use: str  # what to do with it, and where
    place: str


SHELLS = {
    "bash": _Shell(bash, 'eval "$(octavo completion bash)"', "in ~/.bashrc"),
    "zsh": _Shell(zsh, 'eval "$(octavo completion zsh)"', "in ~/.zshrc, behind compinit"),
    "fish": _Shell(fish, "octavo completion fish > ~/.config/fish/completions/octavo.fish", "once"),
}
#: Commands that take a model, as a word or with a flag.
_MODEL_FLAG = ("serve", "run-batch", "bench throughput", "bench latency")
#: Commands that take a word beside their flags, and words that are known to be right there.
_WORDS = {name: tuple(DEMO_MODELS) for name in (*_MODEL_FLAG, "export-tokenizer")}


def run(argv: Sequence[str]) -> int:
    words = list(argv)
    if words in (["-h"], ["--help"]):
        print(_usage())
        return 0
    if len(words) != 1 or words[0] not in SHELLS:
        hint = nearest(words[0], SHELLS) if words else ""
        raise InvalidConfig(f"name one shell: {', '.join(SHELLS)}{hint}")
    print(SHELLS[words[0]].script(commands()), end="")
    return 0


def commands() -> list[Command]:
    """All commands with their options; the same that their own parsers take."""
    found = []
    for name, (module, help_text) in COMMANDS.items():
        if name == "completion":
            found.append(Command(name, help_text, (), tuple(SHELLS)))
            continue
        table: dict[str, Flag] = importlib.import_module(module).table()
        config = Option("--config", "YAML file with long flag names as keys", takes="file")
        options = [Option("--help", "describe the command"), config]
        if name in _MODEL_FLAG:
            options.append(Option("--model", "the same as MODEL", "choice", tuple(DEMO_MODELS)))
        for flag in table.values():
            options += _options(flag)
        found.append(Command(name, help_text, tuple(options), _WORDS.get(name, ()), takes_file=name in _WORDS))
    return found


def _options(flag: Flag) -> list[Option]:
    if flag.kind is bool:
        return [Option(flag.option, flag.help, short=flag.short), Option("--no-" + flag.option[2:], flag.help)]
    takes = "choice" if flag.choices else "file" if flag.kind is str else "number"
    choices = tuple(map(str, flag.choices))
    return [Option(flag.option, flag.help, takes, choices, is_list=flag.is_list, short=flag.short)]


def _usage() -> str:
    lines = [
        "usage: octavo completion SHELL",
        "",
        "Prints a script with which the shell completes octavo's commands, flags and their values.",
        "",
        *(f"  {shell.use:<68}{shell.place}" for shell in SHELLS.values()),
    ]
    return "\n".join(lines)
