"""Which tokens a request may not generate next: allowed_token_ids, bad_words and min_tokens as one list of ids."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from octavo.base.params import SamplingParams

_NONE = np.zeros(0, np.int32)


class TokenMask:
    """The forbidden ids of one request. What does not change from token to token is computed once.

    `eos_token_ids` count as forbidden, like the stop token ids, until `min_tokens` have been generated.
    """

    __slots__ = ("_always", "_early", "_min_tokens", "_sequences")

    def __init__(self, params: SamplingParams, eos_token_ids: Iterable[int], vocab_size: int) -> None:
        always: np.ndarray = _NONE
        if params.allowed_token_ids is not None:
            allowed = np.array(params.allowed_token_ids, np.int32)
            always = np.setdiff1d(np.arange(vocab_size, dtype=np.int32), allowed)
        words = params.bad_word_token_ids
        always = _united(always, [word[0] for word in words if len(word) == 1])
        self._always = always
        self._min_tokens = params.min_tokens
        self._early = _united(always, [*eos_token_ids, *params.stop_token_ids]) if params.min_tokens else always
        self._sequences = tuple(word for word in words if len(word) > 1)

    @classmethod
    def of(cls, params: SamplingParams, eos_token_ids: Iterable[int], vocab_size: int) -> TokenMask | None:
        """The mask of a request, None if it forbids nothing ever."""
        if params.allowed_token_ids is None and not params.bad_word_token_ids and not params.min_tokens:
            return None
        return cls(params, eos_token_ids, vocab_size)

    def ids(self, output: np.ndarray, *, may_end: bool = False) -> np.ndarray:
        """int32, sorted, unique: the ids forbidden after the tokens `output` have been generated.

        `may_end`: although there are fewer than min_tokens of them.
        """
        fixed = self._early if len(output) < self._min_tokens and not may_end else self._always
        return _united(fixed, [word[-1] for word in self._sequences if _ends_with(output, word[:-1])])


def _united(ids: np.ndarray, more: list[int]) -> np.ndarray:
    return np.union1d(ids, np.array(more, np.int32)) if more else ids


def _ends_with(output: np.ndarray, beginning: tuple[int, ...]) -> bool:
    """A word counts only where the request itself wrote it: the prompt is the caller's own."""
    return len(output) >= len(beginning) and output[len(output) - len(beginning) :].tolist() == list(beginning)
