"""From a prompt's text with placeholders to tokens whose rows are those of its media."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from octavo.base.errors import InvalidRequest
from octavo.base.media import NUMBER, MediaItem, PreparedMedia, place_media, placeholder_pattern


@dataclass(frozen=True, slots=True)
class Mark:
    """A medium at its place: `kind` is what the template calls it."""

    kind: str
    prepared: PreparedMedia


class MediaText:
    """What stands for media in the prompts of one model."""

    def __init__(
        self,
        placeholders: Mapping[str, tuple[str, int]],
        *,
        shown: Mapping[str, str] | None = None,
        brings_bos: bool = False,
        end_ids: Sequence[int] = (),
    ) -> None:
        """`placeholders`: kind -> what stands for a medium in a template's text, and the token of each of its rows.
        `shown`: where templates write more than that for a medium, what they write. `brings_bos`: the text of a medium
        has the token that prompts begin with: media stand in front. `end_ids`: what a prompt with media ends with, when
        an answer is to begin."""
        self.brings_bos = brings_bos
        self.end_ids = list(end_ids)
        self.placeholders = {kind: text for kind, (text, _) in placeholders.items()}
        #: What is written for a medium where a template knows none.
        self.shown = {**self.placeholders, **(shown or {})}
        self._ids = {kind: token for kind, (_, token) in placeholders.items()}
        by_length = sorted(self.placeholders.items(), key=lambda item: len(item[1]), reverse=True)
        self._pattern = re.compile("|".join(f"(?P<{kind}>{placeholder_pattern(text)})" for kind, text in by_length))

    def expanded(self, text: str, marks: Sequence[Mark], param: str) -> str:
        """The text of a prompt with what stands for each medium in place of its placeholder.

        Raises `InvalidRequest` where there are more placeholders than media, or fewer; but a text with none has its
        media in front, where they stand there anyway.
        """
        waiting = {kind: _texts(marks, kind) for kind in self.placeholders}
        found = Counter(place.lastgroup for place in self._pattern.finditer(text))
        if self.brings_bos and not found:
            text = "".join(self.placeholders[mark.kind] for mark in marks) + text
            found = Counter(place.lastgroup for place in self._pattern.finditer(text))
        for kind, placeholder in self.placeholders.items():
            if found[kind] != len(waiting[kind]):
                raise InvalidRequest(
                    f"The prompt has `{placeholder}` {found[kind]} times, each for one {kind}, and there are "
                    f"{len(waiting[kind])}.",
                    param,
                )
        given: Counter[str] = Counter()

        def expanded(place: re.Match[str]) -> str:
            kind = place.lastgroup or ""
            given[kind] += 1
            own, numbered = self.placeholders[kind], self.placeholders[kind].replace(NUMBER, str(given[kind]))
            if place[0] not in (own, numbered):
                raise InvalidRequest(f"The prompt has `{place[0]}` where `{numbered}` comes next.", param)
            return waiting[kind].pop()

        return self._pattern.sub(expanded, text)

    def placed(self, ids: Sequence[int], marks: Sequence[Mark], param: str) -> tuple[MediaItem, ...]:
        """Which tokens of a prompt the rows of each medium replace. Raises `InvalidRequest`."""
        try:
            items = [
                item
                for kind, token in self._ids.items()
                if (own := [mark.prepared for mark in marks if mark.kind == kind])
                for item in place_media(ids, token, own)
            ]
        except ValueError:
            raise InvalidRequest(
                "The text has tokens that stand for media, beside those of its media.", param
            ) from None
        return tuple(sorted(items, key=lambda item: item.offset))

    def expanded_ids(self, ids: Sequence[int], marks: Sequence[Mark], encode: Callable[[str], list[int]]) -> list[int]:
        """The same of a prompt that was given as ids, in which a medium is the tokens of its placeholder, or where that
        is no token, the one that stands for a row."""
        waiting: list[tuple[list[int], list[str]]] = []
        for kind, placeholder in self.placeholders.items():
            texts = _texts(marks, kind)
            found = encode(placeholder)
            waiting.append((found, texts))
            if len(found) != 1:
                waiting.append(([self._ids[kind]], texts))
        new: list[int] = []
        at = 0
        while at < len(ids):
            for tokens, texts in waiting:
                if tokens and texts and list(ids[at : at + len(tokens)]) == tokens:
                    new += encode(texts.pop())
                    at += len(tokens)
                    break
            else:
                new.append(ids[at])
                at += 1
        return new


def _texts(marks: Sequence[Mark], kind: str) -> list[str]:
    """What stands for the media of a kind, the last one first."""
    own = [mark.prepared.text for mark in marks if mark.kind == kind]
    return [text.replace(NUMBER, str(number)) for number, text in enumerate(own)][::-1]
