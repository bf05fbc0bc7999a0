"""`python -m octavo.quant.methods.page FILE` writes the table of docs/quantization.md anew, between its two marks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from octavo.quant.methods.table import METHODS

BEGIN: Final = "<!-- table: begin -->\n"
END: Final = "<!-- table: end -->\n"


def renewed(text: str) -> str:
    """The page with its table made from the methods."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = [f"| {name} | {entry.stored} | {entry.held} | {entry.exact} |\n" for name, entry in METHODS.items()]
    head = "| `quant_method` | in the files | held as | exact |\n|---|---|---|---|\n"
    return before + BEGIN + head + "".join(rows) + END + after


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
