"""What a turn wants of its output: which functions may be called and must be, how the text is to be read, and what the
model is held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from octavo.config import ServerConfig
from octavo.errors import InvalidRequest
from octavo.params import GrammarSpec
from octavo.served.parts import OutputSettings
from octavo.served.turn import Function, ReplyWishes, ToolChoice
from octavo.text.formats.base import ReasoningFormat, Tool, ToolFormat
from octavo.text.formats.table import TOOL_FORMATS
from octavo.text.grammar import CALL_OPTIONS, GrammarLimits
from octavo.text.output_parser import OutputFormat
from octavo.text.tool_grammar import after_thinking, calls_among_text, prepared_tools, required_calls

#: OpenAI: a function without `parameters` takes none.
NO_PARAMETERS: Final = {"type": "object", "properties": {}, "additionalProperties": False}
#: What a forced call looks like where the model's own format is not known.
GENERIC_FORMAT = "json"


@dataclass(frozen=True)
class OutputPlan:
    """Made before the prompt is rendered; what the prompt says of the thinking is told to the methods."""

    settings: OutputSettings
    choice: ToolChoice
    tools: tuple[Tool, ...]  # those that may be called
    row: ToolFormat | None  # how calls are spelled; None: none are looked for, or the whole text is one
    spec: GrammarSpec | None  # what the output is held to, its thinking not counted
    forces_calls: bool  # `spec` is about calls
    parallel: bool
    thinking_budget: int | None

    @property
    def is_named(self) -> bool:
        return self.choice.mode == "named"

    @property
    def is_forced(self) -> bool:
        return self.choice.mode in ("required", "named")

    def output_format(self, is_thinking: bool | None) -> OutputFormat | None:
        """How to read the output; None: all of it is content."""
        whole = self.tools[0].name if self.is_named and self.row is None else None
        reasoning = self.settings.reasoning_format
        if self.row is None and whole is None and reasoning is None:
            return None
        max_calls = None if self.parallel and not self.is_named else 1
        return OutputFormat(self.row, reasoning, self.tools, is_thinking, whole, max_calls)

    def constraint(self, is_thinking: bool | None) -> GrammarSpec | None:
        reasoning = self.settings.reasoning_format
        if reasoning is None:
            return self.spec
        return after_thinking(
            self.spec,
            reasoning,
            self.settings.special_tokens,
            is_thinking=is_thinking,
            is_call=self.row is not None and self.forces_calls,
            budget=self.thinking_budget,
        )


def plan_output(
    wishes: ReplyWishes,
    constraint: GrammarSpec | None,
    settings: OutputSettings,
    config: ServerConfig,
    limits: GrammarLimits,
) -> OutputPlan:
    """`constraint` is what the turn says of its output elsewhere. Raises `InvalidRequest`."""
    functions = wishes.functions
    choice = _choice(wishes, config, knows_format=settings.tool_format is not None)
    names = None if choice.names is None else frozenset(choice.names)
    called = [i for i, function in enumerate(functions) if names is None or function.name in names]
    tools = tuple(_tool(functions[i]) for i in called) if choice.mode != "none" else ()
    parallel = wishes.parallel_calls
    row, spec = None, None
    if choice.mode == "auto":
        row = settings.tool_format
        spec = _strict(functions, called, tools, settings, config, limits, parallel=parallel)
    elif choice.mode in ("required", "named"):
        prepared = prepared_tools(tools, [f"tools.{i}" for i in called], limits)
        row, spec = _forced(choice, prepared, settings, parallel=parallel)
    if constraint is not None and spec is not None:
        raise InvalidRequest(
            f"A request can have one constraint, but `{constraint.param}` and `{spec.param}` were given.",
            constraint.param,
        )
    return OutputPlan(
        settings=settings,
        choice=choice,
        tools=tools,
        row=row,
        spec=spec or constraint,
        forces_calls=spec is not None,
        parallel=parallel,
        thinking_budget=_thinking_budget(wishes, settings.reasoning_format),
    )


def _choice(wishes: ReplyWishes, config: ServerConfig, *, knows_format: bool) -> ToolChoice:
    """The turn's choice where it has functions; what it means where it has none."""
    choice = wishes.choice or ToolChoice("auto")
    if not wishes.functions:
        if choice.mode in ("required", "named") or choice.names is not None:
            raise InvalidRequest("`tool_choice` needs `tools` to choose from.", "tool_choice")
        return ToolChoice("none")
    known: set[str] = set()
    for i, function in enumerate(wishes.functions):
        if function.name in known:
            raise InvalidRequest(f"Two tools have the name {function.name!r}.", f"tools.{i}.function.name")
        known.add(function.name)
    for name in choice.names or ():
        if name not in known:
            raise InvalidRequest(
                f"The name {name[:200]!r} in `tool_choice` does not match any of the specified `tools`.", "tool_choice"
            )
    if choice.mode == "auto" and not config.enable_auto_tool_choice:
        flags = "--enable-auto-tool-choice"
        if not knows_format:
            flags += " --tool-call-parser NAME, for how this model writes calls is not known"
        raise InvalidRequest(
            '`tool_choice` "auto", also when it is left out, needs a server that was started with '
            f'{flags}; this one takes "required", a function\'s name, and "none".',
            "tool_choice",
        )
    return choice


def _tool(function: Function) -> Tool:
    return Tool(function.name, function.parameters if function.parameters is not None else NO_PARAMETERS)


def _forced(
    choice: ToolChoice, tools: Sequence[Tool], settings: OutputSettings, *, parallel: bool
) -> tuple[ToolFormat | None, GrammarSpec]:
    """F5, F6: the model cannot do otherwise. In its own format, where that is known, it calls best."""
    row = settings.tool_format
    if choice.mode == "named":
        if row is None:
            [tool] = tools
            return None, GrammarSpec(
                kind="json", source=tool.parameters, param="tool_choice", options=dict(CALL_OPTIONS)
            )
        parallel = False
    row = row or TOOL_FORMATS[GENERIC_FORMAT]
    return row, required_calls(row, tools, settings.special_tokens, "tool_choice", parallel=parallel)


def _strict(
    functions: Sequence[Function],
    called: Sequence[int],
    tools: Sequence[Tool],
    settings: OutputSettings,
    config: ServerConfig,
    limits: GrammarLimits,
    *,
    parallel: bool,
) -> GrammarSpec | None:
    """F10: text is free, but a call, once begun, is one of a function that exists, and fits its schema if it is strict.

    None when no function asks for it, nor the server.
    """
    level = config.tool_strict_level
    stricts = [functions[i].strict or level == "parameter" for i in called]
    row = settings.tool_format
    if row is None or not (any(stricts) or level == "function"):
        return None
    loose = [tool if strict else Tool(tool.name) for tool, strict in zip(tools, stricts, strict=True)]
    prepared = prepared_tools(loose, [f"tools.{i}" for i in called], limits)
    return calls_among_text(row, prepared, settings.special_tokens, parallel=parallel)


def _thinking_budget(wishes: ReplyWishes, row: ReasoningFormat | None) -> int | None:
    budget = wishes.thinking_budget
    if budget is None:
        return None
    if row is None:
        raise InvalidRequest(
            "`thinking_token_budget` needs a server that tells thinking from answers by marks (--reasoning-parser).",
            "thinking_token_budget",
        )
    if budget < 0:
        raise InvalidRequest("`thinking_token_budget` must be at least 0.", "thinking_token_budget")
    return budget
