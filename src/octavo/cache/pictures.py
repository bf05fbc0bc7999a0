"""Where rows of a request's pictures lie in the blocks of layers that see them beside the text, and which a token sees.

A token sees the pictures that stand before it, back to the last text: one, or all of those that follow each other.
What tokens in front of the first picture see is what transformers lets them see, all rows, those of padding included;
the MLP behind it adds nothing for them. Of a request without pictures the only row is zeros.

    text a  <1> text b  <2><3> text c          b sees 1, and c sees 2 and 3
    blocks  | 1 1 1 1 | 1 1 . . | 2 2 2 3 | 3 3 3 . | 1 1 3 3 | 3 P P P |     P: padding
                                                       ^ copies of what stands in blocks that are not full, which would
                                                         be gaps in what `a` sees: the full blocks, and these
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from octavo.base.media import MediaItem


@dataclass(frozen=True, slots=True)
class Picture:
    token: int  # the one that it stands at
    num_seen: int  # the first rows, which are no padding


@dataclass(frozen=True, slots=True)
class View:
    """What tokens see, from one on to that of the next view."""

    first_token: int
    blocks: tuple[int, ...]  # places among the request's blocks of a group
    num_rows: int
    is_muted: bool = False  # no picture stands before these tokens


@dataclass(frozen=True, slots=True)
class PictureRows:
    """`source`: of each place in the blocks the row that lies there, of all pictures' one behind the other; those of
    the gaps are never seen."""

    source: tuple[int, ...]
    views: tuple[View, ...]  # in the order of the tokens, the first from token 0 on


def pictures_of(media: Sequence[MediaItem], tile_rows: int) -> list[Picture]:
    """`tile_rows`: rows of a tile, of which a picture has as many as there are patches of."""
    return [Picture(item.offset, item.tensors["patches"].shape[0] * tile_rows) for item in media]


NO_PICTURES: Final = PictureRows((0,), (View(0, (0,), 1, is_muted=True),))


def picture_rows(pictures: Sequence[Picture], num_rows: int, block_size: int) -> PictureRows:
    """`pictures`: of a request, in order. `num_rows`: of each, with its padding."""
    if not pictures:
        return NO_PICTURES
    source: list[int] = []
    views: list[View] = []
    full: list[int] = []  # blocks
    rest: list[int] = []  # rows that lie in no full block
    for run in _runs(pictures):
        first_block, rows = len(source) // block_size, list[int]()
        for number in run:
            rows += range(number * num_rows, number * num_rows + pictures[number].num_seen)
            blocks = range(first_block, first_block + -(-len(rows) // block_size))
            views.append(View(pictures[number].token, tuple(blocks), len(rows)))
        num_full = len(rows) // block_size
        full += range(first_block, first_block + num_full)
        rest += rows[num_full * block_size :]
        source += rows + [0] * (-len(rows) % block_size)
    if pictures[0].token:
        for number, picture in enumerate(pictures):
            rest += range(number * num_rows + picture.num_seen, (number + 1) * num_rows)
        first_block = len(source) // block_size
        own = range(first_block, first_block + -(-len(rest) // block_size))
        views.insert(0, View(0, (*full, *own), len(full) * block_size + len(rest), is_muted=True))
        source += rest
    return PictureRows(tuple(source), tuple(views))


def most_places(num_pictures: int, num_rows: int, block_size: int) -> int:
    """In the blocks of a group, of a request with so many pictures."""
    return num_pictures * (num_rows + 2 * block_size)


def _runs(pictures: Sequence[Picture]) -> Iterator[list[int]]:
    """The numbers of pictures that follow each other."""
    run: list[int] = []
    for number, picture in enumerate(pictures):
        if run and picture.token != pictures[number - 1].token + 1:
            yield run
            run = []
        run.append(number)
    yield run
