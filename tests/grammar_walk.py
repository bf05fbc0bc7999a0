"""Generates documents from a grammar without a model: a walk that takes any allowed token, by a seed.

The vocabulary is the bytes and some tokens of several characters, among them those that begin, end and separate JSON.
"""

from __future__ import annotations

import random
from typing import Any

import llguidance

from octavo.grammar import LIMITS, ByteVocabulary
from octavo.params import GrammarSpec
from octavo.text.grammar import GrammarLimits, spec_of
from octavo.text.grammar_helper import Refused, canonical, make_prover, prove

_EOS = 256
_LONGER = ['": ', '", "', '"}', '{"', ' "', "true", "null", "12", "é", "ab", '"a', '"b":', "2024-02-29", '":"', "\\u"]
TOKENS = [bytes([i]) for i in range(256)] + [b"</s>"] + [text.encode() for text in _LONGER]
TOKENIZER = llguidance.LLTokenizer(ByteVocabulary(TOKENS, [_EOS], [_EOS]), eos_token=[_EOS], slices=[])
PROVER = make_prover()

# What ends something is likely, so that walks end; bytes outside ASCII are not.
_WEIGHTS = [0.02 if i < 32 or i >= 127 else 1.0 for i in range(256)] + [40.0] + [2.0] * len(_LONGER)
for _char, _weight in {'"': 60.0, "}": 60.0, "]": 60.0, ",": 10.0, "\\": 2.0, "a": 6.0, "b": 6.0}.items():
    _WEIGHTS[ord(_char)] = _weight

ANY_SIZE = GrammarLimits(max_bytes=1 << 30)


def grammar_of(spec: GrammarSpec | None) -> str:
    """The canonical grammar, proven as the helper proves it. Raises `Refused`."""
    assert spec is not None
    grammar = canonical(spec.kind, spec.source, spec.options)
    prove(grammar, PROVER)
    return grammar


def grammar_for(**fields: Any) -> str:
    """The canonical grammar of a request's fields. Raises `InvalidRequest` or `Refused`."""
    return grammar_of(spec_of(fields, ANY_SIZE))


def matcher_of(grammar: str) -> Any:
    return llguidance.LLMatcher(TOKENIZER, grammar, log_level=0, limits=llguidance.LLParserLimits(**LIMITS))


def walk(grammar: str, seed: int, max_tokens: int = 400) -> str | None:
    """A text of the grammar; None when the walk did not come to an end."""
    rng = random.Random(seed)
    matcher = matcher_of(grammar)
    text = b""
    for _ in range(max_tokens):
        allowed = matcher.compute_logit_bias()
        ids = [i for i in range(len(TOKENS)) if allowed[i]]
        assert not matcher.is_error(), matcher.get_error()
        assert ids, f"nothing may follow {text!r}"
        token_id = rng.choices(ids, [_WEIGHTS[i] for i in ids])[0]
        assert matcher.consume_token(token_id), matcher.get_error()
        if token_id == _EOS:
            return text.decode()
        text += TOKENS[token_id]
        if matcher.is_stopped():
            return text.decode()
    return None


def accepts(grammar: str, text: str) -> bool:
    matcher = matcher_of(grammar)
    data = list(text.encode())
    return bool(matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting())


__all__ = ["ANY_SIZE", "Refused", "accepts", "grammar_for", "grammar_of", "matcher_of", "walk"]
