"""Media of a prompt as plain data: what a family's processor makes of an image, and what the engine encodes.

    picture --decode--> pixels --processor--> PreparedMedia: arrays, and the text that stands for it
                                                  |  text goes into the prompt, the prompt becomes token ids
                                                  v
                                              MediaItem: the arrays, and which tokens of the prompt its rows replace

Rows of an item are what the language model reads in place of the embeddings of placeholder tokens, one a token. Where
other tokens stand between the placeholders of one item (a mark at the end of each line of a picture), its rows are
cut into several spans. Where an item with a grid has a span for each of its times, each is a picture of its own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

#: In a family's placeholder the number of the medium, from 1 on; in the text that stands for it, from 0 on.
NUMBER: Final = "{n}"

#: "embeds": rows that are ready; the arrays hold them as "rows", [rows, hidden size].
MediaKind = Literal["image", "video", "audio", "embeds"]


class MediaTensor(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An array in C order, little endian. `dtype`: numpy's name of it, such as "uint8" or "float32"."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


class PreparedMedia(msgspec.Struct, frozen=True, gc=False):
    """One picture or sound as a family's processor hands it over; it may be used in many prompts."""

    kind: MediaKind
    digest: bytes
    tensors: dict[str, MediaTensor]
    rows: int  # how many placeholder tokens `text` holds
    text: str  # what stands in the prompt's text in place of the family's placeholder
    grid: tuple[int, int, int] | None = None  # of positions with three parts: times, lines, columns of the rows
    time_step: float = 1.0  # by so much the first part rises from one of the times to the next, rounded down


class MediaItem(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One picture or sound of a prompt.

    Equal digests of one kind mean equal arrays, made in the same way. `spans`: (first token, number of tokens), in
    order and apart from each other; the first row goes to the first token of the first span.
    """

    kind: MediaKind
    digest: bytes
    tensors: dict[str, MediaTensor]
    spans: tuple[tuple[int, int], ...]
    grid: tuple[int, int, int] | None = None
    time_step: float = 1.0

    @property
    def offset(self) -> int:
        """The first token that it replaces."""
        return self.spans[0][0]

    @property
    def end(self) -> int:
        """The token behind the last that it replaces."""
        start, length = self.spans[-1]
        return start + length

    @property
    def rows(self) -> int:
        return sum(length for _, length in self.spans)

    @property
    def size(self) -> int:
        """By which the work of encoding it is measured: patches of pictures, frames of sounds; 0: there is none."""
        if "frames" in self.tensors:
            return self.tensors["frames"].shape[0]
        given = (self.tensors[name].shape for name in ("values", "patches") if name in self.tensors)
        return sum(shape[0] * shape[1] for shape in given)

    @property
    def num_sequences(self) -> int:
        """So many parts of it are encoded each by itself."""
        for name in ("lens", "pieces"):
            if name in self.tensors:
                return self.tensors[name].shape[0]
        given = (self.tensors[name].shape for name in ("values", "patches") if name in self.tensors)
        return sum(shape[0] for shape in given)

    def time_refusal(self, max_positions: int) -> str | None:
        """Why its rows have no positions below `max_positions`: they go by what a file says of its length. None: they
        have."""
        steps = 0 if self.grid is None else self.grid[0] // len(self.spans) - 1
        if 0 <= self.offset + steps * self.time_step < max_positions:
            return None
        return (
            f"A video's last frames are at position {self.offset + steps * self.time_step:g} in time, and the context "
            f"has {max_positions}: show a part of it."
        )


def placeholder_pattern(placeholder: str) -> str:
    """A regular expression: in the place of a number a number may stand, or nothing that tells it yet."""
    return rf"(?:\d+|{re.escape(NUMBER)})".join(map(re.escape, placeholder.split(NUMBER)))


def media_digest(
    kind: MediaKind, tensors: Mapping[str, MediaTensor], grid: tuple[int, int, int] | None, time_step: float = 1.0
) -> bytes:
    """SHA-256 of all that the rows of an item follow from, and their positions."""
    digest = hashlib.sha256(msgspec.msgpack.encode((kind, grid, time_step)))
    for name, tensor in sorted(tensors.items()):
        digest.update(msgspec.msgpack.encode((name, tensor.dtype, tensor.shape)))
        digest.update(tensor.data)
    return digest.digest()


def place_media(token_ids: Sequence[int], placeholder_id: int, media: Sequence[PreparedMedia]) -> tuple[MediaItem, ...]:
    """The items of a prompt whose tokens hold one placeholder a row, in the order of `media`.

    Raises ValueError where there are more or fewer placeholders than rows: a text that the user wrote may hold some.
    """
    places = [at for at, token in enumerate(token_ids) if token == placeholder_id]
    wanted = sum(each.rows for each in media)
    if len(places) != wanted:
        raise ValueError(f"the prompt has {len(places)} placeholder tokens, and its media {wanted} rows")
    items, first = [], 0
    for each in media:
        own = places[first : first + each.rows]
        items.append(MediaItem(each.kind, each.digest, each.tensors, _runs(own), each.grid, each.time_step))
        first += each.rows
    return tuple(items)


def _runs(places: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(start, length) of the runs of rising numbers."""
    runs: list[tuple[int, int]] = []
    for at in places:
        if runs and sum(runs[-1]) == at:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((at, 1))
    return tuple(runs)
