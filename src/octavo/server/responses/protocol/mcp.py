"""Tools of MCP servers, and the items of what becomes of them, as requests have them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from octavo.media.addresses import MAX_URL_CHARS
from octavo.server.mcp.servers import LABEL, check_headers
from octavo.server.mcp.session import MAX_TOOLS
from octavo.server.openai.protocol.common import WireModel
from octavo.server.responses.protocol.ids import Id, Item, new_id

#: Most MCP servers of one request.
MAX_SERVERS = 16
_MAX_DESCRIPTION_CHARS = 16384


def _check_label(value: str) -> str:
    if not LABEL.fullmatch(value):
        raise PydanticCustomError("label", "A label has up to 64 letters, digits, - and _, and begins with a letter")
    return value


ToolName = Annotated[str, Field(min_length=1, max_length=256)]
Label = Annotated[str, AfterValidator(_check_label)]


class ToolFilter(WireModel):
    """Which tools are meant: those that have one of the names, and are told to be read-only, or not to be."""

    tool_names: Annotated[list[ToolName] | None, Field(max_length=MAX_TOOLS)] = None
    read_only: bool | None = None

    def takes(self, tool: dict[str, Any]) -> bool:
        if self.tool_names is not None and tool["name"] not in self.tool_names:
            return False
        hint = bool((tool.get("annotations") or {}).get("readOnlyHint", False))
        return self.read_only is None or hint == self.read_only


class ApprovalFilter(WireModel):
    always: ToolFilter | None = None
    never: ToolFilter | None = None


def _as_filter(value: Any) -> Any:
    return {"tool_names": value} if isinstance(value, list) else value


def _as_approval(value: Any) -> Any:
    if value in ("always", "never") and isinstance(value, str):
        return {value: {}}
    if value is not None and not isinstance(value, dict):
        raise PydanticCustomError("approval", 'Input should be "always", "never", or an object with filters of tools')
    return value


def _check_headers(value: dict[str, str]) -> dict[str, str]:
    if (wrong := check_headers(value)) is not None:
        raise PydanticCustomError("headers", wrong[:1].upper() + wrong[1:])
    return value


def _check_authorization(value: str) -> str:
    if check_headers({"authorization": value}) is not None:
        raise PydanticCustomError("authorization", "This cannot be sent as a header")
    return value


class MCPTool(WireModel):
    """All tools of an MCP server, or some. `headers` and `authorization` are told to nobody but the server."""

    type: Literal["mcp"]
    server_label: Label
    server_url: Annotated[str | None, Field(min_length=1, max_length=MAX_URL_CHARS)] = None
    connector_id: Label | None = None
    server_description: Annotated[str | None, Field(max_length=_MAX_DESCRIPTION_CHARS)] = None
    allowed_tools: Annotated[
        ToolFilter | None,
        BeforeValidator(_as_filter, json_schema_input_type=list[str] | ToolFilter | None),
    ] = None
    require_approval: Annotated[
        ApprovalFilter | None,
        BeforeValidator(_as_approval, json_schema_input_type=Literal["always", "never"] | ApprovalFilter | None),
    ] = None
    headers: Annotated[dict[str, str], AfterValidator(_check_headers)] | None = Field(default=None, repr=False)
    authorization: Annotated[str, AfterValidator(_check_authorization)] | None = Field(default=None, repr=False)
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: Literal[False] | None = None
    tunnel_id: None = None

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if self.server_url is not None and self.connector_id is not None:
            raise PydanticCustomError("place", "A server has either a `server_url` or a `connector_id`")
        return self

    @property
    def sent_headers(self) -> dict[str, str]:
        sent = dict(self.headers or {})
        if self.authorization is not None:
            sent["Authorization"] = f"Bearer {self.authorization}"
        return sent

    def allows(self, tool: dict[str, Any]) -> bool:
        return self.allowed_tools is None or self.allowed_tools.takes(tool)

    def needs_approval(self, tool: dict[str, Any]) -> bool:
        """As OpenAI's: always, unless the request says otherwise."""
        wish = self.require_approval
        if wish is None:
            return True
        if wish.always is not None and wish.always.takes(tool):
            return True
        # A filter of what never needs one leaves all others as they are by default; so does one of what always does.
        return not (wish.never.takes(tool) if wish.never is not None else wish.always is not None)

    def shown(self) -> dict[str, Any]:
        """As the response tells of it: without what may be secret, which a URL's path may be too."""
        shown = self.model_dump(mode="json", exclude={"headers", "authorization"}, exclude_none=True)
        shown["allowed_tools"] = None
        if self.allowed_tools is not None:
            only_names = self.allowed_tools.read_only is None and self.allowed_tools.tool_names is not None
            given = self.allowed_tools.model_dump(exclude_none=True)
            shown["allowed_tools"] = self.allowed_tools.tool_names if only_names else given
        shown["headers"] = None
        wish = self.require_approval
        approval = "always" if wish is None else wish.model_dump(exclude_none=True)
        shown["require_approval"] = next((w for w in ("always", "never") if approval == {w: {}}), approval)
        if self.server_url is not None:
            scheme, _, rest = self.server_url.partition("://")
            shown["server_url"] = f"{scheme}://{rest.partition('/')[0].partition('?')[0].partition('#')[0]}/<redacted>"
        return shown


# ---------------------------------------------------------------- items
class ListedTool(WireModel):
    name: ToolName
    input_schema: dict[str, Any]
    description: str | None = None
    annotations: dict[str, Any] | None = None


class MCPListInput(WireModel):
    """The tools of a server, as a response listed them."""

    type: Literal["mcp_list_tools"]
    server_label: Label
    tools: Annotated[list[ListedTool], Field(max_length=MAX_TOOLS)]
    error: str | None = None
    id: Id | None = None

    def kept(self) -> Item:
        tools = [tool.model_dump() for tool in self.tools]
        return self.model_dump() | {"tools": tools, "id": self.id or new_id("mcpl")}


class MCPCallInput(WireModel):
    """A call that a response made, and what it gave."""

    type: Literal["mcp_call"]
    server_label: Label
    name: ToolName
    arguments: str
    output: str | None = None
    error: dict[str, Any] | str | None = None
    approval_request_id: Id | None = None
    status: Literal["in_progress", "completed", "incomplete", "calling", "failed"] | None = None
    id: Id | None = None

    def kept(self) -> Item:
        status, error = self.status or ("completed" if self.error is None else "failed"), self.error
        if isinstance(error, str):  # an older form
            error = {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": error}]}
        return self.model_dump() | {"status": status, "error": error, "id": self.id or new_id("mcp")}


class ApprovalRequestInput(WireModel):
    """A call that the model wants, and that somebody has to approve."""

    type: Literal["mcp_approval_request"]
    server_label: Label
    name: ToolName
    arguments: str
    id: Id

    def kept(self) -> Item:
        return self.model_dump()


class ApprovalResponseInput(WireModel):
    """Whether a call is approved."""

    type: Literal["mcp_approval_response"]
    approval_request_id: Id
    approve: bool
    reason: str | None = None
    id: Id | None = None

    def kept(self) -> Item:
        return self.model_dump() | {"id": self.id or new_id("mcpr")}
