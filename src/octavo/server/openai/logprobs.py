"""Log probabilities in the shapes of the API."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from octavo.client.generation import Detokenizer
from octavo.served.parts import TokenTexts
from octavo.server.openai.protocol.chat import ChatLogprobs, ContentLogprob, TopLogprob
from octavo.server.openai.protocol.common import PromptLogprob
from octavo.server.openai.protocol.completions import CompletionLogprobs
from octavo.wire.messages import TokenLogprobs

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

    def distinct(self, token_id: int, taken: Collection[str]) -> str:
        """A name that is none of `taken`. Tokens that are parts of characters are told apart by their bytes."""
        name = self.name(token_id)
        if name in taken:
            name = "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.bytes(token_id))
        return f"token_id:{token_id}" if name in taken else name

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


class TextOffsets:
    """Where each token begins in the text that the tokens make: within a character, where the character does."""

    def __init__(self, detokenizer: Detokenizer, start: int = 0) -> None:
        """`start`: characters of the text before the first token."""
        self._detokenizer = detokenizer
        self._num_chars = start

    def take(self, ids: Sequence[int]) -> list[int]:
        """The offsets of the next tokens."""
        offsets = []
        for token_id in ids:
            offsets.append(self._num_chars + self._detokenizer.num_held)
            self._num_chars += len(self._detokenizer.push([token_id]))
        return offsets


def completion_logprobs(
    names: TokenNames, ids: list[int], logprobs: list[TokenLogprobs], top: int, offsets: list[int]
) -> CompletionLogprobs:
    """Four parallel lists. `offsets`: where each of `ids` begins in the choice's text.

    A position's map holds the sampled token and the `top` most likely: up to top + 1 entries, each token its own.
    """
    out = CompletionLogprobs(text_offset=offsets)
    for token_id, entry in zip(ids, logprobs, strict=True):
        name = names.name(token_id)
        tops = {name: floored(entry.logprob)}
        for i, value in zip(entry.top_ids[:top], entry.top_logprobs[:top], strict=True):
            if i != token_id:
                tops[names.distinct(i, tops)] = floored(value)
        out.token_logprobs.append(floored(entry.logprob))
        out.tokens.append(name)
        out.top_logprobs.append(tops)
    return out


def echoed_logprobs(
    names: TokenNames, ids: list[int], scores: list[TokenLogprobs], top: int, offsets: list[int]
) -> CompletionLogprobs:
    """The log probabilities of an echoed prompt. Its first token follows nothing and has none."""
    first = CompletionLogprobs(offsets[:1], [None], [names.name(ids[0])], [None])
    return joined(first, completion_logprobs(names, ids[1:], scores, top, offsets[1:]))


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
