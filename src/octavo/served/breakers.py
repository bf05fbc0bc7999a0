"""DRY's sequence breakers as tokens: every way in which a vocabulary can spell them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import msgspec

from octavo.base.errors import InvalidRequest
from octavo.base.params import SamplingParams
from octavo.served.parts import Renderer, Tokenizer

MAX_BREAKERS = 32
MAX_BREAKER_CHARS = 40
#: Breakers whose tokens are remembered.
_MAX_KNOWN = 256

_Sequences = tuple[tuple[int, ...], ...]


class BreakerTokens:
    """Knows the texts of all tokens from the first request on that needs them."""

    def __init__(self, tokenizer: Tokenizer, renderer: Renderer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._renderer = renderer
        self._vocab_size = vocab_size
        self._texts: list[bytes] = []
        self._by_last_byte: dict[int, list[int]] = {}
        self._known: OrderedDict[str, _Sequences] = OrderedDict()
        self._turn = asyncio.Lock()

    async def resolved(self, params: SamplingParams) -> SamplingParams:
        """`params` with the tokens of their breakers, whose text goes no further. Raises `InvalidRequest`."""
        breakers = params.dry_sequence_breakers
        if len(breakers) > MAX_BREAKERS or not all(1 <= len(text) <= MAX_BREAKER_CHARS for text in breakers):
            raise InvalidRequest(
                f"`dry_sequence_breakers` should have at most {MAX_BREAKERS} texts of 1 to {MAX_BREAKER_CHARS} "
                "characters.",
                "dry_sequence_breakers",
            )
        if not params.uses_dry or not breakers:
            return params
        async with self._turn:
            unknown = [text for text in breakers if text not in self._known]
            if unknown:
                await asyncio.to_thread(self._learn, unknown)
            sequences = dict.fromkeys(ids for text in breakers for ids in self._known[text])
            while len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        # Their text is the API's; the engine is told of tokens.
        return msgspec.structs.replace(params, dry_sequence_breakers=DEFAULTS, dry_breaker_token_ids=tuple(sequences))

    def _learn(self, breakers: list[str]) -> None:
        if not self._texts:
            self._texts = [self._tokenizer.token_bytes(token_id) or b"" for token_id in range(self._vocab_size)]
            for token_id, text in enumerate(self._texts):
                if text:
                    self._by_last_byte.setdefault(text[-1], []).append(token_id)
        for breaker in breakers:
            self._known[breaker] = self._sequences_of(breaker)

    def _sequences_of(self, breaker: str) -> _Sequences:
        """Tokens that hold it; and those that end in a part of it, with the tokens of the rest behind them."""
        wanted = breaker.encode("utf-8", "replace")
        found: dict[tuple[int, ...], None] = {(i,): None for i, text in enumerate(self._texts) if wanted in text}
        for length in range(1, len(breaker)):
            head = breaker[:length].encode("utf-8", "replace")
            ending = [i for i in self._by_last_byte.get(head[-1], ()) if self._texts[i].endswith(head)]
            if ending:
                rest = tuple(self._renderer.render_text(breaker[length:], False))
                found |= {(i, *rest): None for i in ending if (i,) not in found}
        return tuple(found)


DEFAULTS = SamplingParams().dry_sequence_breakers
