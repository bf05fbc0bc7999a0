"""The routes of llama.cpp's native API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import octavo
from octavo.base.errors import InvalidRequest, RequestError, ServerError
from octavo.base.params import SamplingParams
from octavo.client.generation import OpenSequence
from octavo.served.checks import renamed
from octavo.served.models import Lease
from octavo.served.turn import Continuation, Turn
from octavo.server.http.exchange import Exchange
from octavo.server.http.routing import Route
from octavo.server.llamacpp import protocol as body
from octavo.server.llamacpp.decoding import NAMES, constraint_of, infill_of, prompts_of, sampling_of
from octavo.server.llamacpp.reply import EVENTS, NativeEncoder, settings_of
from octavo.server.openai.serving import Serving


def llamacpp_routes(serving: Serving) -> list[Route]:
    handlers = NativeHandlers(serving)
    end, piece = body.CompletionEnd, body.CompletionPiece | body.CompletionEnd
    table = [
        Route("POST", "/completion", handlers.complete, "Complete a text, as llama.cpp's server does",
              body.NativeCompletionRequest, end, piece),
        Route("POST", "/infill", handlers.infill, "Write what stands between two texts, as llama.cpp's server does",
              body.InfillRequest, end, piece),
        Route("GET", "/props", handlers.props, "The server's properties, as llama.cpp's server names them",
              reply=body.PropsReply),
    ]  # fmt: skip
    if serving.state.config.slots:
        table.append(Route("GET", "/slots", handlers.slots, "What runs, as llama.cpp's server tells it"))
    return table


class NativeHandlers:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def complete(self, exchange: Exchange) -> None:
        request, lease = await self._began(exchange, body.NativeCompletionRequest)
        prompts, is_list = prompts_of(request.prompt, lease.model)
        most = self._serving.state.config.max_prompts
        if len(prompts) > most:
            raise InvalidRequest(f"At most {most} prompts are allowed in one request.", "prompt")
        await self._answer(exchange, request, lease, prompts, is_list=is_list)

    async def infill(self, exchange: Exchange) -> None:
        request, lease = await self._began(exchange, body.InfillRequest)
        ids, ends = await infill_of(request, lease.model)
        own = {"stop_token_ids": ends}
        await self._answer(exchange, request, lease, [Continuation(prompt=ids)], own, is_list=False)

    async def _began(self, exchange: Exchange, kind: type[Any]) -> tuple[Any, Lease]:
        self._serving.state.check_available()
        # llama.cpp does not look at the Content-Type, and its callers send what their tools send by themselves.
        _, request = await self._serving.read(exchange, kind, body.NATIVE_REFUSALS, any_type=True)
        lease = self._serving.state.models.resolve(request.model)
        await lease.model.adapter_ready()
        return request, lease

    async def _answer(
        self,
        exchange: Exchange,
        request: body.NativeFields,
        lease: Lease,
        prompts: Sequence[Continuation],
        own: dict[str, Any] | None = None,
        *,
        is_list: bool,
    ) -> None:
        model, serving = lease.model, self._serving
        request_id = f"cmpl-{exchange.scope['octavo.request_id']}"
        try:
            sampling = sampling_of(request, model) | (own or {})
            constraint = constraint_of(request, model)
        except RequestError as exc:
            raise renamed(exc, NAMES) from None
        turn = Turn(
            request_id=request_id,
            prompts=prompts,
            sampling=sampling,
            constraint=constraint,
            cache_salt=request_id if request.cache_prompt is False else "",
            is_whole=not request.stream,
            trace_headers=serving.trace_headers(exchange),
            names=NAMES,
        )
        async with exchange.cancelled_on_disconnect():
            prepared = await model.prepare(turn)
            encoder = NativeEncoder(
                lease.name,
                prepared,
                serving.names(model),
                is_list=is_list,
                returns_tokens=bool(request.return_tokens or request.stream),
            )
            await serving.send(exchange, model, prepared, encoder, streams=bool(request.stream), framing=EVENTS)

    async def props(self, exchange: Exchange) -> None:
        model = self._serving.state.models.default
        defaults = SamplingParams(**model.default_sampling)
        await exchange.send_json(
            body.PropsReply(
                default_generation_settings={"n_ctx": model.info.max_model_len, "params": settings_of(defaults)},
                total_slots=model.info.max_num_seqs,
                model_path=model.names[0],
                modalities={"vision": "image" in model.info.media_kinds, "audio": "audio" in model.info.media_kinds},
                build_info=f"octavo {octavo.__version__}",
                is_sleeping=model.engine.sleep_mode.is_asleep,
            )
        )

    async def slots(self, exchange: Exchange) -> None:
        """As many slots as sequences run at once; further ones wait, and are not told of."""
        model = self._serving.state.models.default
        info = model.info
        running = model.engine.sequences()[: info.max_num_seqs]
        if not running[info.max_num_seqs - 1 :] or exchange.query().get("fail_on_no_slot", ["0"])[-1] in ("", "0"):
            slots = [body.Slot(i, info.max_model_len) for i in range(info.max_num_seqs)]
            for slot, sequence in zip(slots, running, strict=False):
                _fill(slot, sequence)
            await exchange.send_json(slots)
            return
        raise NoSlot("no slot available")


class NoSlot(ServerError):
    """All that run at once do run."""

    status = 503


def _fill(slot: body.Slot, sequence: OpenSequence) -> None:
    params, num_prompt = sequence.request.params, sequence.request.num_prompt_tokens
    num_left = -1 if params.max_tokens is None else params.max_tokens - sequence.num_tokens
    slot.is_processing = True
    slot.id_task = sequence.number
    slot.n_prompt_tokens = num_prompt
    slot.n_prompt_tokens_cache = sequence.num_cached_tokens
    slot.params = settings_of(params)
    slot.next_token = [body.NextToken(has_next_token=True, n_remain=num_left, n_decoded=sequence.num_tokens)]
