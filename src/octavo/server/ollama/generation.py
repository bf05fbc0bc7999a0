"""POST /api/chat and /api/generate: from the body to a turn. `reply` encodes the reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo.base.errors import InvalidRequest
from octavo.base.params import GrammarSpec
from octavo.served.model import ServedModel
from octavo.served.models import Lease
from octavo.served.turn import Continuation, Conversation, ReplyWishes, Turn
from octavo.server.http.exchange import Exchange
from octavo.server.ollama.conversation import (
    NAMES,
    chat_of,
    check_think,
    max_tokens_of,
    prompt_of,
    sampling_of,
    unheard,
)
from octavo.server.ollama.errors import LINES
from octavo.server.ollama.models import resolve
from octavo.server.ollama.protocol import (
    GENERATE_REFUSALS,
    OllamaChatRequest,
    OllamaFields,
    OllamaGenerateRequest,
    Options,
)
from octavo.server.ollama.reply import LineEncoder, MakeReply, chat_reply, generate_reply, now
from octavo.server.openai.protocol.tools import ToolDefinition
from octavo.server.openai.serving import Serving
from octavo.text.grammars.grammar import ANY_OBJECT, spec_of_schema

#: Ollama's own ids of calls begin so.
_CALL_PREFIX = "call_"


class GenerationHandlers:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def chat(self, exchange: Exchange) -> None:
        _, request = await self._serving.read(exchange, OllamaChatRequest, {}, any_type=True)
        lease = self._began(exchange, request)
        if not request.messages:
            await self._loaded(exchange, lease, chat_reply)
            return
        tools = request.tools or ()
        await self._answer(exchange, request, lease, chat_of(request), "messages", tools, chat_reply)

    async def generate(self, exchange: Exchange) -> None:
        _, request = await self._serving.read(exchange, OllamaGenerateRequest, GENERATE_REFUSALS, any_type=True)
        lease = self._began(exchange, request)
        if not request.prompt and not request.suffix:
            await self._loaded(exchange, lease, generate_reply)
            return
        await self._answer(exchange, request, lease, prompt_of(request), "prompt", (), generate_reply)

    def _began(self, exchange: Exchange, request: OllamaFields) -> Lease:
        self._serving.state.check_available()
        lease = resolve(self._serving.state.models, request.model)
        check_think(request, lease.model)
        if names := unheard(request):
            if self._serving.state.config.strict_requests:
                raise InvalidRequest(f"`{names[0]}` has no effect here.", names[0])
            self._serving.note_ignored(exchange, names)
        return lease

    async def _loaded(self, exchange: Exchange, lease: Lease, make: MakeReply) -> None:
        """A request without a prompt only wants the model to be there."""
        fields: dict[str, Any] = {"model": lease.name, "created_at": now(), "done": True, "done_reason": "load"}
        await exchange.send_json(make("", "", [], fields))

    async def _answer(
        self,
        exchange: Exchange,
        request: OllamaFields,
        lease: Lease,
        prompt: Conversation | Continuation,
        param: str,
        tools: Sequence[ToolDefinition],
        make: MakeReply,
    ) -> None:
        model = lease.model
        options = request.options or Options()
        if request.top_logprobs and not request.logprobs:
            raise InvalidRequest("`top_logprobs` needs `logprobs` to be true.", "top_logprobs")
        top = request.top_logprobs or 0
        streams = request.stream is not False
        wishes = ReplyWishes(
            functions=[tool.for_turn() for tool in tools],
            include_reasoning=request.think is not False,
            call_prefix=_CALL_PREFIX,
            may_call=True,
        )
        turn = Turn(
            request_id=f"ollama-{exchange.scope['octavo.request_id']}",
            prompts=[prompt],
            sampling=sampling_of(options, model) | {"logprobs": top if request.logprobs else None},
            default_max_tokens=max_tokens_of(options),
            prompt_param=param,
            constraint=_constraint(request, model),
            wishes=wishes if isinstance(prompt, Conversation) else None,
            is_whole=not streams,
            trace_headers=self._serving.trace_headers(exchange),
            names=NAMES | {"logprobs": "top_logprobs"},
        )
        async with exchange.cancelled_on_disconnect():
            prepared = await model.prepare(turn)
            encoder = LineEncoder(make, lease.name, self._serving.names(model), top)
            await self._serving.send(exchange, model, prepared, encoder, streams=streams, framing=LINES)


def _constraint(request: OllamaFields, model: ServedModel) -> GrammarSpec | None:
    wanted = request.format
    if not isinstance(wanted, dict) and wanted not in (None, "", "json"):
        raise InvalidRequest('`format` should be "json" or a JSON schema.', "format")
    if wanted is None or wanted == "":
        return None
    return spec_of_schema(ANY_OBJECT if wanted == "json" else wanted, "format", model.grammar_limits)
