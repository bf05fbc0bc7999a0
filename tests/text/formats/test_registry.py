"""Formats by name, and those that a plug-in adds (--tool-parser-plugin)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.base.errors import InvalidConfig, StartupError
from octavo.text.formats import registry
from octavo.text.formats.registry import load_plugin, reasoning_format, register, tool_format
from octavo.text.formats.table import REASONING_ALIASES, REASONING_FORMATS, TOOL_ALIASES, TOOL_FORMATS
from support.format_reader import calls_of, read

PLUGIN = """
from octavo.text.formats.base import ReasoningFormat, ToolFormat
from octavo.text.formats.json_calls import JsonCalls
from octavo.text.formats.registry import register

register(ToolFormat("mine", JsonCalls(), ("<my>",), ("</my>",)))
register(ReasoningFormat("mine", "<hm>", "</hm>"))
"""


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_tools", dict(registry._tools))
    monkeypatch.setattr(registry, "_reasoning", dict(registry._reasoning))
    yield


def test_a_row_is_found_by_its_name_and_by_other_names() -> None:
    for name, row in TOOL_FORMATS.items():
        assert tool_format(name) is row and row.name == name
    for name, row in REASONING_FORMATS.items():
        assert reasoning_format(name) is row and row.name == name
    assert all(tool_format(alias) is TOOL_FORMATS[name] for alias, name in TOOL_ALIASES.items())
    assert all(reasoning_format(alias) is REASONING_FORMATS[name] for alias, name in REASONING_ALIASES.items())
    assert not TOOL_ALIASES.keys() & TOOL_FORMATS.keys()
    assert not REASONING_ALIASES.keys() & REASONING_FORMATS.keys()


def test_a_name_that_is_none_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(InvalidConfig, match="--tool-call-parser.*'hermez'; did you mean hermes"):
        tool_format("hermez")
    with pytest.raises(InvalidConfig, match="--reasoning-parser.*did you mean deepseek_r1"):
        reasoning_format("deepseek_r")


def test_a_plugin_adds_formats(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    load_plugin(str(path))
    reply = read("mine", '<hm>x</hm>a<my>{"name": "f", "arguments": {"n": 1}}</my>', reasoning="mine")
    assert (reply.reasoning, reply.content, calls_of(reply)) == ("x", "a", [("f", {"n": 1})])


def test_the_table_of_the_documentation_names_every_format() -> None:
    text = (Path(__file__).parents[3] / "docs" / "tool-calling.md").read_text(encoding="utf-8")
    assert not [name for name in TOOL_FORMATS if f"`{name}`" not in text]


def test_a_plugin_may_take_the_place_of_a_row(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.replace('ToolFormat("mine"', 'ToolFormat("hermes"'))
    load_plugin(str(path))
    assert tool_format("hermes").begins == ("<my>",)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ValueError('no')", "ValueError: no"),
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("def f(:", "SyntaxError"),
        ("from octavo.text.formats.registry import register\nregister('x')", "TypeError: register takes"),
        ("import sys\nsys.exit(0)", "SystemExit"),
        ("x = 1", "registers no format"),
    ],
)
def test_a_plugin_that_fails_stops_the_start_with_its_name(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(source)
    with pytest.raises(StartupError, match=message) as caught:
        load_plugin(str(path))
    assert "bad.py" in str(caught.value)


def test_a_plugin_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="there is no file"):
        load_plugin(str(tmp_path / "none.py"))


def test_register_takes_rows_only() -> None:
    with pytest.raises(TypeError):
        register("hermes")  # type: ignore[arg-type]
