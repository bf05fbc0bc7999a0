"""POST /tokenize and /detokenize: request and reply bodies (E34, E35, N16)."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Field

from octavo.server.protocol.chat import MAX_MESSAGES, Message
from octavo.server.protocol.common import Int, Refusals, WireModel, inert


class TokenizeRequest(WireModel):
    """Either `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool | None = None  # default: true for a prompt, false for messages
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


TOKENIZE_REFUSALS: Refusals = {"tools": inert(None), "chat_template": inert(None)}


class DetokenizeRequest(WireModel):
    model: str | None = None
    tokens: list[Int]


class TokenizeReply(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | UnsetType = UNSET


class DetokenizeReply(msgspec.Struct):
    prompt: str
