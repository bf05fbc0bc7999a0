"""Reads the vocabulary files of SentencePiece (`*.model`). Standard library only.

The file is one protobuf message. Of its fields these are read; the numbers are the format's own:

    1 pieces            1 text | 2 score (float32) | 3 kind
    2 trainer_spec      3 kind of model | 24 spaces end words | 35 byte fallback
    3 normalizer_spec   2 character map | 3 dummy prefix | 4 removal of extra spaces | 5 spaces as U+2581

The file is not trusted: each length is compared with the bytes that are left.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from octavo.base.errors import CheckpointError
from octavo.files.reading import MAX_VOCABULARY_BYTES, read_bytes

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES: Final = 10


class PieceKind(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelKind(IntEnum):
    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    score: float
    kind: PieceKind


@dataclass(frozen=True, slots=True)
class SentencePieceFile:
    """What a `.model` file says. A piece's id is its place in `pieces`."""

    pieces: tuple[Piece, ...]
    kind: ModelKind
    byte_fallback: bool
    spaces_end_words: bool  # U+2581 stands behind a word, not before it
    character_map: bytes  # b"": text stays as it is
    add_dummy_prefix: bool
    remove_extra_spaces: bool
    escape_spaces: bool


class _Damaged(Exception):
    """The bytes contradict the format; `read_sentencepiece` adds the file's name."""


def is_sentencepiece(path: Path) -> bool:
    """Whether the file begins as one of SentencePiece's does: with a first piece. Raises `OSError`."""
    with path.open("rb") as file:
        return file.read(1) == b"\x0a"


def read_sentencepiece(path: Path) -> SentencePieceFile:
    """Raises `CheckpointError` for a file that cannot be read or is damaged."""
    try:
        return _read(read_bytes(path, MAX_VOCABULARY_BYTES))
    except _Damaged as damage:
        raise CheckpointError(f"{path}: damaged SentencePiece file: {damage}") from None


def _read(data: bytes) -> SentencePieceFile:
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    missing = {2: "its trainer's settings", 3: "its normalizer's settings"}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_message(value), len(pieces)))
        elif number == 2:
            trainer |= dict(_fields(_message(value)))
        elif number == 3:
            normalizer |= dict(_fields(_message(value)))
        missing.pop(number, None)
    if not pieces:
        raise _Damaged("it holds no pieces")
    for what in missing.values():
        raise _Damaged(f"{what} are missing; truncated?")
    return SentencePieceFile(
        pieces=tuple(pieces),
        kind=_model_kind(trainer),
        byte_fallback=_flag(trainer, 35, False),
        spaces_end_words=_flag(trainer, 24, False),
        character_map=_message(normalizer.get(2, b"")),
        add_dummy_prefix=_flag(normalizer, 3, True),
        remove_extra_spaces=_flag(normalizer, 4, True),
        escape_spaces=_flag(normalizer, 5, True),
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a message's fields; fixed widths come as bytes."""
    pos = 0
    while pos < len(data):
        key, pos = _varint(data, pos)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, pos = _varint(data, pos)
            yield number, value
            continue
        if wire == _BYTES:
            size, pos = _varint(data, pos)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise _Damaged(f"wire type {wire} at byte {pos}")
        if size > len(data) - pos:
            raise _Damaged(f"a field of {size} bytes passes the end; truncated?")
        yield number, data[pos : pos + size]
        pos += size


def _varint(data: bytes, pos: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(data[pos : pos + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, pos + i + 1
    raise _Damaged(f"a number without end at byte {pos}; truncated?")


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise _Damaged("a number where a message belongs")
    return value


def _flag(fields: dict[int, int | bytes], number: int, default: bool) -> bool:
    return bool(fields.get(number, default))


def _model_kind(trainer: dict[int, int | bytes]) -> ModelKind:
    kind = trainer.get(3, ModelKind.UNIGRAM)
    try:
        return ModelKind(kind)  # type: ignore[arg-type]
    except ValueError:
        raise _Damaged(f"its kind of model is {str(kind)[:40]}") from None


def _piece(data: bytes, index: int) -> Piece:
    text, score, kind = b"", 0.0, int(PieceKind.NORMAL)
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    try:
        return Piece(text.decode("utf-8"), score, PieceKind(kind))
    except UnicodeDecodeError:
        raise _Damaged(f"piece {index} is not UTF-8") from None
    except ValueError:
        raise _Damaged(f"piece {index} is of kind {kind}") from None
