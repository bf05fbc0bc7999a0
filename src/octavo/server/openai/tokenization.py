"""POST /tokenize, /detokenize, /apply-template and /v1/chat/completions/input_tokens.

None needs the engine: they answer while it is down or drains.
"""

from __future__ import annotations

from msgspec import UNSET

from octavo.base.errors import InvalidRequest
from octavo.served.model import ServedModel
from octavo.served.prompts import Prompt
from octavo.served.turn import Continuation
from octavo.server.http.exchange import Exchange
from octavo.server.openai.conversation import conversation_of, note_unheard
from octavo.server.openai.protocol.chat import CHAT_REFUSALS, ChatRequest
from octavo.server.openai.protocol.common import Refusals
from octavo.server.openai.protocol.conversation import check_prompt_options
from octavo.server.openai.protocol.tokenize import (
    DetokenizeReply,
    DetokenizeRequest,
    InputTokens,
    TemplateReply,
    TemplateRequest,
    TokenizeReply,
    TokenizeRequest,
    TokenPiece,
    TokenPiecesReply,
)
from octavo.server.openai.serving import Serving


class TokenizeHandler:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, exchange: Exchange) -> None:
        serving = self._serving
        body, request = await serving.read(exchange, TokenizeRequest, {})
        check_prompt_options(body)
        model = serving.state.models.resolve(request.model).model
        await model.adapter_ready()
        note_unheard(serving, model, exchange, request)
        ids = await self._ids(request, model)
        if request.with_pieces:
            await exchange.send_json(TokenPiecesReply([TokenPiece(i, _piece(model, i)) for i in ids]))
            return
        strings = [model.texts[i][0] for i in ids] if request.return_token_strs else UNSET
        await exchange.send_json(TokenizeReply(len(ids), model.info.max_model_len, ids, strings))

    async def _ids(self, request: TokenizeRequest, model: ServedModel) -> list[int]:
        if [request.prompt, request.messages, request.content].count(None) != 2:
            raise InvalidRequest("Either `prompt`, `messages` or `content` should be given.", "prompt")
        if request.content is not None:
            special = bool(request.add_special)
            if not request.content:
                return model.renderer.render_text("", special)
            named = Continuation(prompt=request.content, add_special_tokens=special)
            [prompt] = await model.prompts.made([named], "content")
            return prompt.ids
        if request.messages is not None:
            conversation = conversation_of(request, request.messages, self._serving.state.config)
            [prompt] = await model.prompts.made([conversation], "messages")
            return prompt.ids
        special = request.add_special_tokens is not False
        if not request.prompt:
            return model.renderer.render_text("", special)
        [prompt] = await model.prompts.made([Continuation(prompt=request.prompt, add_special_tokens=special)], "prompt")
        return prompt.ids


def _piece(model: ServedModel, token_id: int) -> str | list[int]:
    """A token's text, or its bytes where they are part of a character."""
    text, own_bytes = model.texts[token_id]
    try:
        return bytes(own_bytes).decode()
    except UnicodeDecodeError:
        return own_bytes or text


class ChatTokensHandler:
    """Counts what the prompt of a chat request would have."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, exchange: Exchange) -> None:
        model, prompt = await _chat_prompt(self._serving, exchange, ChatRequest, CHAT_REFUSALS)
        await exchange.send_json(InputTokens(model.num_virtual_tokens + len(prompt.ids)))


class TemplateHandler:
    """The prompt's text, for who wants to see what a template makes of a conversation."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, exchange: Exchange) -> None:
        _, prompt = await _chat_prompt(self._serving, exchange, TemplateRequest, {})
        await exchange.send_json(TemplateReply(prompt.text or ""))


async def _chat_prompt(
    serving: Serving, exchange: Exchange, kind: type[ChatRequest | TemplateRequest], refusals: Refusals
) -> tuple[ServedModel, Prompt]:
    body, request = await serving.read(exchange, kind, refusals)
    check_prompt_options(body)
    model = serving.state.models.resolve(request.model).model
    await model.adapter_ready()
    note_unheard(serving, model, exchange, request)
    conversation = conversation_of(request, request.messages, serving.state.config)
    [prompt] = await model.prompts.made([conversation], "messages")
    return model, prompt


class DetokenizeHandler:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, exchange: Exchange) -> None:
        _, request = await self._serving.read(exchange, DetokenizeRequest, {})
        model = self._serving.state.models.resolve(request.model).model
        await model.adapter_ready()
        if request.tokens and not 0 <= min(request.tokens) <= max(request.tokens) < model.num_ids:
            raise InvalidRequest(f"Token ids should lie in 0..{model.num_ids - 1}.", "tokens")
        text = model.tokenizer.decode(request.tokens, skip_special_tokens=False)
        await exchange.send_json(DetokenizeReply(text, text))
