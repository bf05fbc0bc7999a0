"""Text that arrives in pieces, for parsers that are written as if it were all there.

A parser is a generator: it asks the source for what it needs next, and where that has not arrived it yields and is
resumed with more. What it decides depends on the text alone and never on how the text was cut: each question here is
answered only when no further text could change the answer.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator, Iterable
from functools import lru_cache
from typing import Final, TypeVar

T = TypeVar("T")
#: A parser, or a part of one: yields when it needs more text, returns its result.
Steps = Generator[None, None, T]

BLANKS: Final = " \t\r\n"
_BLANKS: Final = re.compile(r"[ \t\r\n]*")


class Malformed(Exception):
    """The text is not what the parser expected."""


class Unfinished(Malformed):
    """The text ended where the parser expected more."""


class Marks:
    """Texts to look for. Of several that begin at one place the longest counts."""

    __slots__ = ("_pattern", "texts")

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(sorted({text for text in texts if text}, key=len, reverse=True))
        self._pattern = re.compile("|".join(map(re.escape, self.texts))) if self.texts else None

    @property
    def max_size(self) -> int:
        return len(self.texts[0]) if self.texts else 0

    def find(self, text: str, start: int, end: int = sys.maxsize, *, is_whole: bool) -> int | None:
        """Where the first mark between `start` and `end` begins.

        is_whole: nothing follows `text`. Else a mark does not count while a longer one that begins before it may
        still turn out to be there.
        """
        found = self._pattern.search(text, start, end) if self._pattern is not None else None
        if found is None or (not is_whole and len(text) - self.num_held(text, start) < found.start()):
            return None
        return found.start()

    def num_held(self, text: str, start: int) -> int:
        """Characters at the end of `text` that may turn out to begin a mark."""
        most = 0
        for mark in self.texts:
            for size in range(min(len(mark) - 1, len(text) - start), most, -1):
                if text.endswith(mark[:size]):
                    most = size
                    break
        return most


@lru_cache(maxsize=256)
def marks(*texts: str) -> Marks:
    return Marks(texts)


class Source:
    """`feed` adds text, `end` says that no more follows; everything else is for the parser that reads it.

    What was consumed is gone, unless it is being recorded. `is_truncated`: the text was cut off, by a limit and not by
    its author.
    """

    __slots__ = ("_pos", "_record", "_text", "is_ended", "is_truncated", "num_consumed")

    def __init__(self) -> None:
        self._text = ""
        self._pos = 0
        self._record: list[str] | None = None
        self.num_consumed = 0  # characters
        self.is_ended = False
        self.is_truncated = False

    def feed(self, text: str) -> None:
        self._text = self._text[self._pos :] + text
        self._pos = 0

    def end(self, *, truncated: bool) -> None:
        self.is_ended, self.is_truncated = True, truncated

    # ------------------------------------------------------------ consuming
    def take(self, size: int) -> str:
        """Consume what a question has shown to be there."""
        text = self._text[self._pos : self._pos + size]
        self._pos += len(text)
        self.num_consumed += len(text)
        if self._record is not None:
            self._record.append(text)
        return text

    def take_rest(self) -> str:
        """Consume all that has arrived."""
        return self.take(len(self._text) - self._pos)

    def record(self) -> None:
        """Keep what is consumed from here on."""
        self._record = []

    @property
    def is_recording(self) -> bool:
        return self._record is not None

    def recorded(self) -> str:
        """What was consumed since `record`; recording ends."""
        text = "".join(self._record or ())
        self._record = None
        return text

    def rewind(self) -> None:
        """Give back what was consumed since `record`: it is to be read again. Recording ends."""
        text = self.recorded()
        self.num_consumed -= len(text)
        # Of what was consumed, `_text` still holds that which arrived with the last piece.
        if (num_gone := len(text) - self._pos) > 0:
            self._text = text[:num_gone] + self._text
            self._pos = 0
        else:
            self._pos -= len(text)

    # ------------------------------------------------------------ questions
    def peek(self, size: int = 1) -> Steps[str]:
        """The next characters; fewer than `size` only at the end of the text."""
        while len(self._text) - self._pos < size and not self.is_ended:
            yield
        return self._text[self._pos : self._pos + size]

    def run(self, pattern: re.Pattern[str]) -> str:
        """Consume what has arrived as far as `pattern`, a repeated class of characters, matches it. Never waits."""
        found = pattern.match(self._text, self._pos)
        return self.take(found.end() - self._pos) if found is not None else ""

    def peek_run(self, pattern: re.Pattern[str], limit: int) -> Steps[str]:
        """The text as far as `pattern`, a repeated class of characters, matches it.

        Raises `Malformed` where that is more than `limit` characters.
        """
        while True:
            found = pattern.match(self._text, self._pos, self._pos + limit + 1)
            end = found.end() if found is not None else self._pos
            if end - self._pos > limit:
                raise Malformed
            if end < len(self._text) or self.is_ended:
                return self._text[self._pos : end]
            yield

    def run_of(self, pattern: re.Pattern[str], limit: int) -> Steps[str]:
        """`peek_run`, consumed."""
        return self.take(len((yield from self.peek_run(pattern, limit))))

    def ends_after(self, size: int) -> Steps[bool]:
        """Whether no more than `size` characters follow."""
        return len((yield from self.peek(size + 1))) <= size

    def at(self, mark: str) -> Steps[bool]:
        """Whether the text goes on with `mark`."""
        while True:
            text = self._text[self._pos : self._pos + len(mark)]
            if text == mark:
                return True
            if self.is_ended or not mark.startswith(text):
                return False
            yield

    def at_any(self, wanted: Marks) -> Steps[str | None]:
        """The longest of the marks with which the text goes on."""
        for mark in wanted.texts:
            if (yield from self.at(mark)):
                return mark
        return None

    def accept(self, mark: str) -> Steps[bool]:
        """Consume `mark` if the text goes on with it."""
        if not (yield from self.at(mark)):
            return False
        self.take(len(mark))
        return True

    def accept_any(self, wanted: Marks) -> Steps[str | None]:
        mark = yield from self.at_any(wanted)
        if mark is not None:
            self.take(len(mark))
        return mark

    def accept_cut_off(self, wanted: Marks) -> bool:
        """Consume the beginning of one of the marks, if the text ends with it. For when `at_any` has found none."""
        if not self.is_ended or len(self._text) - self._pos >= wanted.max_size:
            return False
        rest = self._text[self._pos :]
        if not any(mark.startswith(rest) for mark in wanted.texts):
            return False
        return bool(self.take(len(rest)))

    def expect(self, mark: str) -> Steps[None]:
        """Consume `mark`. Raises `Malformed`."""
        if not (yield from self.accept(mark)):
            raise (yield from self.failure(mark))

    def failure(self, *expected: str) -> Steps[Malformed]:
        """What to raise where the text goes on with none of the marks, each of which was asked for."""
        is_over = yield from self.is_over()
        return Unfinished() if is_over or self.is_cut_within(*expected) else Malformed()

    def is_cut_within(self, *expected: str) -> bool:
        """Whether the text was cut off where it began one of the marks, each of which was asked for."""
        rest = self._text[self._pos : self._pos + max(map(len, expected))]
        return self.is_truncated and bool(rest) and any(mark != rest and mark.startswith(rest) for mark in expected)

    def is_over(self) -> Steps[bool]:
        """Whether nothing follows."""
        return not (yield from self.peek())

    def skip_blanks(self) -> Steps[None]:
        while True:
            self.run(_BLANKS)
            if self._pos < len(self._text) or self.is_ended:
                return
            yield

    def copy_until(
        self, wanted: Marks, emit: Callable[[str], None], *, drops_cut_mark: bool = False
    ) -> Steps[str | None]:
        """Pass on the text before the first of the marks, which is returned and not consumed; None: the text ended.

        `drops_cut_mark`: when the text was cut off where it may have begun a mark, that is not passed on, unless the
        mark begins with a letter or a digit.
        """
        while True:
            start = wanted.find(self._text, self._pos, is_whole=self.is_ended)
            if start is not None:
                if start > self._pos:
                    emit(self.take(start - self._pos))
                return (yield from self.at_any(wanted))
            held = 0 if self.is_ended else wanted.num_held(self._text, self._pos)
            if self.is_truncated and drops_cut_mark:
                held = wanted.num_held(self._text, self._pos)
                if held and self._text[-held].isalnum():  # a word, rather than the beginning of a mark
                    held = 0
            if size := len(self._text) - self._pos - held:
                emit(self.take(size))
            if self.is_ended:
                self.take(held)
                return None
            yield

    def text_until(self, wanted: Marks, limit: int) -> Steps[str]:
        """Consume and return the text before the first of the marks.

        Raises `Malformed` when there is none within `limit` characters; then nothing was consumed.
        """
        reach = limit + wanted.max_size
        while True:
            start = wanted.find(self._text, self._pos, self._pos + reach, is_whole=self.is_ended)
            if start is not None and start - self._pos <= limit:
                return self.take(start - self._pos)
            if len(self._text) - self._pos >= reach:
                raise Malformed
            if self.is_ended:
                raise Unfinished
            yield
