"""Log probabilities in the two shapes of the API."""

from __future__ import annotations

from octavo.messages import TokenLogprobs
from octavo.server.protocol.chat import ChatLogprobs, ContentLogprob, TopLogprob
from octavo.server.protocol.completions import CompletionLogprobs
from octavo.server.state import Tokenizer

#: JSON has no -Infinity: what lies below is reported as this (E72).
FLOOR = -9999.0


class TokenTexts:
    """Tokens as (text, bytes). A token that is a part of a character has a replacement character as text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int]]] = {}  # at most the vocabulary

    def __getitem__(self, token_id: int) -> tuple[str, list[int]]:
        pair = self._known.get(token_id)
        if pair is None:
            raw = self._tokenizer.token_bytes(token_id)
            if raw is None:
                raw = self._tokenizer.decode([token_id], skip_special_tokens=False).encode()
            pair = self._known[token_id] = (raw.decode("utf-8", "replace"), list(raw))
        return pair


def floored(logprob: float) -> float:
    """NaN included: it is not above the floor."""
    return logprob if logprob > FLOOR else FLOOR


def chat_logprobs(
    texts: TokenTexts, ids: list[int], logprobs: list[TokenLogprobs] | None, top: int
) -> ChatLogprobs | None:
    """One entry a token, each with the `top` most likely tokens of its position."""
    if logprobs is None:
        return None
    content = []
    for token_id, entry in zip(ids, logprobs, strict=True):
        text, raw = texts[token_id]
        pairs = zip(entry.top_ids[:top], entry.top_logprobs[:top], strict=True)
        tops = [TopLogprob(texts[i][0], floored(value), texts[i][1]) for i, value in pairs]
        content.append(ContentLogprob(text, floored(entry.logprob), raw, tops))
    return ChatLogprobs(content)


def completion_logprobs(
    texts: TokenTexts, ids: list[int], logprobs: list[TokenLogprobs] | None, top: int, offset: int
) -> CompletionLogprobs | None:
    """Four parallel lists. `offset`: characters of the choice's text before the first of `ids`.

    A position's map holds the sampled token and the `top` most likely: up to top + 1 entries. Tokens with the
    same text, such as parts of a character, share one entry, of the most likely.
    """
    if logprobs is None:
        return None
    out = CompletionLogprobs()
    for token_id, entry in zip(ids, logprobs, strict=True):
        text = texts[token_id][0]
        tops = {text: floored(entry.logprob)}
        for i, value in zip(entry.top_ids[:top], entry.top_logprobs[:top], strict=True):
            name = texts[i][0]
            tops[name] = max(floored(value), tops.get(name, FLOOR))
        out.text_offset.append(offset)
        out.token_logprobs.append(floored(entry.logprob))
        out.tokens.append(text)
        out.top_logprobs.append(tops)
        offset += len(text)
    return out
