"""How the time to read a model's output grows with its length: every format of calls, on texts that are hostile to it.

    PYTHONPATH=src python bench/formats.py [--formats hermes,mistral] [--size 2048] [--times 8]

Each text is read twice: in pieces of four characters, as tokens come, and whole. A line tells the kind that grew most:
`--times` as much text should take about as many times as long, whatever the text is. Exit code 1 when any took three
times as much as that.
"""

from __future__ import annotations

import argparse
import sys
import time

from octavo.text.formats.output_parser import OutputFormat, OutputParser
from octavo.text.formats.table import TOOL_FORMATS

#: A call as each kind of body writes it.
CALLS = {
    "MarkedJSON": '{"name": "f", "arguments": {"a": 1}}',
    "TaggedCalls": "<function=f><parameter=a>1</parameter></function>", "PythonicCalls": "[f(a=1)]",
    "KeyedCalls": "call:f{a:1}",
}  # fmt: skip
FRAGMENTS = (
    "[", "}]", '{"a":[', '{"name": "', '{"a": {"name": "f", ', '[{"name": "f", "arguments": {}}, ', "f(a=1,", " \n",
    "\\", '"', "x", "It is a < b > c {d} [e] ", "<a></a><function=f><parameter=b>", *CALLS.values(),
)  # fmt: skip


def hostile(name: str, size: int) -> dict[str, str]:
    """What it repeats -> a text of about `size` characters, with and without the format's mark in front."""
    form = TOOL_FORMATS[name]
    mark = (form.begins or form.openers)[0]
    starts = {"": "", "the mark, ": mark, "a call, ": mark + '{"name": "f", "arguments": {"a": "'}
    units = (mark, mark[: len(mark) // 2 + 1], *(mark + unit for unit in CALLS.values()), *FRAGMENTS)
    return {
        f"{told}{unit!r} again and again": start + unit * (size // len(unit))
        for told, start in starts.items()
        for unit in units
    }


def seconds(row: OutputFormat, text: str, piece: int) -> float:
    parser = OutputParser(row)
    began = time.process_time()
    for start in range(0, len(text), piece):
        parser.push(text[start : start + piece])
    parser.finish(truncated=False)
    return time.process_time() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default=",".join(TOOL_FORMATS), help="which [all]")
    parser.add_argument("--size", type=int, default=2048, help="characters of the short text [2048]")
    parser.add_argument("--times", type=int, default=8, help="how much longer the long one is [8]")
    args = parser.parse_args()
    is_worse = False
    for name in args.formats.split(","):
        row = OutputFormat(tools=TOOL_FORMATS[name])
        large = hostile(name, args.size * args.times)
        growths = []
        for kind, text in hostile(name, args.size).items():
            for piece in (4, 1 << 30):
                short = min(seconds(row, text, piece) for _ in range(3))
                long = seconds(row, large[kind], piece)
                # Under 20 ms the clock and the first call's costs are most of it.
                growths.append(
                    (long / max(short, 0.02 / args.times), long, kind, "in pieces" if piece == 4 else "whole")
                )
        growth, long, kind, how = max(growths)
        is_worse |= growth > 3 * args.times
        print(f"{name:20} x{growth:5.1f}, {1e3 * long:7.1f} ms: {kind}, {how}", flush=True)
    return int(is_worse)


if __name__ == "__main__":
    sys.exit(main())
