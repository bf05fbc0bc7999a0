"""A response whose model calls tools of MCP servers: round by round, until it has said what it has to say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from pydantic_core import PydanticCustomError

from octavo.base.errors import InvalidRequest
from octavo.served.model import Prepared, ServedModel
from octavo.served.turn import Conversation, ToolChoice
from octavo.server.mcp.servers import MCPServer
from octavo.server.mcp.session import MCPFailed, MCPSession, distinct
from octavo.server.openai.protocol.tools import check_name
from octavo.server.openai.serving import Serving
from octavo.server.responses.decoding import Offered, conversation_of, own_place, prepared, turn_of
from octavo.server.responses.messages import messages_of
from octavo.server.responses.output import ResponseBuilder, ServerFunction
from octavo.server.responses.protocol.items import Item
from octavo.server.responses.protocol.mcp import MCPTool
from octavo.server.responses.protocol.reply import MCPCallError, MCPCallItem
from octavo.server.responses.protocol.request import (
    ConversationFields,
    FunctionTool,
    MixedChoice,
    ResponsesRequest,
    ServerChoice,
)

logger = logging.getLogger(__name__)


@dataclass
class _Used:
    """A server that a request uses. `listed`: its tools, once they are known."""

    place: int  # among the request's tools
    tool: MCPTool
    session: MCPSession
    listed: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Approved:
    """A call that the caller has approved, and that was not made yet."""

    request: Item
    param: str


class Rounds:
    """The servers of one response, and what the model is told of them. To be closed."""

    def __init__(
        self,
        request: ConversationFields,
        serving: Serving,
        model: ServedModel,
        before: Sequence[Item],
        items: Sequence[Item],
    ) -> None:
        """`before`: the items that the request goes on from; `items`: its own. Raises `InvalidRequest`."""
        self._request = request
        self._serving = serving
        self._model = model
        self._before = before
        self._items = items
        self._servers = [
            _Used(i, tool, _session(tool, i, serving), _listed(tool.server_label, [*before, *items]))
            for i, tool in enumerate(request.tools or ())
            if isinstance(tool, MCPTool)
        ]
        self._approved = approved_calls(before, items)
        labels = {used.tool.server_label for used in self._servers}
        for approved in self._approved:
            check_server_of(approved, labels)
        config = serving.state.config
        most = request.max_tool_calls if isinstance(request, ResponsesRequest) else None
        self._calls_left = config.mcp_max_calls if most is None else min(most, config.mcp_max_calls)
        self.has_called = False  # a call was made
        self.next: Prepared | None = None  # what the model goes on with

    # ------------------------------------------------------------ what the servers have
    async def opened(self, builder: ResponseBuilder) -> AsyncGenerator[None, None]:
        """Ask the servers for their tools, and make the calls that were approved. Yields where there may be events."""
        unknown = [used for used in self._servers if used.listed is None]
        asked = [asyncio.create_task(used.session.tools()) for used in unknown]
        try:
            for used, task in zip(unknown, asked, strict=True):
                builder.begin_list(used.tool.server_label)
                yield
                try:
                    used.listed = await task
                    builder.end_list(used.listed)
                except MCPFailed as exc:
                    used.listed = ()
                    builder.end_list((), exc.message)
                yield
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        for approved in self._approved:
            wanted = approved.request
            item = builder.add_call(wanted["server_label"], wanted["name"], wanted["arguments"], wanted["id"])
            yield
            await self._make(builder, item)
            yield
        self.next = await self._next(builder)

    async def list_all(self) -> None:
        """Ask the servers for their tools, where nobody is told of it."""
        for used in self._servers:
            if used.listed is None:
                try:
                    used.listed = await used.session.tools()
                except MCPFailed as exc:
                    where = f"tools.{used.place}"
                    raise InvalidRequest(f"The MCP server cannot list its tools: {exc.message}.", where) from None

    def close(self) -> None:
        for used in self._servers:
            used.session.close()

    # ------------------------------------------------------------ what the model is told
    def conversation(self, output: Sequence[Item] = ()) -> tuple[Conversation, Offered, dict[str, ServerFunction]]:
        """What the model sees behind `output`, and which of its functions are made here. Raises `InvalidRequest`."""
        offered, functions = self._offer()
        names = {(function.label, function.name): name for name, function in functions.items()}
        items = [*self._before, *self._items, *output]
        messages = messages_of(self._request.instructions, items, len(self._before), names)
        return conversation_of(self._request, messages, self._serving, offered), offered, functions

    def placeholders(self) -> Offered:
        """Instead of tools that are not known yet, one for each server: all checks of the request but theirs."""
        functions, places = self._own_functions()
        taken = {function.name for function in functions}
        by_label: dict[str, str] = {}
        for used in self._servers:
            name = _free(used.tool.server_label, used.tool.server_label, taken)
            by_label[used.tool.server_label] = name
            functions.append(_function(name, None, {"type": "object"}))
            places.append(used.place)
        choice = self._request.tool_choice
        if isinstance(choice, MixedChoice):
            found = []
            for entry in choice.entries:
                if isinstance(entry, ServerChoice) and entry.label not in by_label:
                    raise _no_tool(entry)
                found.append(by_label[entry.label] if isinstance(entry, ServerChoice) else entry)
            choice = ToolChoice(choice.mode, tuple(dict.fromkeys(found)))
        return Offered(functions, choice, places)

    def _offer(self) -> tuple[Offered, dict[str, ServerFunction]]:
        functions, places = self._own_functions()
        own = tuple(function.name for function in functions)
        taken = set(own)
        of_servers: dict[str, ServerFunction] = {}
        for used in self._servers:
            label = used.tool.server_label
            for tool in used.listed or ():
                if not used.tool.allows(dict(tool)):
                    continue
                name = _free(tool["name"], label, taken)
                if not _is_name(name):
                    logger.warning("MCP server %s: no function can have the name %r", label, name[:128])
                    continue
                functions.append(_function(name, _description(tool, used.tool), tool["input_schema"]))
                places.append(used.place)
                of_servers[name] = ServerFunction(label, tool["name"], used.tool.needs_approval(dict(tool)))
        choice = self._choice(own, of_servers)
        return Offered(functions, choice, places, may_call=self.has_called), of_servers

    def _own_functions(self) -> tuple[list[FunctionTool], list[int]]:
        found = [(tool, i) for i, tool in enumerate(self._request.tools or ()) if isinstance(tool, FunctionTool)]
        return [tool for tool, _ in found], [i for _, i in found]

    def _choice(self, own: tuple[str, ...], of_servers: Mapping[str, ServerFunction]) -> ToolChoice | None:
        asked = self._request.tool_choice
        choice = _resolved(asked, of_servers) if isinstance(asked, MixedChoice) else asked
        if not self.has_called and self._calls_left > 0:
            return choice
        # A call that was forced was made: the model would never come to its reply.
        names = choice.names if choice is not None and choice.mode != "named" else None
        if self._calls_left <= 0:
            names = tuple(name for name in own if names is None or name in names)
        knows_format = self._model.output.tool_format is not None
        if (choice is not None and choice.mode == "none") or names == () or not knows_format:
            return ToolChoice("none")
        return ToolChoice("auto", names)

    # ------------------------------------------------------------ calls
    async def made(self, builder: ResponseBuilder) -> AsyncGenerator[None, None]:
        """The model has said what it had to say: make the calls that it wants. Yields where there may be events."""
        self.next = None
        if not builder.end_round() or not builder.calls:
            return
        for item in list(builder.calls):
            await self._make(builder, item)
            yield
        if not builder.expects_caller:
            self.next = await self._next(builder)

    async def _make(self, builder: ResponseBuilder, item: MCPCallItem) -> None:
        self._calls_left -= 1
        output: str | None = None
        try:
            if self._calls_left < 0:
                raise MCPFailed("no call is left for this response", -32000)
            self.has_called = True
            [used] = [used for used in self._servers if used.tool.server_label == item.server_label]
            known = [tool for tool in used.listed or () if tool["name"] == item.name and used.tool.allows(dict(tool))]
            if not known:
                raise MCPFailed("the server has no such tool, or the request does not allow it", -32601)
            given = await used.session.call(item.name, _arguments(item.arguments))
            if given.is_error:
                content = [{"type": "text", "text": given.text}]
                error: MCPCallError | None = MCPCallError("mcp_tool_execution_error", content=content)
            else:
                output, error = given.text, None
        except MCPFailed as exc:
            error = MCPCallError(exc.kind, code=exc.code, message=exc.message)
        builder.end_call(item, output, error)

    # ------------------------------------------------------------ rounds
    async def checked(self, response_id: str, trace_headers: tuple[tuple[str, str], ...]) -> Prepared:
        """All of the request that can be checked before a server is asked. Raises as `ServedModel.prepare`."""
        self._response_id, self._trace_headers = response_id, trace_headers
        offered = self.placeholders()
        messages = messages_of(self._request.instructions, [*self._before, *self._items], len(self._before))
        return await self._prepared(conversation_of(self._request, messages, self._serving, offered), offered, {})

    async def _next(self, builder: ResponseBuilder) -> Prepared | None:
        """The next round; None where no token is left for one, which `builder` knows then."""
        request = self._request
        assert isinstance(request, ResponsesRequest)
        changes: dict[str, Any] = {}
        if request.max_output_tokens is not None:
            changes["max_tokens"] = request.max_output_tokens - builder.num_output_tokens
            if changes["max_tokens"] <= 0:
                builder.cut_off()
                return None
        if request.min_tokens is not None and builder.num_output_tokens:
            changes["min_tokens"] = 0
        conversation, offered, functions = self.conversation(msgspec.to_builtins(builder.response.output))
        ready = await self._prepared(conversation, offered, changes)
        builder.begin_round(functions)
        return ready

    async def _prepared(self, conversation: Conversation, offered: Offered, changes: dict[str, Any]) -> Prepared:
        request = self._request
        assert isinstance(request, ResponsesRequest)
        with own_place(offered):
            turn = turn_of(request, conversation, offered, self._model, self._response_id, self._trace_headers)
            assert isinstance(turn.sampling, Mapping)
            turn = replace(turn, sampling={**turn.sampling, **changes})
            return await prepared(self._model, turn, truncates=request.truncation == "auto")


def has_servers(request: ConversationFields) -> bool:
    return any(isinstance(tool, MCPTool) for tool in request.tools or ())


def approved_calls(before: Sequence[Item], items: Sequence[Item]) -> list[Approved]:
    """Those that the request's own items approve. Raises `InvalidRequest`."""
    together = [*before, *items]
    requests = {item["id"]: item for item in together if item["type"] == "mcp_approval_request"}
    done = {item.get("approval_request_id") for item in together if item["type"] == "mcp_call"}
    found: dict[str, Approved] = {}
    for i, item in enumerate(items):
        if item["type"] != "mcp_approval_response":
            continue
        request_id, param = item["approval_request_id"], f"input.{i}.approval_request_id"
        if request_id not in requests:
            raise InvalidRequest(f"There is no approval request with the id {request_id[:64]!r}.", param)
        if request_id in found:
            raise InvalidRequest(f"The approval request {request_id[:64]!r} is answered twice.", param)
        if item["approve"] and request_id not in done:
            found[request_id] = Approved(requests[request_id], param)
    return list(found.values())


