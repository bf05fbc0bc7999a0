"""`octavo serve` for all tool formats at once: `python format_serve.py serve MODEL --served-model-name hermes ...`.

Each name under which the model is served is that of the format of its calls, as `--tool-call-parser` would say. The
text of a `guided_choice` is spelled with the special tokens of the vocabulary, as a model that knows the format would,
and is open at `CITY` and `DAYS`: there the model decides.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from octavo.base.params import GrammarSpec
from octavo.cli import main
from octavo.launch import serve_loop
from octavo.served import model
from octavo.served.model import ServedModel
from octavo.served.models import Models
from octavo.served.output_plan import OutputPlan, plan_output
from octavo.served.parts import OutputSettings
from octavo.served.turn import ReplyWishes
from octavo.text.formats.table import TOOL_FORMATS
from octavo.text.grammars.tool_grammar import Builder, SpecialTokens
from support.tool_texts import OPEN, split_open


def in_all_formats(models: Sequence[ServedModel]) -> Models:
    [one] = models
    return Models(
        [replace(one, names=(name,), output=replace(one.output, tool_format=TOOL_FORMATS[name])) for name in one.names]
    )


def plan_in_format(
    wishes: ReplyWishes, constraint: GrammarSpec | None, settings: OutputSettings, *others: Any
) -> OutputPlan:
    if constraint is not None:
        [text] = constraint.source
        tokens = settings.special_tokens
        source = {"lark": _grammar(text, tokens, proof=False), "proof": _grammar(text, tokens, proof=True)}
        constraint = GrammarSpec(kind="lark", source=source, param=constraint.param)
    return plan_output(wishes, constraint, settings, *others)


def _grammar(text: str, tokens: SpecialTokens, *, proof: bool) -> str:
    build = Builder(tokens, proof=proof)
    parts = [build.regex(OPEN[part]) if part in OPEN else build.spelled(part) for part in split_open(text)]
    return build.lark(" ".join(parts))


if __name__ == "__main__":
    serve_loop.Models = in_all_formats  # type: ignore[assignment,misc]
    model.plan_output = plan_in_format
    sys.exit(main())
