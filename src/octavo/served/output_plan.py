"""What a turn wants of its output: which functions may be called and must be, how the text is to be read, and what the
model is held to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidRequest
from octavo.base.params import GrammarSpec
from octavo.served.parts import OutputSettings
from octavo.served.turn import Function, ReplyWishes, ToolChoice
from octavo.text.formats.base import ReasoningFormat, Tool, ToolFormat
from octavo.text.formats.output_parser import OutputFormat
from octavo.text.formats.table import TOOL_FORMATS
from octavo.text.grammars.grammar import CALL_OPTIONS, GrammarLimits
from octavo.text.grammars.held_tools import prepared_tools
from octavo.text.grammars.tool_grammar import after_thinking, calls_among_text, calls_or_content, required_calls

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
    loose: tuple[Tool, ...] = ()  # the tools of `spec` that are held to what can be held of them, prepared

    @property
    def is_named(self) -> bool:
        return self.choice.mode == "named"

    @property
    def is_forced(self) -> bool:
        return self.choice.forces_calls

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
    bare: Collection[str] = (),
) -> OutputPlan:
    """`constraint` is what the turn says of its output elsewhere.

    `bare`: the names of tools, not strict, of which only the names and types of their arguments are held. Raises
    `InvalidRequest`.
    """
    functions = wishes.functions
    choice = _choice(wishes, config, knows_format=settings.tool_format is not None)
    names = None if choice.names is None else frozenset(choice.names)
    called = [i for i, function in enumerate(functions) if names is None or function.name in names]
    if choice.mode == "none":
        called = []
    tools = tuple(_tool(functions[i]) for i in called)
    all_strict = choice.mode == "auto" and config.tool_strict_level == "parameter"
    strict = frozenset(tool.name for tool, i in zip(tools, called, strict=True) if all_strict or functions[i].strict)
    row = settings.tool_format if choice.mode != "none" else None
    if choice.mode == "required":
        row = row or TOOL_FORMATS[GENERIC_FORMAT]
    parallel = wishes.parallel_calls
    prepared: list[Tool] = []
    spec: GrammarSpec | None = None
    if _is_held(choice, row, strict, constraint, config):
        loose = frozenset(tool.name for tool in tools) - strict
        prepared = prepared_tools(
            tools,
            [f"tools.{i}" for i in called],
            limits,
            loose=loose,
            bare=bare,
            row=row,
            only_names=choice.mode == "auto" and constraint is None,
        )
        spec = _held(choice, row, prepared, strict, constraint, settings, parallel=parallel)
    return OutputPlan(
        settings=settings,
        choice=choice,
        tools=tools,
        row=row,
        spec=spec or constraint,
        forces_calls=spec is not None,
        parallel=parallel,
        thinking_budget=_thinking_budget(wishes, settings.reasoning_format),
        loose=tuple(tool for tool in prepared if tool.name not in strict),
    )


def _choice(wishes: ReplyWishes, config: ServerConfig, *, knows_format: bool) -> ToolChoice:
    """The turn's choice where it has functions; what it means where it has none."""
    choice = wishes.choice or ToolChoice("auto")
    if not wishes.functions:
        if choice.forces_calls or choice.names is not None:
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
    if choice.mode == "auto" and not (config.enable_auto_tool_choice or (wishes.may_call and knows_format)):
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


def arguments_spec(tool: Tool) -> GrammarSpec:
    """The whole output is the arguments of a call of `tool`, a prepared one."""
    return GrammarSpec(kind="json", source=tool.parameters, param="tool_choice", options=dict(CALL_OPTIONS))


def _is_held(
    choice: ToolChoice,
    row: ToolFormat | None,
    strict: Collection[str],
    constraint: GrammarSpec | None,
    config: ServerConfig,
) -> bool:
    """The calls are held to something: they are forced, or strict, or part of an output that is held."""
    if choice.forces_calls:
        return True
    is_asked = bool(strict) or config.tool_strict_level == "function"
    return choice.mode == "auto" and row is not None and (is_asked or _is_document(constraint))


def _is_document(constraint: GrammarSpec | None) -> bool:
    return constraint is not None and constraint.kind == "json"


def _held(
    choice: ToolChoice,
    row: ToolFormat | None,
    tools: Sequence[Tool],
    strict: Collection[str],
    constraint: GrammarSpec | None,
    settings: OutputSettings,
    *,
    parallel: bool,
) -> GrammarSpec:
    """What the whole output is held to."""
    special = settings.special_tokens
    if choice.mode == "auto":
        assert row is not None
        if constraint is None:  # text is free, but a call, once begun, is one of a function that exists
            return calls_among_text(row, tools, special, parallel=parallel)
        if not _is_document(constraint):
            raise InvalidRequest(
                f"`{constraint.param}` cannot stand beside tools whose calls are held to their schemas: it says what "
                "the whole output is. Of all constraints only one by a JSON schema leaves room for calls.",
                constraint.param,
            )
        return calls_or_content(row, tools, constraint, special, parallel=parallel, strict=strict)
    if constraint is not None:
        raise InvalidRequest(
            f"A request can have one constraint, but `{constraint.param}` and `tool_choice` were given.",
            constraint.param,
        )
    if row is None:
        [tool] = tools
        return arguments_spec(tool)
    # The model cannot do otherwise. In its own format, where that is known, it calls best.
    is_named = choice.mode == "named"
    return required_calls(row, tools, special, "tool_choice", parallel=parallel and not is_named)


def _thinking_budget(wishes: ReplyWishes, row: ReasoningFormat | None) -> int | None:
    budget = wishes.thinking_budget
    if budget is None:
        return None
    if row is None:
        raise InvalidRequest(
            "`thinking_token_budget` needs a server that separates thinking from the answer (--reasoning-parser).",
            "thinking_token_budget",
        )
    if budget < 0:
        raise InvalidRequest("`thinking_token_budget` must be at least 0.", "thinking_token_budget")
    return budget
