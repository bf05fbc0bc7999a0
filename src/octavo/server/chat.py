"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import aclosing
from typing import Any

from octavo.errors import InvalidRequest
from octavo.params import GrammarSpec, SamplingParams
from octavo.server.chat_output import OutputReading
from octavo.server.chat_reply import ChatReplyWriter
from octavo.server.conversation import note_unheard, render_chat
from octavo.server.exchange import Exchange
from octavo.server.output_plan import OutputPlan, arguments_spec, plan_output
from octavo.server.protocol.chat import CHAT_REFUSALS, ChatRequest
from octavo.server.protocol.conversation import check_prompt_options
from octavo.server.serving import Serving, renamed, reply_id, send_whole

#: Tokens at the end of a prompt in which its last mark is looked for.
_TAIL_TOKENS = 32


class ChatHandler:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, exchange: Exchange) -> None:
        serving = self._serving
        serving.state.check_available()
        body, request = await serving.read(exchange, ChatRequest, CHAT_REFUSALS)
        check_prompt_options(body)
        model = serving.state.resolve_model(request.model)
        note_unheard(serving, exchange, request)
        params = self._params(request)
        plan = self._plan(request, serving.constraint(body))
        async with exchange.cancelled_on_disconnect():
            ids = await render_chat(serving, request, request.messages)
            is_thinking = self._is_thinking(ids)
            params = await self._constrained(params, plan, is_thinking, request, serving.constraint(body))
            ids = serving.truncated(ids, params, request)
            params = serving.fit(params, len(ids), "messages")
            full_id = reply_id("chatcmpl", exchange, request)
            reading = self._reading(request, plan, is_thinking, params)
            reply = ChatReplyWriter(serving, request, params, full_id, model, ids, reading)
            shown = self._shown_ids(reading)
            requests = [serving.generate_request(full_id, ids, params, request, shown)]
            if request.stream and params.num_samples == params.n:
                await serving.stream(exchange, request, requests, params, reply)
                return
            async with aclosing(serving.generate(requests, params)) as deltas:
                whole = await reply.whole(deltas)
        await send_whole(exchange, whole, bool(request.stream))

    def _plan(self, request: ChatRequest, constraint: GrammarSpec | None, bare: Collection[str] = ()) -> OutputPlan:
        serving = self._serving
        return plan_output(
            request, constraint, serving.state.output, serving.state.config, serving.grammar_limits, bare
        )

    async def _constrained(
        self,
        params: SamplingParams,
        plan: OutputPlan,
        is_thinking: bool | None,
        request: ChatRequest,
        constraint: GrammarSpec | None,
    ) -> SamplingParams:
        """`params` with the grammar of the plan. A tool that is not strict does not refuse a request: where its schema
        does not compile, or all of them together do not, only the names and types of its arguments are held."""
        serving = self._serving
        try:
            return await serving.constrained(params, plan.constraint(is_thinking), request)
        except InvalidRequest:
            if not plan.loose:
                raise
        bare = [tool.name for tool in plan.loose if not await serving.compiles(arguments_spec(tool))]
        plan = self._plan(request, constraint, bare or [tool.name for tool in plan.loose])
        return await serving.constrained(params, plan.constraint(is_thinking), request)

    def _is_thinking(self, ids: list[int]) -> bool | None:
        """Whether the prompt ends inside the model's thinking, or right behind it; None: it says nothing."""
        row = self._serving.state.output.reasoning_format
        if row is None:
            return None
        tail = self._serving.state.tokenizer.decode(ids[-_TAIL_TOKENS:], skip_special_tokens=False).rstrip()
        if tail.endswith(row.begins):
            return True
        return False if tail.endswith(row.ends) else None

    def _reading(
        self, request: ChatRequest, plan: OutputPlan, is_thinking: bool | None, params: SamplingParams
    ) -> OutputReading | None:
        output_format = plan.output_format(is_thinking)
        if output_format is None:
            return None
        special = self._serving.state.output.special_tokens
        hidden = frozenset(special.ids.values()) if params.skip_special_tokens else frozenset[int]()
        return OutputReading(
            output_format,
            self._serving.texts,
            hidden - special.within(output_format.marks),
            request.include_reasoning is not False,
            plan.is_named,
            plan.is_forced,
        )

    def _shown_ids(self, reading: OutputReading | None) -> frozenset[int]:
        if reading is None:
            return frozenset()
        return self._serving.state.output.special_tokens.within(reading.format.marks)

    def _params(self, request: ChatRequest) -> SamplingParams:
        if request.top_logprobs and not request.logprobs:  # D7: 0 is no request
            raise InvalidRequest("`top_logprobs` needs `logprobs` to be true.", "top_logprobs")
        changes: dict[str, Any] = {"logprobs": (request.top_logprobs or 0) if request.logprobs else None}
        names = {"logprobs": "top_logprobs"}
        if request.max_completion_tokens is not None:
            changes["max_tokens"] = request.max_completion_tokens
            names["max_tokens"] = "max_completion_tokens"
        try:
            return self._serving.checked_params(request, **changes)
        except InvalidRequest as exc:
            raise renamed(exc, names) from None