def check_server_of(approved: Approved, labels: set[str]) -> None:
    """Raises `InvalidRequest` unless the request has the server whose call it approves."""
    label = approved.request["server_label"]
    if label not in labels:
        raise InvalidRequest(
            f"The call that is approved is one of the MCP server {label!r}, which is not among `tools`.", approved.param
        )


# ---------------------------------------------------------------- parts
def _session(tool: MCPTool, i: int, serving: Serving) -> MCPSession:
    """Raises `InvalidRequest`."""
    servers = serving.state.mcp
    server: MCPServer
    if tool.server_url is not None:
        server = servers.at(tool.server_label, tool.server_url, f"tools.{i}.server_url")
    elif tool.connector_id is not None:
        server = servers.named(tool.connector_id, f"tools.{i}.connector_id")
    else:
        server = servers.named(tool.server_label, f"tools.{i}.server_label")
    headers = tool.sent_headers
    if headers and server.command is not None:
        field = "authorization" if tool.headers is None else "headers"
        raise InvalidRequest("This MCP server is not asked over HTTP: it takes no headers.", f"tools.{i}.{field}")
    return MCPSession(server, servers, headers)


def _listed(label: str, items: Sequence[Item]) -> Sequence[Mapping[str, Any]] | None:
    """The tools that the newest list in the conversation has; None: there is none."""
    for item in reversed(items):
        if item["type"] == "mcp_list_tools" and item["server_label"] == label and item.get("error") is None:
            tools: Sequence[Mapping[str, Any]] = item["tools"]
            return distinct(tools)
    return None


