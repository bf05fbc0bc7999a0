"""POST /tokenize and /detokenize: request and reply bodies."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from octavo.server.openai.protocol.common import Int, WireModel
from octavo.server.openai.protocol.conversation import ConversationFields, Messages


class TokenizeRequest(ConversationFields):
    """Either `prompt` or `messages`. `add_special_tokens`: by default true for a prompt, false for messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    return_token_strs: bool | None = None
    # As llama.cpp's server names them; `content` stands alone, and has no special tokens unless they are asked for.
    content: str | None = None
    add_special: bool | None = None
    parse_special: Literal[True] | None = None
    with_pieces: bool | None = None


class TemplateRequest(ConversationFields):
    model: str | None = None
    messages: Messages


class DetokenizeRequest(WireModel):
    model: str | None = None
    tokens: list[Int]


class TokenPiece(msgspec.Struct):
    id: int
    piece: str | list[int]  # bytes where they are no text


class TokenPiecesReply(msgspec.Struct):
    tokens: list[TokenPiece]


class TokenizeReply(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | UnsetType = UNSET


#: The second one with `with_pieces`.
TOKENIZED = TokenizeReply | TokenPiecesReply


class TemplateReply(msgspec.Struct):
    prompt: str


class DetokenizeReply(msgspec.Struct):
    prompt: str
    content: str  # the same, as llama.cpp's server names it


class InputTokens(msgspec.Struct):
    """How many tokens the prompt of a request would have, of the chat and of the Responses API."""

    input_tokens: int
    object: str = "response.input_tokens"
