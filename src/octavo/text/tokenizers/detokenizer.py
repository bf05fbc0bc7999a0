"""Ids to text while they arrive.

Law: the texts of all pushes and of `finish`, joined, are `Tokenizer.decode` of all ids, for every split; no
push ends inside a character. The prompt is never pushed, so nothing of it can appear.

What is held back: of a byte-level vocabulary the bytes of an unfinished character; of byte-fallback tokens the
whole run, because one bad byte at its end turns all of it into U+FFFD.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Sequence
from typing import Final, Protocol

from octavo.text.tokenizers.decoder_plan import ByteLevelPlan, PiecePlan
from octavo.text.tokenizers.tokenizer import Tokenizer

#: Ids after which a decoder of an unknown kind gives up waiting for the end of a character.
_MAX_HELD_IDS: Final = 32


class IncrementalDetokenizer:
    """The detokenizer of one sample; used by one thread at a time. `finish` ends it."""

    __slots__ = ("_impl",)

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool = True, shown: frozenset[int] = frozenset()
    ) -> None:
        """`shown`: special tokens that are not skipped, because a parser reads them."""
        plan = tokenizer.decoder_plan
        self._impl: _Detokenizer
        if isinstance(plan, ByteLevelPlan):
            self._impl = _ByteLevelDetokenizer(tokenizer, plan, skip_special_tokens, shown)
        elif isinstance(plan, PiecePlan):
            self._impl = _PieceDetokenizer(tokenizer, plan, skip_special_tokens, shown)
        else:
            self._impl = _WindowDetokenizer(tokenizer, skip_special_tokens, shown)

    def push(self, ids: Sequence[int]) -> str:
        """The text that is certain with these ids."""
        return self._impl.push(ids)

    @property
    def num_held(self) -> int:
        """Whole characters that were pushed and not given out yet. Exact where their bytes are UTF-8."""
        return self._impl.num_held

    def finish(self) -> str:
        """The rest; an unfinished character becomes U+FFFD."""
        return self._impl.finish()


class _Detokenizer(Protocol):
    @property
    def num_held(self) -> int: ...

    def push(self, ids: Sequence[int]) -> str: ...

    def finish(self) -> str: ...


class _ByteLevelDetokenizer:
    __slots__ = ("_held", "_table")

    def __init__(
        self, tokenizer: Tokenizer, plan: ByteLevelPlan, skip_special_tokens: bool, shown: frozenset[int]
    ) -> None:
        self._table = tokenizer.piece_table(plan, skip_special_tokens, shown)
        self._held = b""

    def push(self, ids: Sequence[int]) -> str:
        data = self._held + b"".join(map(self._table.__getitem__, ids))
        text, used = utf_8_decode(data, "replace", False)
        self._held = data[used:]
        return text

    @property
    def num_held(self) -> int:
        return 0

    def finish(self) -> str:
        text, _ = utf_8_decode(self._held, "replace", True)
        self._held = b""
        return text


class _PieceDetokenizer:
    __slots__ = ("_first", "_run", "_strip", "_table", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, plan: PiecePlan, skip_special_tokens: bool, shown: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._table = tokenizer.piece_table(plan, skip_special_tokens, shown)
        self._first: PiecePlan | None = plan if plan.drop_first_spaces else None  # until the first token is seen
        self._strip = plan.strip_left  # spaces that may still be dropped from the start
        self._run = b""  # byte tokens not followed by another token yet

    def push(self, ids: Sequence[int]) -> str:
        texts: list[str] = []
        table, run = self._table, self._run
        for token_id in ids:
            piece = table[token_id]
            if piece is None:
                continue
            if self._first is not None:
                piece, self._first = self._first.first_piece(self._tokenizer.token(token_id) or ""), None
            if isinstance(piece, bytes):
                run += piece
                continue
            if run:
                texts.append(_decode_run(run))
                run = b""
            texts.append(piece)
        self._run = run
        return self._stripped("".join(texts))

    @property
    def num_held(self) -> int:
        return len(utf_8_decode(self._run, "replace", False)[0])

    def finish(self) -> str:
        text = _decode_run(self._run)
        self._run = b""
        return self._stripped(text)

    def _stripped(self, text: str) -> str:
        if not self._strip or not text:
            return text
        rest = text.lstrip(" ")
        num_dropped = min(len(text) - len(rest), self._strip)
        self._strip = 0 if rest else self._strip - num_dropped
        return text[num_dropped:]


def _decode_run(run: bytes) -> str:
    try:
        return run.decode("utf-8")
    except UnicodeDecodeError:
        return "\ufffd" * len(run)


class _WindowDetokenizer:
    """For decoders that `decoder_plan` does not know: decode a window of ids, give what it gained.

    Exact for decoders whose text of a prefix of the ids is a prefix of the text, as long as a character has
    at most `_MAX_HELD_IDS` tokens.
    """

    __slots__ = ("_context", "_fresh", "_skipped", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, shown: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids - shown if skip_special_tokens else frozenset[int]()
        self._context: list[int] = []  # ids whose text is out; they decide how the next begin
        self._fresh: list[int] = []  # ids whose text is not out

    def push(self, ids: Sequence[int]) -> str:
        self._fresh += [token_id for token_id in ids if token_id not in self._skipped]
        text = self._gain()
        if text.endswith("\ufffd") and len(self._fresh) < _MAX_HELD_IDS:
            return ""
        if text:
            self._context, self._fresh = self._fresh, []
        return text

    @property
    def num_held(self) -> int:
        return len(self._gain().rstrip("\ufffd")) if self._fresh else 0

    def finish(self) -> str:
        text = self._gain()
        self._fresh = []
        return text

    def _gain(self) -> str:
        decode = self._tokenizer.decode
        before = decode(self._context, False)
        return decode(self._context + self._fresh, False)[len(before) :]
