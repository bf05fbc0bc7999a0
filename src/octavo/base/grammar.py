"""What both processes must agree on about grammars: limits, stack, and how a vocabulary is described.

Knows neither requests nor the library's functions: it is imported where the library is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

#: The native compiler recurses: its threads get this much stack (address space; memory only as it is touched).
STACK_BYTES: Final = 512 << 20

#: `llguidance.LLParserLimits`: wide objects work, a step stays bounded, and no grammar leaks into a message.
LIMITS: Final[dict[str, Any]] = {
    "max_items_in_row": 20_000,
    "step_max_items": 1_000_000,
    "verbose_errors": False,
}


class ByteVocabulary:
    """A vocabulary as the bytes of its tokens, in the shape that `llguidance.LLTokenizer` asks for.

    There is no encoder: the grammars are compiled so that no token is ever forced, which is all it would be for.
    """

    is_tokenizer_wrapper = True
    bos_token_id: int | None = None

    def __init__(self, tokens: Sequence[bytes], special_ids: Sequence[int], eos_ids: Sequence[int]) -> None:
        """`tokens[i]` is b"" for an id without text; eos_ids has at least one id."""
        self.tokens = tokens
        self.special_token_ids = special_ids
        self.eos_token_id = eos_ids[0]

    def __call__(self, text: object) -> list[int]:
        return []
