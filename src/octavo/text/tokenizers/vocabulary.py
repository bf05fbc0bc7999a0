"""A tokenizer's vocabulary as the engine needs it for grammars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from octavo.base.errors import InvalidRequest
from octavo.wire.messages import EngineInfo, Vocabulary

if TYPE_CHECKING:
    from octavo.text.tokenizers.tokenizer import Tokenizer


def all_eos_token_ids(tokenizer: Tokenizer, info: EngineInfo, num_ids: int = 0) -> tuple[int, ...]:
    """The tokens that end a text: the tokenizer's, then those of the model's configuration. `num_ids`: 0: the model's
    tokens alone."""
    ids = dict.fromkeys((*tokenizer.eos_token_ids, *info.eos_token_ids))
    return tuple(token_id for token_id in ids if 0 <= token_id < (num_ids or info.vocab_size))


def vocabulary_of(
    tokenizer: Tokenizer, eos_token_ids: Sequence[int], tokens: Sequence[bytes] | None = None
) -> Vocabulary:
    """What grammars are compiled against. Raises `InvalidRequest` for a tokenizer that does not know its bytes.

    `tokens`: its `all_token_bytes`, where they are at hand: to gather them takes a second for the largest vocabularies.
    """
    known = tokenizer.all_token_bytes() if tokens is None else tokens
    if known is None:
        raise InvalidRequest("This model's tokenizer does not support constraints on the output.")
    tokens = list(known)
    # Without an EOS the end of a grammar is still seen; the extra id has no logit.
    eos = list(eos_token_ids) or [len(tokens)]
    tokens += [b""] * (max(eos) + 1 - len(tokens))
    return Vocabulary(tokens, sorted(tokenizer.special_ids), eos)
