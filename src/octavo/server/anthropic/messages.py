"""POST /v1/messages and /v1/messages/count_tokens: from the body to a turn. `reply` encodes the reply."""

from __future__ import annotations

from typing import Final, TypeVar

from octavo.base.errors import InvalidRequest
from octavo.base.params import GrammarSpec
from octavo.served.model import ServedModel
from octavo.served.turn import ChoiceMode, Function, ReplyWishes, ToolChoice, Turn
from octavo.server.anthropic.conversation import conversation_of, unheard
from octavo.server.anthropic.errors import EVENTS, ThreadsNotServed
from octavo.server.anthropic.protocol import (
    REFUSALS,
    ConversationFields,
    CountReply,
    CountRequest,
    MessagesRequest,
)
from octavo.server.anthropic.reply import MessageEncoder
from octavo.server.http.exchange import Exchange
from octavo.server.openai.serving import Serving
from octavo.text.grammars.grammar import spec_of_schema

R = TypeVar("R", bound=ConversationFields)

_MODES: Final[dict[str, ChoiceMode]] = {"auto": "auto", "any": "required", "tool": "named", "none": "none"}
#: What this API calls our fields.
_NAMES: Final = {
    "stop": "stop_sequences",
    "tools.*.function.parameters": "tools.*.input_schema",
    "tools.*.function.name": "tools.*.name",
    "thinking_token_budget": "thinking.budget_tokens",
}


class MessagesHandler:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, exchange: Exchange) -> None:
        serving = self._serving
        note_request_id(exchange)
        serving.state.check_available()
        request = await _read(serving, exchange, MessagesRequest)
        lease = serving.state.models.resolve(request.model)
        note_unheard(serving, lease.model, exchange, request)
        turn = self._turn(request, lease.model, exchange)
        async with exchange.cancelled_on_disconnect():
            prepared = await lease.model.prepare(turn)
            encoder = MessageEncoder(lease, request, prepared)
            streams = bool(request.stream)
            await serving.send(exchange, lease.model, prepared, encoder, streams=streams, framing=EVENTS)

    def _turn(self, request: MessagesRequest, model: ServedModel, exchange: Exchange) -> Turn:
        given = {"temperature": request.temperature, "top_p": request.top_p, "top_k": request.top_k}
        sampling = {name: value for name, value in given.items() if value is not None}
        return Turn(
            request_id=f"msg_{exchange.scope['octavo.request_id']}",
            prompts=[conversation_of(request, self._serving.state.config)],
            sampling=sampling | {"stop": tuple(request.stop_sequences or ())},
            # A bound and not a demand: agents always ask for as much as their own models can write.
            default_max_tokens=request.max_tokens,
            prompt_param="messages",
            constraint=_constraint(request, model),
            wishes=_wishes(request, model),
            is_whole=not request.stream,
            trace_headers=self._serving.trace_headers(exchange),
            names=_NAMES,
        )


class CountHandler:
    """Needs no engine: it answers while that is down or drains."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, exchange: Exchange) -> None:
        serving = self._serving
        note_request_id(exchange)
        request = await _read(serving, exchange, CountRequest)
        model = serving.state.models.resolve(request.model).model
        await model.adapter_ready()
        note_unheard(serving, model, exchange, request)
        [prompt] = await model.prompts.made([conversation_of(request, serving.state.config)], "messages")
        await exchange.send_json(CountReply(model.num_virtual_tokens + len(prompt.ids)))


async def _read(serving: Serving, exchange: Exchange, model: type[R]) -> R:
    _, request = await serving.read(exchange, model, REFUSALS)
    if request.thread is not None:
        raise ThreadsNotServed
    return request


def note_request_id(exchange: Exchange) -> None:
    """The id is in a header of Anthropic's name too, which its clients show."""
    exchange.extra_headers.append((b"request-id", exchange.scope["octavo.request_id"].encode()))


def note_unheard(serving: Serving, model: ServedModel, exchange: Exchange, request: ConversationFields) -> None:
    """Name in the reply's header what the request asks of the thinking and the model cannot heed: agents ask every
    model the same."""
    names = unheard(request, model.renderer.template_variables)
    if request.thinking is not None and request.thinking.budget_tokens and model.output.reasoning_format is None:
        names.append("thinking.budget_tokens")
    if names and serving.state.config.strict_requests:
        raise InvalidRequest(f"This model does not heed `{names[0]}`.", names[0])
    if names:
        serving.note_ignored(exchange, names)


def _constraint(request: MessagesRequest, model: ServedModel) -> GrammarSpec | None:
    """What the text of the reply is held to: nothing where it is calls only."""
    config = request.output_config
    newer = None if config is None else config.format
    if newer is not None and request.output_format is not None:
        raise InvalidRequest("`output_format` is the older name of `output_config.format`; give one.", "output_format")
    given, param = request.output_format, "output_format.schema"
    if newer is not None:
        given, param = newer, "output_config.format.schema"
    if given is None:
        return None
    spec = spec_of_schema(given.schema_, param, model.grammar_limits)
    choice = _choice(request)
    return None if choice is not None and choice.forces_calls else spec


def _wishes(request: MessagesRequest, model: ServedModel) -> ReplyWishes:
    choice, thinking = request.tool_choice, request.thinking
    budget = None
    if thinking is not None and thinking.type == "enabled" and model.output.reasoning_format is not None:
        budget = thinking.budget_tokens
    return ReplyWishes(
        functions=[Function(tool.name, tool.input_schema, bool(tool.strict)) for tool in request.tools or ()],
        choice=_choice(request),
        parallel_calls=not (choice is not None and choice.disable_parallel_tool_use),
        thinking_budget=budget,
        call_prefix="toolu_",
        may_call=True,
    )


def _choice(request: MessagesRequest) -> ToolChoice | None:
    choice = request.tool_choice
    if choice is None:
        return None
    if (choice.type == "tool") != (choice.name is not None):
        raise InvalidRequest("A `tool_choice` of the type `tool`, and no other, has a `name`.", "tool_choice.name")
    return ToolChoice(_MODES[choice.type], None if choice.name is None else (choice.name,))
