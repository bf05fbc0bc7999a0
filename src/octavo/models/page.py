"""`python -m octavo.models.page FILE` writes the tables of docs/models.md anew, between its marks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from octavo.models.bridge.tried import TRIED
from octavo.models.gguf_config import ARCHITECTURES
from octavo.models.pooling import causal_name
from octavo.models.registry import FAMILIES

#: Real weights that tests run, by the module of their family. All families are tried on tiny random models.
REAL: Final = {
    "bert": "all-MiniLM-L6 and a fine-tune of it, all-mpnet-base-v2",
    "gemma3": "Gemma 3 270M",
    "gpt2": "8.9M",
    "llama": "SmolLM2 135M",
    "nomic_bert": "nomic-embed-text v1.5",
    "qwen2": "Qwen2.5-Coder 0.5B",
}


def renewed(text: str) -> str:
    """The page with its tables made from the registry."""
    for name, lines in (("families", _families()), ("bridged", _bridged())):
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = before + begin + "\n".join(lines) + "\n" + end + after
    return text


def _families() -> Iterator[str]:
    """A row a file in `families/`, of octavo's own."""
    rows: dict[str, list[str]] = {}
    for architecture, family in FAMILIES.items():
        module = family.spec.__module__
        if module.startswith("octavo.models.families."):
            rows.setdefault(module.rpartition(".")[2], []).append(architecture)
    files: dict[str, list[str]] = {}
    for name, arch in ARCHITECTURES.items():
        files.setdefault(causal_name(arch.architecture, FAMILIES), []).append(name)
    yield "| family | architectures | tried with | CPU | GPU | GGUF |"
    yield "|---|---|---|---|---|---|"
    for module, architectures in sorted(rows.items()):
        gguf = ", ".join(f"`{file}`" for name in architectures for file in files.get(name, ())) or "-"
        names = ", ".join(f"`{name}`" for name in architectures)
        tried = f"tiny random, {REAL[module]}" if module in REAL else "tiny random"
        yield f"| {module} | {names} | {tried} | yes | yes | {gguf} |"


def _bridged() -> Iterator[str]:
    yield "| `model_type` | what is special | tried with | CPU | GPU | GGUF |"
    yield "|---|---|---|---|---|---|"
    for name, special in sorted(TRIED.items()):
        yield f"| `{name}` | {special} | tiny random | yes | not tried | - |"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
