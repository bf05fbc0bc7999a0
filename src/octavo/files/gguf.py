"""Reads GGUF files: metadata and the place of each tensor. Standard library only.

    magic "GGUF" | u32 version | u64 tensor count | u64 metadata count
    metadata count x (string key, u32 type, value)
    tensor count x (string name, u32 n_dims, u64 dims[n_dims] innermost first, u32 type, u64 offset)
    padding to the alignment | tensor data, offsets count from here

The file is not trusted: each count and length is compared with the bytes that are left before anything is
made of it, so that a damaged file is one `CheckpointError` and costs no memory. What the numbers inside a
tensor mean is not known here; see `octavo.quant.gguf_types`.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from octavo.base.errors import CheckpointError

MAX_DIMS: Final = 4
MAX_NAME_BYTES: Final = 65_535
MAX_ARRAY_DEPTH: Final = 4
DEFAULT_ALIGNMENT: Final = 32
MAX_ALIGNMENT: Final = 1 << 20

_STRING: Final = 8
_ARRAY: Final = 9
# Metadata value type -> struct code of one value. Bool is a byte.
_SCALARS: Final[dict[int, str]] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip

# Tensor type -> (name, values in a block, bytes of a block). Types that exist only while computing
# (Q8_1, Q8_K) and those withdrawn from the format are absent: a file with them is refused.
TENSOR_TYPES: Final[dict[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the file. `shape` is outermost first, `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    type_name: str
    offset: int
    nbytes: int


class _Damaged(Exception):
    """Something in the file contradicts the format; `GGUFFile` adds the file's name."""


class _Cursor:
    """Reads forward through the file. `place` says what is being read, for messages."""

    def __init__(self, buffer: mmap.mmap) -> None:
        self.buffer = buffer
        self.size = len(buffer)
        self.pos = 0
        self.place = "the header"

    def scalar(self, code: str) -> Any:
        end = self.pos + struct.calcsize("<" + code)
        if end > self.size:
            raise _Damaged(f"the file ends inside {self.place}")
        (value,) = struct.unpack_from("<" + code, self.buffer, self.pos)
        self.pos = end
        return value

    def count(self, what: str, min_bytes: int) -> int:
        """A u64 that says how many things of at least `min_bytes` follow."""
        number: int = self.scalar("Q")
        if number * min_bytes > self.size - self.pos:
            raise _Damaged(f"{self.place}: {number} {what} do not fit in the {self.size - self.pos} bytes left")
        return number

    def name(self) -> str:
        length = self.count("bytes of a name", 1)
        if length > MAX_NAME_BYTES:
            raise _Damaged(f"{self.place}: a name of {length} bytes")
        raw = self.buffer[self.pos : self.pos + length]
        self.pos += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise _Damaged(f"{self.place}: the name {raw[:64]!r} is not UTF-8") from None

    def strings(self, count: int) -> list[str]:
        """`count` strings. Written flat: a vocabulary has 10^5 of them, and start-up waits for this loop."""
        buffer, size, pos = self.buffer, self.size, self.pos
        unpack = struct.Struct("<Q").unpack_from
        out: list[str] = []
        append = out.append
        try:
            for _ in range(count):
                (length,) = unpack(buffer, pos)
                pos += 8
                end = pos + length
                if end > size:
                    raise _Damaged(f"{self.place}: a string of {length} bytes passes the end of the file")
                append(str(buffer[pos:end], "utf-8", "replace"))
                pos = end
        except struct.error:
            raise _Damaged(f"the file ends inside {self.place}") from None
        self.pos = pos
        return out

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.strings(1)[0]
        if kind == _ARRAY:
            return self.array(depth)
        if kind not in _SCALARS:
            raise _Damaged(f"{self.place}: unknown value type {kind}")
        return self.scalar(_SCALARS[kind])

    def array(self, depth: int) -> list[Any]:
        if depth >= MAX_ARRAY_DEPTH:
            raise _Damaged(f"{self.place}: arrays nested deeper than {MAX_ARRAY_DEPTH}")
        kind = self.scalar("I")
        if kind == _STRING:
            return list(self.strings(self.count("strings", 8)))
        if kind == _ARRAY:
            return [self.value(_ARRAY, depth + 1) for _ in range(self.count("arrays", 12))]
        if kind not in _SCALARS:
            raise _Damaged(f"{self.place}: unknown element type {kind}")
        code = _SCALARS[kind]
        count = self.count("elements", struct.calcsize("<" + code))
        values = struct.unpack_from(f"<{count}{code}", self.buffer, self.pos)
        self.pos += count * struct.calcsize("<" + code)
        return list(values)


