"""A request that ends where its output goes round in circles."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from octavo.base.errors import InvalidRequest

#: Tokens of a pattern, and how often it may be asked to stand behind itself.
MAX_PATTERN_SIZE = 1024
MAX_COUNT = 1024


class RepetitionDetection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """End with "repetition" when the last tokens are one pattern of min_pattern_size .. max_pattern_size tokens,
    min_count times. A max_pattern_size of 0 is off; a min_pattern_size of 0 is 1."""

    max_pattern_size: int = 0
    min_pattern_size: int = 0
    min_count: int = 2

    def check(self, name: str = "repetition_detection") -> None:
        """Raise `InvalidRequest` for numbers that mean nothing."""
        if not 0 <= self.max_pattern_size <= MAX_PATTERN_SIZE:
            raise InvalidRequest(f"`max_pattern_size` must be in [0, {MAX_PATTERN_SIZE}].", f"{name}.max_pattern_size")
        if self.max_pattern_size and not 0 <= self.min_pattern_size <= self.max_pattern_size:
            raise InvalidRequest(
                f"`min_pattern_size` must be in [0, {self.max_pattern_size}], which is `max_pattern_size`.",
                f"{name}.min_pattern_size",
            )
        if self.max_pattern_size and not 2 <= self.min_count <= MAX_COUNT:
            raise InvalidRequest(f"`min_count` must be in [2, {MAX_COUNT}].", f"{name}.min_count")

    def found(self, token_ids: Sequence[int], num_tokens: int) -> bool:
        """Whether the last `num_tokens` of `token_ids` end in a pattern so often. Only they are looked at."""
        size = max(1, self.min_pattern_size)
        while size <= self.max_pattern_size and size * self.min_count <= num_tokens:
            # The pattern stands there min_count times iff all but the first equals what stands `size` tokens before.
            distance = size * (self.min_count - 1)
            if token_ids[-1] == token_ids[-1 - size] and (token_ids[-distance:] == token_ids[-distance - size : -size]):
                return True
            size += 1
        return False
