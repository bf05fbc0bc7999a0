"""Tools and `tool_choice` in a chat request, and tool calls in a reply."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import AfterValidator, ConfigDict, PlainValidator
from pydantic_core import PydanticCustomError

from octavo.served.turn import Function, ToolChoice
from octavo.server.openai.protocol.common import WireModel
from octavo.text.formats.base import MAX_NAME

#: Most functions of a request.
MAX_TOOLS = 1024

_MODES = ("none", "auto", "required")
_SHAPE = 'Input should be "none", "auto", "required", or {"type": "function", "function": {"name": "my_function"}}'
_ALLOWED_SHAPE = (
    'Input should be {"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", '
    '"tools": [{"type": "function", "function": {"name": "my_function"}}]}}'
)


def check_name(value: str) -> str:
    if not value or len(value) > MAX_NAME or not value.isprintable() or " " in value:
        raise PydanticCustomError("function_name", f"A name has 1 to {MAX_NAME} printable characters and no spaces")
    return value


FunctionName = Annotated[str, AfterValidator(check_name)]


class FunctionDefinition(WireModel):
    """Further fields pass through to the template."""

    model_config = ConfigDict(extra="allow")

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(WireModel):
    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    function: FunctionDefinition

    def for_turn(self) -> Function:
        """The function that may be called."""
        function = self.function
        return Function(function.name, function.parameters, bool(function.strict))

    def for_template(self) -> dict[str, Any]:
        """The tool as the template sees it: the fields that were given, without nulls and those for decoding."""
        shown: dict[str, Any] = self.model_dump(exclude_unset=True)
        function = shown["function"]
        for name in ("description", "parameters", "strict"):
            if name == "strict" or function.get(name) is None:
                function.pop(name, None)
        return shown


def _named(value: Any) -> str | None:
    """The name in {"type": "function", "function": {"name": ...}}."""
    function = value.get("function") if isinstance(value, dict) and value.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _check_choice(value: Any) -> ToolChoice | None:
    if value is None:
        return None
    if isinstance(value, str) and value in _MODES:
        return ToolChoice(value)  # type: ignore[arg-type]  # one of them
    if isinstance(value, dict) and value.get("type") == "allowed_tools":
        return _allowed(value.get("allowed_tools"))
    name = _named(value)
    if name is None:
        raise PydanticCustomError("tool_choice", _SHAPE)
    return ToolChoice("named", (name,))


def _allowed(value: Any) -> ToolChoice:
    mode = value.get("mode") if isinstance(value, dict) else None
    tools = value.get("tools") if isinstance(value, dict) else None
    names = [_named(tool) for tool in tools] if isinstance(tools, list) else []
    if mode not in ("auto", "required") or not names or None in names:
        raise PydanticCustomError("tool_choice", _ALLOWED_SHAPE)
    return ToolChoice(mode, tuple(name for name in names if name is not None))


ToolChoiceField = Annotated[
    ToolChoice | None,
    PlainValidator(_check_choice, json_schema_input_type=Literal["none", "auto", "required"] | dict[str, Any] | None),
]


# ---------------------------------------------------------------- replies
class FunctionCall(msgspec.Struct):
    name: str
    arguments: str  # JSON


class ToolCall(msgspec.Struct):
    id: str
    type: str
    function: FunctionCall


class FunctionCallDelta(msgspec.Struct):
    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct):
    """The first delta of a call has its `id`, `type` and name; later ones have arguments only."""

    index: int
    function: FunctionCallDelta
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
