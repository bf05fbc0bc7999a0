"""Each parameter that the packages of OpenAI's and Anthropic's clients have, by their types: it works, it is refused by
its name, or, where the reply is the same without it, the reply's header names it. Those of objects within are known
too, or named. A parameter that a later package brings fails here until somebody decides."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
from anthropic.types import beta
from anthropic.types.beta import message_count_tokens_params as beta_count
from anthropic.types.beta import message_create_params as beta_messages
from anthropic.types.message_create_params import MessageCreateParamsBase
from openai.types import responses as openai_types
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams
from openai.types.responses import response_input_item_param as input_item
from openai.types.responses import tool_param
from openai.types.responses.input_token_count_params import InputTokenCountParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase, StreamOptions
from openai.types.shared_params import Reasoning

from octavo.base.params import GenerateRequest
from octavo.server.anthropic import protocol as messages
from octavo.server.openai.protocol.model import WireModel
from octavo.server.responses.protocol import items, mcp
from octavo.server.responses.protocol import request as responses
from octavo.wire.messages import TokenLogprobs
from support.server_fakes import MODEL, Reply, Server, answer, make_server, with_logprobs

IGNORED = "x-octavo-ignored-fields"
WORKS, REFUSED, NAMED = "works", "refused", "named"
Row = tuple[Any, str]

FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
SCORES = TokenLogprobs(-0.5, 1, [72, 105], [-0.5, -1.0])
USER = [{"role": "user", "content": "Hello"}]

RESPONSES: dict[str, Row] = {
    "access_programs": ({"cyber": "standard"}, REFUSED),
    "background": (True, WORKS),
    "background_options": ({"completion_window": "2h"}, REFUSED),
    "context_management": ([{"type": "compaction", "compact_threshold": 1000}], REFUSED),
    "conversation": ("conv_1", WORKS),
    "image": ({"context_compression": "enabled"}, REFUSED),
    "include": (["message.output_text.logprobs", "reasoning.encrypted_content"], WORKS),
    "input": ([{"role": "user", "content": "Hello"}], WORKS),
    "instructions": ("Be brief.", WORKS),
    "max_output_tokens": (5, WORKS),
    "max_tool_calls": (1, WORKS),
    "metadata": ({"a": "b"}, WORKS),
    "model": (MODEL, WORKS),
    "moderation": ({"model": "omni"}, REFUSED),
    "parallel_tool_calls": (False, WORKS),
    "previous_response_id": ("resp_1", WORKS),
    "prompt": ({"id": "pmpt_1"}, REFUSED),
    "prompt_cache_key": ("k", WORKS),
    "prompt_cache_options": ({"prewarm": True}, REFUSED),
    "prompt_cache_retention": ("24h", REFUSED),
    "reasoning": ({"effort": "low", "context": "auto", "mode": "standard"}, WORKS),
    "safety_identifier": ("s", WORKS),
    "service_tier": ("ultrafast", NAMED),
    "store": (False, WORKS),
    "stream_options": ({"include_obfuscation": False}, WORKS),
    "temperature": (0.5, WORKS),
    "text": ({"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}, "verbosity": "low"}, WORKS),
    "tool_choice": ("auto", WORKS),
    "tools": ([{"type": "function", **FUNCTION, "strict": False}], WORKS),
    "top_logprobs": (2, WORKS),
    "top_p": (0.5, WORKS),
    "truncation": ("auto", WORKS),
    "user": ("u", WORKS),
}  # fmt: skip
INPUT_TOKENS = {
    name: RESPONSES[name]
    for name in (
        "conversation", "input", "instructions", "model", "parallel_tool_calls", "previous_response_id", "reasoning",
        "text", "tool_choice", "tools", "truncation",
    )
} | {"personality": ("friendly", NAMED)}  # fmt: skip
CHAT: dict[str, Row] = {
    "audio": ({"format": "wav", "voice": "alloy"}, REFUSED),
    "frequency_penalty": (0.5, WORKS),
    "function_call": ({"name": "f"}, REFUSED),
    "functions": ([FUNCTION], REFUSED),
    "logit_bias": ({"5": 1}, WORKS),
    "logprobs": (True, WORKS),
    "max_completion_tokens": (5, WORKS),
    "max_tokens": (5, WORKS),
    "messages": (USER, WORKS),
    "metadata": ({"a": "b"}, WORKS),
    "modalities": (["text", "audio"], REFUSED),
    "model": (MODEL, WORKS),
    "moderation": ({"model": "omni"}, REFUSED),
    "n": (2, WORKS),
    "parallel_tool_calls": (False, WORKS),
    "prediction": ({"type": "content", "content": "a"}, REFUSED),
    "presence_penalty": (0.5, WORKS),
    "prompt_cache_key": ("k", WORKS),
    "prompt_cache_options": ({"mode": "implicit"}, NAMED),
    "prompt_cache_retention": ("24h", NAMED),
    "reasoning_effort": ("low", WORKS),
    "response_format": ({"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}, WORKS),
    "safety_identifier": ("s", WORKS),
    "seed": (1, WORKS),
    "service_tier": ("flex", NAMED),
    "stop": (["x"], WORKS),
    "store": (True, NAMED),
    "stream_options": (None, WORKS),
    "temperature": (0.5, WORKS),
    "tool_choice": ("auto", WORKS),
    "tools": ([{"type": "function", "function": FUNCTION}], WORKS),
    "top_logprobs": (2, WORKS),
    "top_p": (0.5, WORKS),
    "user": ("u", WORKS),
    "verbosity": ("low", WORKS),
    "web_search_options": ({}, REFUSED),
}
COMPLETIONS = {name: CHAT[name] for name in get_type_hints(CompletionParams) if name in CHAT} | {
    "best_of": (2, WORKS),
    "echo": (True, WORKS),
    "logprobs": (2, WORKS),
    "prompt": ("Hello", WORKS),
    "suffix": ("!", WORKS),
}
MESSAGES: dict[str, Row] = {
    "cache_control": ({"type": "ephemeral", "ttl": "1h"}, WORKS),
    "container": ("container_1", REFUSED),
    "diagnostics": ({"previous_message_id": None}, NAMED),
    "inference_geo": ("us", REFUSED),
    "max_tokens": (5, WORKS),
    "messages": (USER, WORKS),
    "metadata": ({"user_id": "u"}, WORKS),
    "model": (MODEL, WORKS),
    "output_config": ({"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}}, WORKS),
    "service_tier": ("standard_only", WORKS),
    "speed": ("fast", REFUSED),
    "stop_sequences": (["x"], WORKS),
    "system": ([{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}], WORKS),
    "temperature": (0.5, WORKS),
    "thinking": ({"type": "enabled", "budget_tokens": 1024, "display": "summarized"}, WORKS),
    "tool_choice": ({"type": "auto", "disable_parallel_tool_use": True}, WORKS),
    "tools": ([{"name": "f", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}], WORKS),
    "top_k": (5, WORKS),
    "top_p": (0.5, WORKS),
    "user_profile_id": ("p", NAMED),
    "workspace_id": ("w", NAMED),
}
BETA: dict[str, Row] = MESSAGES | {
    "billing_policy": ({"type": "billing_policy", "bill_to": "self"}, NAMED),
    "compaction": ({"type": "summarize"}, REFUSED),
    # Of edits that are not made the conversation is longer, and the text the one of a server without them.
    "context_management": ({"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}, NAMED),
    "fallback_credit_token": ("t", NAMED),
    "fallbacks": ([{"model": "other"}], NAMED),
    "mcp_servers": ([{"type": "url", "name": "a", "url": "http://localhost"}], REFUSED),
    "thread": ({"type": "create"}, REFUSED),
}
COUNT = {name: BETA[name] for name in get_type_hints(beta_count.MessageCountTokensParams) if name in BETA}
#: Route -> the published types, what they are sent beside, and the parameters.
ROUTES: dict[str, tuple[tuple[Any, ...], dict[str, Any], dict[str, Row]]] = {
    "/v1/responses": ((ResponseCreateParamsBase,), {"input": "Hello"}, RESPONSES),
    "/v1/responses/input_tokens": ((InputTokenCountParams,), {"input": "Hello"}, INPUT_TOKENS),
    "/v1/chat/completions": ((ChatParams,), {"messages": USER}, CHAT),
    "/v1/completions": ((CompletionParams,), {"prompt": "Hello"}, COMPLETIONS),
    "/v1/messages": (
        (MessageCreateParamsBase, beta_messages.MessageCreateParamsBase),
        {"model": MODEL, "max_tokens": 9, "messages": USER},
        BETA,
    ),
    "/v1/messages/count_tokens": ((beta_count.MessageCountTokensParams,), {"model": MODEL, "messages": USER}, COUNT),
}
#: Parameters that a package sends otherwise: `betas` is a header.
_ELSEWHERE = {"betas"}


@pytest.mark.parametrize("route", ROUTES)
def test_the_tables_have_all_published_parameters(route: str) -> None:
    types, _, rows = ROUTES[route]
    published = set().union(*(get_type_hints(each) for each in types)) - _ELSEWHERE
    assert set(rows) >= published
    # The types leave out what newer models do not take; the methods have it.
    assert set(rows) - published <= {"temperature", "top_p", "top_k"}


@pytest.fixture(scope="module")
def server() -> Server:
    def script(request: GenerateRequest) -> Any:
        deltas = answer("Hi", n=request.params.n)
        return deltas if request.params.logprobs is None else with_logprobs(deltas, [SCORES, SCORES])

    server = make_server(script, tools="hermes", reasoning="qwen3", enable_auto_tool_choice=True)
    server.renderer.template_variables = frozenset({"enable_thinking", "reasoning_effort", "verbosity"})
    server.renderer.can_infill = True
    return server


def sent(server: Server, route: str, name: str) -> Reply:
    """The reply to a request with that parameter, and what it needs beside it."""
    _, base, rows = ROUTES[route]
    body = base | {name: rows[name][0]}
    if name == "top_logprobs":
        body |= {"include": ["message.output_text.logprobs"]} if "include" in rows else {"logprobs": True}
    elif name == "tool_choice":
        body["tools"] = rows["tools"][0]
    elif name == "stream_options":
        body["stream"] = True
    elif name == "conversation":
        body[name] = server.post("/v1/conversations", {}).json()["id"]
    elif name == "previous_response_id":
        body[name] = server.post("/v1/responses", {"input": "Hello"}).json()["id"]
    return server.post(route, body)


CASES = [(route, name) for route, (_, _, rows) in ROUTES.items() for name in rows]


@pytest.mark.parametrize(("route", "name"), CASES)
def test_a_published_parameter_works_or_is_named(server: Server, route: str, name: str) -> None:
    expected = ROUTES[route][2][name][1]
    reply = sent(server, route, name)
    if expected == REFUSED:
        assert reply.status == 400
        body = reply.json()["error"]
        assert name in (body.get("param") or body["message"] + str(body.get("details")))
        return
    assert reply.status == 200, reply.body
    assert reply.headers.get(IGNORED) == (name if expected == NAMED else None)


# ------------------------------------------------------------------------------------------------ within
#: What the published types of objects within have, and octavo's have not: the reply's header names it.
WITHIN: list[tuple[type[WireModel], Any, set[str]]] = [
    (responses.FunctionTool, openai_types.FunctionToolParam, {"output_schema"}),
    (responses.ReasoningOptions, Reasoning, set()),
    (responses.TextFormat, openai_types.ResponseFormatTextJSONSchemaConfigParam, set()),
    (responses.TextOptions, openai_types.ResponseTextConfigParam, set()),
    (responses.StreamOptions, StreamOptions, set()),
    (items.MessageInput, openai_types.EasyInputMessageParam, {"phase"}),
    (items.MessageInput, openai_types.ResponseOutputMessageParam, {"phase"}),
    (items.CallInput, openai_types.ResponseFunctionToolCallParam, {"async", "caller", "namespace"}),
    (items.CallOutputInput, input_item.FunctionCallOutput, {"caller", "name", "namespace"}),
    (items.ReasoningInput, openai_types.ResponseReasoningItemParam, set()),
    (mcp.MCPTool, tool_param.Mcp, set()),
    (mcp.MCPCallInput, input_item.McpCall, set()),
    (mcp.MCPListInput, input_item.McpListTools, set()),
    (mcp.ApprovalRequestInput, input_item.McpApprovalRequest, set()),
    (mcp.ApprovalResponseInput, input_item.McpApprovalResponse, set()),
    (messages.ToolParam, beta.BetaToolParam, {"defer_loading", "input_examples"}),
    (messages.TextBlock, beta.BetaTextBlockParam, set()),
    (messages.ThinkingBlock, beta.BetaThinkingBlockParam, set()),
    (messages.RedactedThinkingBlock, beta.BetaRedactedThinkingBlockParam, set()),
    (messages.ToolUseBlock, beta.BetaToolUseBlockParam, {"toolset_name"}),
    (messages.ToolResultBlock, beta.BetaToolResultBlockParam, {"toolset_name"}),
    (messages.MediaBlock, beta.BetaImageBlockParam, {"transformations"}),
    (messages.MediaBlock, beta.BetaRequestDocumentBlockParam, set()),
    (messages.Thinking, beta.BetaThinkingConfigEnabledParam, {"block_binding"}),
    (messages.OutputConfig, beta.BetaOutputConfigParam, {"task_budget"}),
    (messages.Metadata, beta.BetaMetadataParam, set()),
]


@pytest.mark.parametrize(("model", "published", "named"), WITHIN, ids=lambda each: getattr(each, "__name__", ""))
def test_what_published_objects_have_is_known(model: type[WireModel], published: Any, named: set[str]) -> None:
    known = {field.alias or name for name, field in model.model_fields.items()}
    assert set(get_type_hints(published)) - known == named


def test_what_objects_within_have_besides_is_named_or_with_strict_requests_refused(server: Server) -> None:
    tool = {"type": "function", **FUNCTION, "output_schema": {"type": "object"}}
    said = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi", "phase": "commentary", "other": None},
    ]
    body = {"input": [*said, said[0], said[1], said[0]], "tools": [tool], "text": {"frobnicate": 1}}
    reply = server.post("/v1/responses", body)
    assert reply.headers[IGNORED] == "input.phase, text.frobnicate, tools.output_schema"
    refused = make_server(strict_requests=True, tools="hermes", enable_auto_tool_choice=True).post(
        "/v1/responses", body
    )
    assert (refused.status, refused.error["param"]) == (400, "input.phase")
    body = {"model": MODEL, "max_tokens": 9, "messages": USER, "output_config": {"task_budget": {"total": 9}}}
    assert server.post("/v1/messages", body).headers[IGNORED] == "output_config.task_budget"
    # Further fields of a message are the template's.
    body = {"messages": [{**USER[0], "own": 1}], "stream_options": {"frobnicate": True}, "stream": True}
    assert server.post("/v1/chat/completions", body).headers[IGNORED] == "stream_options.frobnicate"
