"""Reads one file of tensorizer (`*.tensors`): an index of tensors, and views of their bytes.

    "|TZR|" | u32 version | 32 bytes of flags | u64 size | 8 bytes | u64 number of tensors | u64 length of the index
    index, for each tensor: [u32 version] | name | u8 kind | type | shape | u64 header | u64 data | u64 bytes of data

Offsets count from the start of the file. A name is a u16 and so many bytes, a type a u8 and so many, a shape a u8 and
so many u32, or u64 in entries of version 5. In front of its data a tensor has a header, with the same and hashes of
header and data, which are looked at if that is asked for. Nothing in such a file is code.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.models.mapped_file import Entry, MappedFile

_MAGIC: Final = b"|TZR|"
_HEAD: Final = struct.Struct("<5sI32sQ8xQQ")
_VERSIONS: Final = range(1, 6)
#: In versions before there were flags, this one told that tensors are encrypted.
_ENCRYPTED_VERSION: Final = 3
_FLAGS_VERSION: Final = 4
_ENCRYPTED: Final = 1
_HAS_VERSIONS: Final = 2
#: From this version of an entry on, a size of its shape has 8 bytes.
_LONG_VERSION: Final = 5
_BUFFER: Final = 1
_CRC32, _SHA256 = 0, 1
_MAX_DIMS: Final = 8
_TYPES: Final = {
    "<f8": torch.float64, "<f4": torch.float32, "<f2": torch.float16, "<i8": torch.int64, "<i4": torch.int32,
    "<i2": torch.int16, "|i1": torch.int8, "|u1": torch.uint8, "|b1": torch.bool, "torch.bfloat16": torch.bfloat16,
    "torch.float8_e4m3fn": torch.float8_e4m3fn, "torch.float8_e5m2": torch.float8_e5m2,
    "torch.float8_e8m0fnu": torch.float8_e8m0fnu,
}  # fmt: skip
#: Tables of rotations, which modules keep as buffers: they follow from the configuration.
_TABLES: Final = re.compile(r".*\.rotary_emb\.\w+")


@dataclass(frozen=True, slots=True)
class _Entry(Entry):
    header: int
    is_long: bool


class TensorizerFile(MappedFile[_Entry]):
    """One file, mapped into memory. Raises `CheckpointError`, naming file and tensor, if it is damaged or encrypted."""

    format = "tensorizer"

    def __init__(self, path: Path, verify_hash: bool = False) -> None:
        """`verify_hash`: compare a tensor's bytes with their hashes when it is read, which reads them once more."""
        super().__init__(path)
        self._verify_hash = verify_hash
        try:
            self._entries = self._parse()
        except (struct.error, UnicodeDecodeError, IndexError):
            raise self._damaged("the index of tensors is cut off, or is none") from None

    def get(self, name: str) -> Tensor:
        if self._verify_hash:
            self._check_hashes(name, self._entries[name])
        return super().get(name)

    def _parse(self) -> dict[str, _Entry]:
        if len(self._map) < _HEAD.size or self._map[: len(_MAGIC)] != _MAGIC:
            raise CheckpointError(f"{self.path}: not a file of tensorizer")
        _, version, flag_bytes, _, count, length = _HEAD.unpack_from(self._map)
        flags = int.from_bytes(flag_bytes, "little") if version >= _FLAGS_VERSION else 0
        if version not in _VERSIONS or flags > _ENCRYPTED | _HAS_VERSIONS:
            raise CheckpointError(f"{self.path}: version {version} of tensorizer's format is not supported")
        if version == _ENCRYPTED_VERSION or flags & _ENCRYPTED:
            raise CheckpointError(
                f"{self.path}: its tensors are encrypted, which octavo does not read: decrypt it first"
            )
        if length > len(self._map) - _HEAD.size:
            raise self._damaged(f"an index of {length} bytes does not fit in a file of {len(self._map)}: truncated?")
        index = _Cursor(self._map[_HEAD.size : _HEAD.size + length])
        entries: dict[str, _Entry] = {}
        for _ in range(count):
            is_long = bool(flags & _HAS_VERSIONS) and int(index.one("<I")) >= _LONG_VERSION
            name = index.text("<H").removeprefix(".")  # a module without a name has its own tensors so
            kind = index.one("<B")
            entry = self._entry(name, index, is_long)
            if name in entries:
                raise self._damaged(f"tensor {name[:200]!r} is there twice")
            if kind != _BUFFER or not _TABLES.fullmatch(name):
                entries[name] = entry
        return entries

    def _entry(self, name: str, index: _Cursor, is_long: bool) -> _Entry:
        where = f"tensor {name[:200]!r}"
        stored = index.text("<B")
        shape = index.sizes(is_long)
        header, begin, length = index.one("<Q"), index.one("<Q"), index.one("<Q")
        dtype = _TYPES.get(stored.rpartition("\0")[2])
        if dtype is None:
            raise CheckpointError(f"{self.path}: {where}: the type {stored[:40]!r} is not supported")
        if begin + length > len(self._map) or header >= begin:
            raise self._damaged(f"{where} ends at byte {begin + length} of a file of {len(self._map)}: truncated?")
        nbytes = math.prod(shape) * dtype.itemsize
        if len(shape) > _MAX_DIMS or nbytes != length:
            what = "has no data: it was saved from the device meta" if not length else f"holds {length} bytes"
            raise self._damaged(f"{where} of {list(shape[:_MAX_DIMS])} {stored.rpartition(chr(0))[2]} {what}")
        return _Entry(dtype, shape, begin, begin + length, header, is_long)

    def _check_hashes(self, name: str, entry: _Entry) -> None:
        """Of its header, in which they count as zeros, and its data."""
        try:
            header = bytearray(self._map[entry.header : entry.begin])
            cursor = _Cursor(header)
            cursor.skip(8 + 2 + 1)  # length, module, kind
            cursor.text("<H")
            cursor.text("<B")
            cursor.sizes(entry.is_long)
            cursor.skip(2)
            hashes = []
            for _ in range(cursor.one("<B")):
                kind, size = cursor.one("<B"), cursor.one("<B")
                hashes.append((kind, cursor.take(size)))
                header[cursor.at - size : cursor.at] = bytes(size)
        except (struct.error, UnicodeDecodeError, IndexError):
            raise self._damaged(f"the header of tensor {name[:200]!r} is cut off, or is none") from None
        if not hashes:
            raise self._damaged(f"tensor {name[:200]!r} has no hash that could be compared")
        data = memoryview(self._map)[entry.begin : entry.end]
        for kind, stored in hashes:
            if (made := _HASHES.get(kind)) is None or made(header, data) != stored:
                raise self._damaged(f"the bytes of tensor {name[:200]!r} are not those of their hash")


_HASHES: Final[dict[int, Callable[[bytes | bytearray, memoryview], bytes]]] = {
    _CRC32: lambda header, data: zlib.crc32(data, zlib.crc32(header)).to_bytes(4, "little"),
    _SHA256: lambda header, data: hashlib.sha256(bytes(header) + bytes(data)).digest(),
}


class _Cursor:
    """Reads one field of a structure after the other. Raises `struct.error` or IndexError at its end."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self.at = 0

    def skip(self, count: int) -> None:
        self.at += count

    def one(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self._data, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def take(self, count: int) -> bytes:
        if self.at + count > len(self._data):
            raise IndexError
        self.at += count
        return bytes(self._data[self.at - count : self.at])

    def text(self, length_form: str) -> str:
        return self.take(self.one(length_form)).decode()

    def sizes(self, is_long: bool) -> tuple[int, ...]:
        return tuple(self.one("<Q" if is_long else "<I") for _ in range(self.one("<B")))
