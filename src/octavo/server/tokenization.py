"""POST /tokenize and /detokenize. Neither needs the engine: they answer while it is down or drains."""

from __future__ import annotations

from msgspec import UNSET

from octavo.errors import InvalidRequest
from octavo.server.conversation import note_unheard, render_chat
from octavo.server.exchange import Exchange
from octavo.server.protocol.conversation import check_prompt_options
from octavo.server.protocol.tokenize import (
    DetokenizeReply,
    DetokenizeRequest,
    TokenizeReply,
    TokenizeRequest,
)
from octavo.server.serving import Serving


class TokenizeHandler:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, exchange: Exchange) -> None:
        serving = self._serving
        body, request = await serving.read(exchange, TokenizeRequest, {})
        check_prompt_options(body)
        serving.state.resolve_model(request.model)
        note_unheard(serving, exchange, request)
        ids = await self._ids(request)
        strings = [serving.texts[i][0] for i in ids] if request.return_token_strs else UNSET
        await exchange.send_json(TokenizeReply(len(ids), serving.state.info.max_model_len, ids, strings))

    async def _ids(self, request: TokenizeRequest) -> list[int]:
        if (request.prompt is None) == (request.messages is None):
            raise InvalidRequest("Either `prompt` or `messages` should be given.", "prompt")
        if request.messages is not None:
            return await render_chat(self._serving, request, request.messages)
        text = request.prompt or ""
        render = self._serving.state.renderer.render_text
        return await self._serving.tokenize(
            len(text), lambda: render(text, request.add_special_tokens is not False), "prompt"
        )


class DetokenizeHandler:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, exchange: Exchange) -> None:
        state = self._serving.state
        _, request = await self._serving.read(exchange, DetokenizeRequest, {})
        state.resolve_model(request.model)
        if request.tokens and not 0 <= min(request.tokens) <= max(request.tokens) < state.info.vocab_size:
            raise InvalidRequest(f"Token ids should lie in 0..{state.info.vocab_size - 1}.", "tokens")
        text = state.tokenizer.decode(request.tokens, skip_special_tokens=False)
        await exchange.send_json(DetokenizeReply(text))
