"""`python -m octavo.cli.vllm.page FILE` writes the tables of docs/from-vllm.md anew, between its two marks."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from octavo.base.config import flag_name
from octavo.cli.flags import Flag, flags
from octavo.cli.vllm import ENGINE_ROWS, SERVER_ROWS, TODAY_ROWS, VARIABLES, Row, Variable
from octavo.cli.vllm.row import ANY

BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"

_HEAD, _RULE = "| {} | 0.6.0 | today | what it does | octavo |", "|---|---|---|---|---|"
_TABLES = {
    "The server, chat and tools": SERVER_ROWS,
    "The engine: flags of 0.6.0": ENGINE_ROWS,
    "The engine: flags since then": TODAY_ROWS,
}


def renewed(text: str) -> str:
    """The page with its tables made from the rows."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n".join(_lines()) + "\n" + END + after


def _lines() -> Iterator[str]:
    table = {option: flag for flag in flags().values() for option in (*flag.options, *flag.off_options)}
    for title, rows in _TABLES.items():
        yield from ("", f"### {title}", "", _HEAD.format("flag"), _RULE)
        for row in rows:
            flag = table.get(row.option)
            meaning = row.meaning or (flag.help if flag is not None else "")
            name = f"`{row.option}`" + (f", `{row.short}`" if row.short else "")
            yield _table_row(name, _default(row.seed), _default(row.today), meaning, _deed(row, flag))
    yield from ("", "### Environment", "", _HEAD.format("variable"), _RULE)
    for variable in VARIABLES:
        cells = (f"`{variable.name}`", _default(variable.seed), _default(variable.today), variable.meaning)
        yield _table_row(*cells, _deed_of_variable(variable))
    yield ""


def _table_row(*cells: str) -> str:
    return "| " + " | ".join(re.sub(r"[|*<]", r"\\\g<0>", cell) for cell in cells) + " |"


def _default(value: str | None) -> str:
    return "" if value is None else value


def _deed(row: Row, flag: Flag | None) -> str:
    """What octavo does with a flag."""
    if flag is None and not row.reason:
        return "works"  # --config and --model
    if flag is None:
        what = {"true": "on", "false": "off"}.get(row.accepts.text, row.accepts.text)
        if row.accepts is ANY:
            return f"accepted, nothing to do: {row.reason}"
        return f"{f'accepted: {what}; else refused' if what else 'refused'}: {row.reason}"
    deed = "works" if flag.option == row.option else f"works, as `{flag.option}`"
    default = _shown(flag.default)
    if default not in (row.today, row.seed) and flag.default not in (None, "", [], 0):
        deed += f"; default {default}"
    sentences = [deed, *([row.note.rstrip(".")] if row.note else []), *_values(row.renamed, row.refused)]
    return ". ".join(sentences)


def _values(renamed: Mapping[str, str | None], refused: Mapping[str, str]) -> Iterator[str]:
    by_name: dict[str, list[str]] = {}
    for value, name in renamed.items():
        by_name.setdefault("the default" if name is None else f"`{name}`", []).append(value)
    for name, values in by_name.items():
        yield f"Takes {_code(values)} as {name}"
    by_reason: dict[str, list[str]] = {}
    for value, reason in refused.items():
        by_reason.setdefault(reason, []).append(value)
    for reason, values in by_reason.items():
        yield f"Refuses {_code(values)}: {reason}"


def _code(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return json.dumps(value) if isinstance(value, list) else str(value)


def _deed_of_variable(variable: Variable) -> str:
    if variable.field is not None:
        return f"as `{flag_name(variable.field)}`" + (f". {variable.reason.rstrip('.')}" if variable.reason else "")
    what = variable.accepts.text
    if variable.accepts is ANY:
        return f"nothing to do: {variable.reason}"
    return f"{f'nothing to do for {what}; else a warning' if what else 'a warning'}: {variable.reason}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