class GGUFFile:
    """A GGUF file, mapped into memory. Raises `CheckpointError` if it is missing or damaged in any way.

    `metadata`: key -> int, float, bool, str or list. `tensors`: name -> `TensorInfo`, in the file's order.
    Views from `data` are valid until `close`; they show the file's pages, nothing is copied.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                # A private mapping: the pages are the page cache's, yet the buffer counts as writable, which
                # torch asks of memory that it wraps. Nobody writes to it.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "the file is empty"
            raise CheckpointError(f"{self.path}: cannot be read: {reason}") from None
        try:
            self.metadata, self.tensors = _parse(_Cursor(self._map))
        except _Damaged as damage:
            self._map.close()
            raise CheckpointError(f"{self.path}: damaged or unsupported GGUF file: {damage}") from None

    def data(self, info: TensorInfo) -> memoryview:
        """The bytes of one tensor of this file."""
        return memoryview(self._map)[info.offset : info.offset + info.nbytes]

    def close(self) -> None:
        """Unmap the file; while views of it live, the mapping stays until the last one is gone."""
        try:
            self._map.close()
        except BufferError:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _parse(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    magic = cursor.buffer[:4]
    if magic != b"GGUF":
        raise _Damaged(f"the magic is {magic!r}, not b'GGUF'")
    cursor.pos = 4
    version = cursor.scalar("I")
    if version not in (2, 3):
        hint = " (a big-endian file?)" if version in (0x02000000, 0x03000000) else ""
        raise _Damaged(f"version {version} is not 2 or 3{hint}")
    num_tensors = cursor.count("tensors", 24)
    num_metadata = cursor.count("metadata entries", 13)
    metadata = _parse_metadata(cursor, num_metadata)
    return metadata, _parse_tensors(cursor, num_tensors, _alignment(metadata))


def _parse_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(count):
        cursor.place = f"metadata entry {index}"
        key = cursor.name()
        if key in metadata:
            raise _Damaged(f"the metadata key {key!r} occurs twice")
        cursor.place = f"metadata {key!r}"
        metadata[key] = cursor.value(cursor.scalar("I"))
    return metadata


def _alignment(metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise _Damaged(f"general.alignment is {str(alignment)[:40]}, not a power of two")
    return alignment


def _parse_tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, TensorInfo]:
    found: dict[str, TensorInfo] = {}
    for index in range(count):
        cursor.place = f"the entry of tensor {index}"
        name = cursor.name()
        if name in found:
            raise _Damaged(f"the tensor {name!r} occurs twice")
        cursor.place = f"the entry of tensor {name!r}"
        found[name] = _parse_tensor(cursor, name)
    data_start = -(-cursor.pos // alignment) * alignment
    placed: dict[str, TensorInfo] = {}
    for name, info in found.items():
        if info.offset % alignment:
            raise _Damaged(f"tensor {name!r}: offset {info.offset} is not a multiple of {alignment}")
        begin = data_start + info.offset
        if begin + info.nbytes > cursor.size:
            raise _Damaged(
                f"tensor {name!r}: its {info.nbytes} bytes at {begin} pass the end of the file ({cursor.size} bytes); "
                "the file is truncated or its header is wrong"
            )
        placed[name] = TensorInfo(name, info.shape, info.ggml_type, info.type_name, begin, info.nbytes)
    _check_no_overlap(placed)
    return placed


def _parse_tensor(cursor: _Cursor, name: str) -> TensorInfo:
    """One entry of the tensor table; its offset still counts from the start of the data."""
    n_dims = cursor.scalar("I")
    if not 1 <= n_dims <= MAX_DIMS:
        raise _Damaged(f"tensor {name!r}: {n_dims} dimensions")
    dims = [cursor.scalar("Q") for _ in range(n_dims)]
    if 0 in dims:
        raise _Damaged(f"tensor {name!r}: shape {dims} has a zero")
    kind = cursor.scalar("I")
    if kind not in TENSOR_TYPES:
        raise _Damaged(f"tensor {name!r}: unknown type {kind}")
    type_name, block_values, block_bytes = TENSOR_TYPES[kind]
    if dims[0] % block_values:
        raise _Damaged(f"tensor {name!r}: rows of {dims[0]} values do not divide into {type_name} blocks")
    nbytes = math.prod(dims) // block_values * block_bytes
    return TensorInfo(name, tuple(reversed(dims)), kind, type_name, cursor.scalar("Q"), nbytes)


def _check_no_overlap(tensors: dict[str, TensorInfo]) -> None:
    ordered = sorted(tensors.values(), key=lambda info: info.offset)
    for before, after in itertools.pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise _Damaged(f"tensors {before.name!r} and {after.name!r} overlap")
