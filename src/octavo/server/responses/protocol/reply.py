"""Replies of the Responses and Conversations APIs: items, responses, lists, and the events of a stream."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from octavo.server.openai.protocol.chat import ContentLogprob


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[ContentLogprob] | UnsetType = UNSET  # with `include`


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    text: str


Part = OutputText | ReasoningText


class MessageItem(msgspec.Struct, tag_field="type", tag="message"):
    id: str
    status: str
    content: list[OutputText]
    role: str = "assistant"


class ReasoningItem(msgspec.Struct, tag_field="type", tag="reasoning"):
    """`summary` is always empty: the text itself is in `content`."""

    id: str
    status: str
    content: list[ReasoningText]
    summary: list[Any] = []
    encrypted_content: str | UnsetType = UNSET  # with `include`


class CallItem(msgspec.Struct, tag_field="type", tag="function_call"):
    id: str
    status: str
    call_id: str
    name: str
    arguments: str


class MCPTool(msgspec.Struct):
    """A tool of an MCP server."""

    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    annotations: dict[str, Any] | None = None


class MCPListItem(msgspec.Struct, tag_field="type", tag="mcp_list_tools"):
    """All tools of an MCP server. `error`: why there are none."""

    id: str
    server_label: str
    tools: list[MCPTool]
    error: str | None = None


class MCPCallError(msgspec.Struct, omit_defaults=True):
    """`mcp_tool_execution_error` has a `content`; `mcp_protocol_error` and `http_error` a `code` and a `message`."""

    type: str
    content: list[Any] | UnsetType = UNSET
    code: int | UnsetType = UNSET
    message: str | UnsetType = UNSET


class MCPCallItem(msgspec.Struct, tag_field="type", tag="mcp_call"):
    """`status`: in_progress, calling, completed, incomplete or failed."""

    id: str
    status: str
    server_label: str
    name: str
    arguments: str = ""
    approval_request_id: str | None = None
    output: str | None = None
    error: MCPCallError | None = None


class MCPApprovalItem(msgspec.Struct, tag_field="type", tag="mcp_approval_request"):
    id: str
    server_label: str
    name: str
    arguments: str


OutputItem = MessageItem | ReasoningItem | CallItem | MCPListItem | MCPCallItem | MCPApprovalItem


class ResponseError(msgspec.Struct):
    code: str
    message: str


class IncompleteDetails(msgspec.Struct):
    reason: str


class InputTokensDetails(msgspec.Struct):
    cached_tokens: int
    cache_write_tokens: int  # computed, and written to the cache


class OutputTokensDetails(msgspec.Struct):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ConversationRef(msgspec.Struct):
    id: str


class ReasoningSettings(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None


class Response(msgspec.Struct, kw_only=True):
    """`status`: queued, in_progress, completed, incomplete, failed or cancelled."""

    id: str
    object: str = "response"
    created_at: int
    status: str
    background: bool = False
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    conversation: ConversationRef | None = None
    prompt_cache_key: str | None = None
    reasoning: ReasoningSettings = msgspec.field(default_factory=ReasoningSettings)
    safety_identifier: str | None = None
    service_tier: str = "default"
    store: bool = True
    temperature: float | None = None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any] = "auto"
    tools: list[dict[str, Any]] = []
    top_logprobs: int = 0
    top_p: float | None = None
    truncation: str = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None
    metadata: dict[str, str] = {}


class Event(msgspec.Struct, kw_only=True):
    """An event of a stream; which fields there are depends on its type."""

    type: str
    sequence_number: int
    response: Response | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    item: OutputItem | UnsetType = UNSET
    part: Part | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    logprobs: list[ContentLogprob] | UnsetType = UNSET


class Deleted(msgspec.Struct):
    id: str
    object: str
    deleted: bool = True


class ItemList(msgspec.Struct):
    data: list[dict[str, Any]]
    first_id: str  # "" where there is none
    last_id: str
    has_more: bool
    object: str = "list"


class ConversationReply(msgspec.Struct):
    id: str
    created_at: int
    metadata: dict[str, str]
    object: str = "conversation"
