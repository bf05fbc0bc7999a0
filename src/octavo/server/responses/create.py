"""POST /v1/responses and /v1/responses/input_tokens."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Any

from octavo.base.errors import InvalidRequest
from octavo.served.model import Prepared, ServedModel
from octavo.served.models import Lease
from octavo.served.turn import ToolChoice
from octavo.server.http.exchange import Exchange
from octavo.server.openai.protocol.tokenize import InputTokens
from octavo.server.openai.serving import Serving
from octavo.server.responses.decoding import (
    conversation_of,
    note_unheard,
    offered_of,
    own_place,
    prepared,
    turn_of,
)
from octavo.server.responses.events import send_events
from octavo.server.responses.history import history_of, kept_items
from octavo.server.responses.messages import messages_of
from octavo.server.responses.output import ResponseBuilder
from octavo.server.responses.protocol.items import as_items, new_id
from octavo.server.responses.protocol.reply import ConversationRef, ReasoningSettings, Response
from octavo.server.responses.protocol.request import (
    ENCRYPTED,
    REFUSALS,
    InputTokensRequest,
    MixedChoice,
    ResponsesRequest,
    ServerChoice,
)
from octavo.server.responses.rounds import Rounds, approved_calls, check_server_of, has_servers
from octavo.server.responses.runs import Making


class CreateHandler:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, exchange: Exchange) -> None:
        serving, state = self._serving, self._serving.state
        state.check_available()
        _, request = await serving.read(exchange, ResponsesRequest, REFUSALS)
        if request.background and not request.keeps:
            raise InvalidRequest("`background` needs `store`: there is no other way to the response.", "background")
        lease = state.models.resolve(request.model)
        note_unheard(serving, lease.model, exchange, request)
        async with exchange.cancelled_on_disconnect():
            making = await self._making(exchange, request, lease)
            if request.background:
                run = await state.runs.start(making)
                if not request.stream:
                    await exchange.send_json(making.builder.response)
                    return
                events = run.follow(0)
            else:
                events = making.pieces()
            async with aclosing(events):
                if request.stream:
                    await send_events(exchange, events, state.config.sse_keep_alive_interval)
                    return
                async for _ in events:
                    pass
            # With its status, after which clients know whether to ask again; but then calls would be made again.
            if making.failure is not None and not making.has_called:
                raise making.failure
            await exchange.send_json(making.builder.response)

    async def _making(self, exchange: Exchange, request: ResponsesRequest, lease: Lease) -> Making:
        serving, state, owner = self._serving, self._serving.state, exchange.owner
        items = await kept_items(as_items(request.input), owner, state.store, "input")
        before = await history_of(request, owner, state.store)
        response_id, trace_headers = new_id("resp"), serving.trace_headers(exchange)
        rounds: Rounds | None = None
        if has_servers(request):
            rounds = Rounds(request, serving, lease.model, before, items)
            ready = await rounds.checked(response_id, trace_headers)
        else:
            for approved in approved_calls(before, items):
                check_server_of(approved, set())
            messages = messages_of(request.instructions, [*before, *items], len(before))
            offered = offered_of(request)
            conversation = conversation_of(request, messages, serving, offered)
            with own_place(offered):
                turn = turn_of(request, conversation, offered, lease.model, response_id, trace_headers)
                ready = await prepared(lease.model, turn, truncates=request.truncation == "auto")
        response = _response(request, response_id, lease.name, ready)
        has_events = bool(request.stream or request.background)
        return Making(
            model=lease.model,
            prepared=ready,
            builder=ResponseBuilder(
                response,
                serving.names(lease.model),
                ready.params.logprobs,
                has_events=has_events,
                has_encrypted=ENCRYPTED in (request.include or ()),
            ),
            store=state.store,
            owner=owner,
            input_items=items,
            interval=state.config.stream_interval if has_events else 1,
            rounds=rounds,
        )


class InputTokensHandler:
    """Counts what a prompt would have. Needs no engine."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, exchange: Exchange) -> None:
        serving, state = self._serving, self._serving.state
        _, request = await serving.read(exchange, InputTokensRequest, REFUSALS)
        model: ServedModel = state.models.resolve(request.model).model
        await model.adapter_ready()
        note_unheard(serving, model, exchange, request)
        items = await kept_items(as_items(request.input), exchange.owner, state.store, "input")
        before = await history_of(request, exchange.owner, state.store)
        rounds = Rounds(request, serving, model, before, items)
        try:
            await rounds.list_all()
            conversation, offered, _ = rounds.conversation()
        finally:
            rounds.close()
        with own_place(offered):
            [prompt] = await model.prompts.made([conversation], "input")
        await exchange.send_json(InputTokens(model.num_virtual_tokens + len(prompt.ids)))


def _response(request: ResponsesRequest, response_id: str, model: str, ready: Prepared) -> Response:
    """The response before anything is made: what was asked, with the defaults that count."""
    reasoning, text = request.reasoning, request.text
    text_format = text.format if text is not None and text.format is not None else None
    shown = {"type": "text"} if text_format is None else text_format.model_dump(exclude_none=True, by_alias=True)
    params = ready.params
    return Response(
        id=response_id,
        created_at=int(time.time()),
        status="queued" if request.background else "in_progress",
        background=bool(request.background),
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        model=model,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        conversation=None if request.conversation_id is None else ConversationRef(request.conversation_id),
        prompt_cache_key=request.prompt_cache_key,
        reasoning=ReasoningSettings() if reasoning is None else ReasoningSettings(reasoning.effort, reasoning.summary),
        safety_identifier=request.safety_identifier,
        store=request.keeps,
        temperature=params.temperature,
        text={"format": shown, "verbosity": text.verbosity if text is not None else None},
        tool_choice=_shown_choice(request.tool_choice),
        tools=[tool.shown() for tool in request.tools or ()],
        top_logprobs=request.top_logprobs or 0,
        top_p=params.top_p,
        truncation=request.truncation or "disabled",
        user=request.user,
        metadata=request.metadata or {},
    )


def _shown_choice(choice: ToolChoice | MixedChoice | None) -> str | dict[str, Any]:
    if choice is None:
        return "auto"
    if isinstance(choice, MixedChoice):
        entries = [_shown_entry(entry) for entry in choice.entries]
        is_one = choice.mode == "required" and len(entries) == 1
        return entries[0] if is_one else {"type": "allowed_tools", "mode": choice.mode, "tools": entries}
    if choice.names is None:
        return choice.mode
    if choice.mode == "named":
        return {"type": "function", "name": choice.names[0]}
    tools = [{"type": "function", "name": name} for name in choice.names]
    return {"type": "allowed_tools", "mode": choice.mode, "tools": tools}


def _shown_entry(entry: str | ServerChoice) -> dict[str, Any]:
    if isinstance(entry, str):
        return {"type": "function", "name": entry}
    named = {} if entry.name is None else {"name": entry.name}
    return {"type": "mcp", "server_label": entry.label, **named}
