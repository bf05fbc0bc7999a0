"""Reads one safetensors file: a table of tensors, and views of their bytes.

    u64 length of the header | header: JSON, name -> {dtype, shape, data_offsets} | data, offsets count from here

The format's rules (no gap, no overlap, sizes that fit) are checked here rather than left to the library, so that
an error names the tensor; then a tensor is a view of the mapped file.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final, TypeGuard

import torch

from octavo.base.errors import CheckpointError
from octavo.models.mapped_file import Entry, MappedFile

#: The format's own limit.
MAX_HEADER_BYTES: Final = 100_000_000
MAX_DIMS: Final = 8

_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}


class SafetensorsFile(MappedFile[Entry]):
    """One file, mapped into memory. Raises `CheckpointError`, naming file and tensor, if it is damaged."""

    format = "safetensors"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        #: What the file says beside its tensors.
        self.metadata: dict[str, str] = {}
        self._entries = self._parse()

    def _parse(self) -> dict[str, Entry]:
        size = len(self._map)
        length = int.from_bytes(self._map[:8], "little")
        if size < 8 or length > size - 8 or length > MAX_HEADER_BYTES:
            raise self._damaged(f"a header of {length} bytes does not fit in a file of {size} bytes")
        try:
            header = json.loads(self._map[8 : 8 + length])
        except (ValueError, RecursionError):
            raise self._damaged("the header is not JSON") from None
        if not isinstance(header, dict):
            raise self._damaged("the header is not a mapping")
        self.metadata = self._texts(header.pop("__metadata__", None))
        entries = {name: self._entry(name, fields, 8 + length) for name, fields in header.items()}
        expected = 8 + length
        for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != expected:
                raise self._damaged(f"tensor {name!r} does not begin where the one before it ends")
            expected = entry.end
        if expected != size:
            raise self._damaged(f"the tensors end at byte {expected}, the file at {size}")
        return entries

    def _texts(self, metadata: Any) -> dict[str, str]:
        if metadata is None:
            return {}
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise self._damaged("__metadata__ is not a mapping of texts")
        return metadata

    def _entry(self, name: str, fields: Any, data_start: int) -> Entry:
        where = f"tensor {name[:200]!r}"
        if not isinstance(fields, dict):
            raise self._damaged(f"{where}: its entry is not a mapping")
        dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise CheckpointError(f"{self.path}: {where}: the type {str(dtype)[:40]!r} is not supported")
        if not _is_counts(shape) or len(shape) > MAX_DIMS:
            raise self._damaged(f"{where}: the shape {str(shape)[:80]} is none")
        if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self._damaged(f"{where}: the offsets {str(offsets)[:80]} are none")
        begin, end = data_start + offsets[0], data_start + offsets[1]
        if end > len(self._map):
            raise self._damaged(f"{where} ends at byte {end} of a file of {len(self._map)}: truncated?")
        nbytes = math.prod(shape) * _DTYPES[dtype].itemsize
        if nbytes != end - begin:
            raise self._damaged(f"{where}: {dtype} {shape} takes {nbytes} bytes, its offsets hold {end - begin}")
        return Entry(_DTYPES[dtype], tuple(shape), begin, end)


def _is_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
