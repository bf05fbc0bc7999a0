"""Values between a process and its helper: 4 bytes of length, little endian, then JSON."""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO


def read_frame(stream: BinaryIO) -> Any | None:
    """The next frame's value; None at the end of the stream."""
    head = stream.read(4)
    return json.loads(stream.read(struct.unpack("<I", head)[0])) if len(head) == 4 else None


def write_frame(stream: BinaryIO, value: Any) -> None:
    data = json.dumps(value).encode()
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()
