"""Generates documents from a grammar without a model: a walk that takes any allowed token, by a seed.

The vocabulary is the bytes and some tokens of several characters, among them those that begin, end and separate JSON.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import llguidance

from octavo.base.grammar import LIMITS, ByteVocabulary
from octavo.base.params import GrammarSpec
from octavo.text.grammars.grammar import GrammarLimits, spec_of
from octavo.text.grammars.helper import Refused, canonical, make_prover, prove

_EOS = 256
_LONGER = ['": ', '", "', '"}', '{"', ' "', "true", "null", "12", "é", "ab", '"a', '"b":', "2024-02-29", '":"', "\\u"]
PROVER = make_prover()
ANY_SIZE = GrammarLimits(max_bytes=1 << 30)


class Walker:
    """Walks over a vocabulary that has `more` tokens, which are likely."""

    def __init__(self, more: Sequence[str] = ()) -> None:
        texts = [text.encode() for text in (*_LONGER, *more)]
        self.tokens = [bytes([i]) for i in range(256)] + [b"</s>"] + texts
        self._tokenizer = llguidance.LLTokenizer(
            ByteVocabulary(self.tokens, [_EOS], [_EOS]), eos_token=[_EOS], slices=[]
        )
        # What ends something is likely, so that walks end; bytes outside ASCII are not.
        self._weights = [0.02 if i < 32 or i >= 127 else 1.0 for i in range(256)] + [40.0]
        self._weights += [2.0] * len(_LONGER) + [60.0] * len(more)
        for char, weight in {'"': 60.0, "}": 60.0, "]": 60.0, ",": 10.0, "\\": 2.0, "a": 6.0, "b": 6.0}.items():
            self._weights[ord(char)] = weight

    def matcher_of(self, grammar: str) -> Any:
        return llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=llguidance.LLParserLimits(**LIMITS))

    def walk(self, grammar: str, seed: int, max_tokens: int = 400) -> str | None:
        """A text of the grammar; None when the walk did not come to an end."""
        rng = random.Random(seed)
        matcher = self.matcher_of(grammar)
        text = b""
        for _ in range(max_tokens):
            allowed = matcher.compute_logit_bias()
            ids = [i for i in range(len(self.tokens)) if allowed[i]]
            assert not matcher.is_error(), matcher.get_error()
            assert ids, f"nothing may follow {text!r}"
            token_id = rng.choices(ids, [self._weights[i] for i in ids])[0]
            assert matcher.consume_token(token_id), matcher.get_error()
            if token_id == _EOS:
                return text.decode()
            text += self.tokens[token_id]
            if matcher.is_stopped():
                return text.decode()
        return None


_WALKER = Walker()
matcher_of = _WALKER.matcher_of
walk = _WALKER.walk


def grammar_of(spec: GrammarSpec | None) -> str:
    """The canonical grammar, proven as the helper proves it. Raises `Refused`."""
    assert spec is not None
    grammar = canonical(spec.kind, spec.source, spec.options)
    prove(grammar, PROVER)
    return grammar


def grammar_for(**fields: Any) -> str:
    """The canonical grammar of a request's fields. Raises `InvalidRequest` or `Refused`."""
    return grammar_of(spec_of(fields, ANY_SIZE))


def accepts(grammar: str, text: str) -> bool:
    matcher = matcher_of(grammar)
    data = list(text.encode())
    return bool(matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting())


__all__ = ["ANY_SIZE", "Refused", "Walker", "accepts", "grammar_for", "grammar_of", "matcher_of", "walk"]
