"""A tokenizer's vocabulary as the engine needs it for grammars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from octavo.errors import InvalidRequest
from octavo.messages import Vocabulary

if TYPE_CHECKING:
    from octavo.text.tokenizer import Tokenizer


def vocabulary_of(tokenizer: Tokenizer, eos_token_ids: Sequence[int]) -> Vocabulary:
    """What grammars are compiled against. Raises `InvalidRequest` for a tokenizer that does not know its bytes."""
    tokens = tokenizer.all_token_bytes()
    if tokens is None:
        raise InvalidRequest("This model's tokenizer does not support constraints on the output.")
    # Without an EOS the end of a grammar is still seen; the extra id has no logit.
    eos = list(eos_token_ids) or [len(tokens)]
    tokens += [b""] * (max(eos) + 1 - len(tokens))
    return Vocabulary(tokens, sorted(tokenizer.special_ids), eos)