def _function(name: str, description: str | None, parameters: dict[str, Any]) -> FunctionTool:
    return FunctionTool.model_construct(
        type="function", name=name, description=description, parameters=parameters, strict=False
    )


def _description(tool: Mapping[str, Any], server: MCPTool) -> str | None:
    told = [tool.get("description")]
    if server.server_description:
        told.append(f"({server.server_label}: {server.server_description})")
    return " ".join(text for text in told if text) or None


def _free(name: str, label: str, taken: set[str]) -> str:
    """A name that no other function has; it is taken then."""
    while name in taken:
        name = f"{label}__{name}"
    taken.add(name)
    return name


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except PydanticCustomError:
        return False
    return True


def _arguments(text: str) -> dict[str, Any]:
    """Raises `MCPFailed`."""
    try:
        value = msgspec.json.decode(text or "{}")  # takes no NaN and no half of a character, which no server could get
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise MCPFailed("the arguments are no JSON object", -32602)
    return value


def _resolved(choice: MixedChoice, of_servers: Mapping[str, ServerFunction]) -> ToolChoice:
    """Raises `InvalidRequest`."""
    names: list[str] = []
    for entry in choice.entries:
        if isinstance(entry, str):
            names.append(entry)
            continue
        found = [
            name
            for name, function in of_servers.items()
            if function.label == entry.label and entry.name in (None, function.name)
        ]
        if not found:
            raise _no_tool(entry)
        names += found
    is_one = choice.mode == "required" and len(names) == 1
    return ToolChoice("named" if is_one else choice.mode, tuple(dict.fromkeys(names)))


def _no_tool(entry: ServerChoice) -> InvalidRequest:
    what = "that tool" if entry.name is not None else "any tool that is allowed"
    return InvalidRequest(f"No MCP server {entry.label[:64]!r} among `tools` has {what}.", "tool_choice")
