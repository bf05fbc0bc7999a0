"""`--help=WORD`: a group of flags, a flag, those with a word in their name, or a flag of vLLM that octavo has not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from octavo.base.errors import InvalidConfig
from octavo.base.suggest import nearest
from octavo.cli.flags import GROUPS, Flag
from octavo.cli.foreign import Foreign

_LIST_WORDS = ("groups", "listgroup")
_ALL_WORDS = ("all", "page")
#: vLLM's names of groups, in small letters, are those of the configuration's classes.
_VLLM_GROUPS = {cls.__name__.lower(): title for title, cls in GROUPS.items()}
_VLLM_GROUPS |= {"frontend": "HTTP server", "loadconfig": "model"}


@dataclass(frozen=True)
class Topic:
    """`table`: the flags to describe; `text` is printed before them."""

    table: dict[str, Flag]
    text: str = ""


def find_topic(word: str, table: dict[str, Flag], foreign: Foreign) -> Topic:
    """What `--help=word` is about. Raises `InvalidConfig` with the nearest name for what is about nothing."""
    groups = {_key(flag.home): flag.home for flag in table.values()}
    if word in _ALL_WORDS:
        return Topic(table)
    if word in _LIST_WORDS:
        return Topic({}, "groups of flags, for --help=GROUP:\n" + "".join(f"  {title}\n" for title in groups.values()))
    title = groups.get(_key(word)) or _VLLM_GROUPS.get(_key(word))
    if title in groups.values():
        return Topic(_in_own_groups({name: flag for name, flag in table.items() if flag.home == title}))
    option = "--" + word.lstrip("-").replace("_", "-") if len(word.lstrip("-")) > 1 else word
    option = foreign.shorts.get(word, option)
    flag = next((f for f in table.values() if option in (*f.options, *f.off_options, f.short)), None)
    if flag is not None:
        return Topic(_in_own_groups({flag.field: flag}), _other_names(flag))
    if option in foreign.rows:
        return Topic({}, _of_others(option, foreign))
    part = option.lstrip("-")
    found = {name: flag for name, flag in table.items() if any(part in o for o in flag.options)}
    if part and found:
        return Topic(_in_own_groups(found))
    known = [*groups.values(), *(o[2:] for f in table.values() for o in f.options), *(o[2:] for o in foreign.rows)]
    raise InvalidConfig(f"--help={word}: there is no such flag or group{nearest(word, known)}")


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _in_own_groups(table: Mapping[str, Flag]) -> dict[str, Flag]:
    return {name: replace(flag, group=flag.home) for name, flag in table.items()}


def _other_names(flag: Flag) -> str:
    names = [*flag.options[1:], *([flag.short] if flag.short else []), *flag.off_options[1:]]
    return f"{flag.option} has other names: {', '.join(names)}\n" if names else ""


def _of_others(option: str, foreign: Foreign) -> str:
    row = foreign.rows[option]
    lines = [f"{option} is a flag of vLLM: {row.meaning}"]
    if row.accepts.text:
        what = row.accepts.text if row.kind != "switch" else "as given, on or off"
        what = {"true": "on", "false": "off"}.get(row.accepts.text, what)
        lines.append(f"octavo accepts it ({what}), and does nothing for it.")
    else:
        lines.append("octavo refuses it.")
    lines.append(f"Why: {row.reason}.")
    return "\n".join(lines) + "\n"
