"""Log probabilities in the shapes of the API."""

from __future__ import annotations

from octavo.messages import TokenLogprobs
from octavo.served.parts import TokenTexts
from octavo.server.protocol.chat import ChatLogprobs, ContentLogprob, TopLogprob
from octavo.server.protocol.common import PromptLogprob
from octavo.server.protocol.completions import CompletionLogprobs

#: JSON has no -Infinity: a log probability below this is reported as this.
FLOOR = -9999.0


class TokenNames:
    """How a reply names its tokens: by their text, or as `token_id:<id>`, which no two tokens share."""

    __slots__ = ("_as_ids", "_texts")

    def __init__(self, texts: TokenTexts, as_ids: bool = False) -> None:
        self._texts = texts
        self._as_ids = as_ids

    def name(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_ids else self._texts[token_id][0]

    def text(self, token_id: int) -> str:
        return self._texts[token_id][0]

    def bytes(self, token_id: int) -> list[int]:
        return self._texts[token_id][1]


def floored(logprob: float) -> float:
    """NaN included: it is not above the floor."""
    return logprob if logprob > FLOOR else FLOOR


def chat_logprobs(
    names: TokenNames, ids: list[int], logprobs: list[TokenLogprobs] | None, top: int
) -> ChatLogprobs | None:
    """One entry a token, each with the `top` most likely tokens of its position."""
    if logprobs is None:
        return None
    content = []
    for token_id, entry in zip(ids, logprobs, strict=True):
        pairs = zip(entry.top_ids[:top], entry.top_logprobs[:top], strict=True)
        tops = [TopLogprob(names.name(i), floored(value), names.bytes(i)) for i, value in pairs]
        content.append(ContentLogprob(names.name(token_id), floored(entry.logprob), names.bytes(token_id), tops))
    return ChatLogprobs(content)


def completion_logprobs(
    names: TokenNames, ids: list[int], logprobs: list[TokenLogprobs] | None, top: int, offset: int
) -> CompletionLogprobs | None:
    """Four parallel lists. `offset`: characters of the choice's text before the first of `ids`.

    A position's map holds the sampled token and the `top` most likely: up to top + 1 entries. Tokens with the
    same text, such as parts of a character, share one entry, of the most likely.
    """
    if logprobs is None:
        return None
    out = CompletionLogprobs()
    for token_id, entry in zip(ids, logprobs, strict=True):
        tops = {names.name(token_id): floored(entry.logprob)}
        for i, value in zip(entry.top_ids[:top], entry.top_logprobs[:top], strict=True):
            name = names.name(i)
            tops[name] = max(floored(value), tops.get(name, FLOOR))
        out.text_offset.append(offset)
        out.token_logprobs.append(floored(entry.logprob))
        out.tokens.append(names.name(token_id))
        out.top_logprobs.append(tops)
        offset += len(names.text(token_id))
    return out


def echoed_logprobs(
    names: TokenNames, ids: list[int], scores: list[TokenLogprobs], top: int, text: str
) -> CompletionLogprobs:
    """The log probabilities of a prompt that is echoed as `text`. Its first token follows nothing and has none."""
    first = CompletionLogprobs([0], [None], [names.name(ids[0])], [None])
    # A special token that the tokenizer put in front is no part of the echoed text.
    start = names.text(ids[0])
    offset = len(start) if text.startswith(start) or "\ufffd" in start else 0
    rest = completion_logprobs(names, ids[1:], scores, top, offset)
    return joined(first, rest) if rest is not None else first


def joined(first: CompletionLogprobs | None, second: CompletionLogprobs) -> CompletionLogprobs:
    """Both, one after the other; `first` is changed."""
    if first is None:
        return second
    first.text_offset += second.text_offset
    first.token_logprobs += second.token_logprobs
    first.tokens += second.tokens
    first.top_logprobs += second.top_logprobs
    return first


def prompt_logprobs(
    texts: TokenTexts, ids: list[int], scores: list[TokenLogprobs], top: int
) -> list[dict[int, PromptLogprob] | None]:
    """For each token of the prompt a map of that token and the `top` most likely; None for the first (S19)."""
    result: list[dict[int, PromptLogprob] | None] = [None]
    for token_id, entry in zip(ids[1:], scores, strict=True):
        pairs = zip(entry.top_ids[:top], entry.top_logprobs[:top], strict=True)
        entries = {i: PromptLogprob(floored(value), rank, texts[i][0]) for rank, (i, value) in enumerate(pairs, 1)}
        entries.setdefault(token_id, PromptLogprob(floored(entry.logprob), entry.rank, texts[token_id][0]))
        result.append(entries)
    return result
