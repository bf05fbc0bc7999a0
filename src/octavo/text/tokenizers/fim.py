"""Fill in the middle: how code models want a prefix and a suffix, so that what they generate stands between the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol


class InfillVocabulary(Protocol):
    """`tokenizer.Tokenizer`."""

    def token_to_id(self, token: str) -> int | None: ...


@dataclass(frozen=True, slots=True)
class InfillTokens:
    """A prompt is `prefix` + the text before + `suffix` + the text after + `middle`. One of `ends` ends the middle."""

    prefix: int
    suffix: int
    middle: int
    ends: tuple[int, ...]


#: prefix, suffix, middle, and what the models of that family write after the middle.
_SPELLINGS: Final[tuple[tuple[str, str, str, tuple[str, ...]], ...]] = (
    # Qwen2.5-Coder, CodeGemma
    (
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>"),
    ),
    # StarCoder, StarCoder2, Granite
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<|endoftext|>", "<fim_pad>", "<file_sep>")),
    # SantaCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<|endoftext|>", "<fim-pad>")),
    # CodeLlama
    ("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", ("\u2581<EOT>",)),
    # DeepSeek-Coder: its second token marks the hole, its third the end of the text after
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>", ()),
)


def infill_tokens(vocabulary: InfillVocabulary) -> InfillTokens | None:
    """The tokens of the first spelling that the vocabulary has in full; None when the model cannot fill in."""
    for *marks, ends in _SPELLINGS:
        prefix, suffix, middle = (vocabulary.token_to_id(str(mark)) for mark in marks)
        if prefix is not None and suffix is not None and middle is not None:
            known = (vocabulary.token_to_id(end) for end in ends)
            return InfillTokens(prefix, suffix, middle, tuple(i for i in known if i is not None))
    return None
