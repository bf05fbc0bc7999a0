"""The table of docs/behaviour.md: its rows, who cites their codes, and the tests that hold them.

    python tests/behaviour_table.py        # writes the column of tests anew

A test cites a code at the start of its name (`test_e50_...`, `test_s1_to_s4_...`), in its docstring or in a comment.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "behaviour.md"
NOT_BUILT = "not built"
#: What looks like a code and is none: levels of cache, types of elements, parts of names of models.
NO_CODES = {"L1", "L2", "L3", "L6", "H1", "F16", "F32", "F64", "I16", "I32", "I64"}
_ROW = re.compile(r"\| ([A-Z]\d{1,2}) \| (.+) \| (?:(.*) )?\|")
_CODE = re.compile(r"\b([A-Z]\d{1,2})(?:(?: to |-)([A-Z]\d{1,2}))?\b")
_IN_NAME = re.compile(r"_(?:to_)?([a-z]\d{1,2})(?=_)")


@dataclass(frozen=True)
class Row:
    code: str
    behaviour: str
    tests: str


def rows(text: str) -> list[Row]:
    """The rows of all tables of the document, in its order."""
    return [Row(*match.groups("")) for match in map(_ROW.fullmatch, text.splitlines()) if match]


def _between(first: str, last: str) -> Iterator[str]:
    if first[0] == last[0] and not first[1:].startswith("0"):
        yield from (f"{first[0]}{number}" for number in range(int(first[1:]), int(last[1:]) + 1))


def codes(text: str) -> set[str]:
    """The codes in a comment or a docstring. Of "F1 to F10" and "F1-F10" those between, too."""
    found: set[str] = set()
    for first, last in _CODE.findall(text):
        found |= {first, last, *_between(first, last)} if last else {first}
    return found - NO_CODES


def codes_of_name(name: str) -> set[str]:
    """The codes with which the name of a test begins: `test_s1_to_s4_t5_...` has S1, S2, S3, S4 and T5."""
    found: set[str] = set()
    at, last = len("test"), ""
    while match := _IN_NAME.match(name, at):
        code = match[1].upper()
        found |= {code, *(_between(last, code) if match[0].startswith("_to_") else ())}
        at, last = match.end(), code
    return found


def citations(path: Path) -> dict[str, set[str]]:
    """Code -> the tests of the file that cite it; "" stands for what is outside of any test."""
    source = path.read_text()
    if not codes(source) and not re.search(r"def test_[a-z]\d", source):
        return {}  # most files: to parse them all takes long
    tree = ast.parse(source)
    tests = {
        range(min(d.lineno for d in [*node.decorator_list, node]), (node.end_lineno or 0) + 1): node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }
    texts = [
        (token.start[0], token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    texts += [
        (getattr(node, "lineno", 0), ast.get_docstring(node) or "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    found: defaultdict[str, set[str]] = defaultdict(set)
    for line, text in texts:
        name = next((name for lines, name in tests.items() if line in lines), "")
        for code in codes(text):
            found[code].add(name)
    for name in tests.values():
        for code in codes_of_name(name):
            found[code].add(name)
    return found


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def _importers(helper: Path) -> list[str]:
    importing = re.compile(rf"^(?:from|import) .*\b{helper.stem}\b", re.MULTILINE)
    return [_place(path) for path in sources("tests") if _is_test(path) and importing.search(path.read_text())]


def _is_test(path: Path) -> bool:
    return path.name.startswith("test_")


def _place(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _patterns(path: Path, code: str, names: set[str]) -> list[str]:
    """The tests of one file: those that are called after the code as one pattern; the file, where none is named."""
    called = [name for name in names if name.startswith(f"test_{code.lower()}_")]
    if len(called) > 1:
        names = {*names.difference(called), f"test_{code.lower()}_*"}
    return [f"{_place(path)}::{name}" for name in sorted(names - {""})] or [_place(path)]


def tests_by_code() -> dict[str, list[str]]:
    """Code -> the tests that cite it; where only a helper does, the files that import the helper."""
    held: defaultdict[str, list[str]] = defaultdict(list)
    helped: defaultdict[str, list[str]] = defaultdict(list)
    for path in sources("tests"):
        for code, names in citations(path).items():
            if _is_test(path):
                held[code] += _patterns(path, code, names)
            else:
                helped[code] += _importers(path)
    return {**{code: sorted(set(files)) for code, files in helped.items()}, **held}


def exists(pattern: str) -> bool:
    """Whether a cell's `file` or `file::test*` is there."""
    place, _, name = pattern.partition("::")
    path = ROOT / place
    if not (_is_test(path) and path.is_file()):
        return False
    return not name or any(fnmatchcase(found, name) for found in re.findall(r"def (test_\w+)", path.read_text()))


def main() -> None:
    held = tests_by_code()
    lines = DOCUMENT.read_text().splitlines()
    for i, line in enumerate(lines):
        if match := _ROW.fullmatch(line):
            code, behaviour, tests = match.groups("")
            new = ", ".join(f"`{pattern}`" for pattern in held.get(code, ()))
            if not new and tests != NOT_BUILT:
                print(f"{code}: no test cites it")
            lines[i] = f"| {code} | {behaviour} | {new or tests} |"
    DOCUMENT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
