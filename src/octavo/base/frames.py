"""Values between a process and its helper: 4 bytes of length, little endian, then JSON.

Behind a value that is an object with `blobs`, a list of sizes, so many bytes follow for each: what is large travels as
it is. Who reads gets the bytes in place of the sizes.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO


def serve_frames(handle: Callable[[Any], Any], out: BinaryIO | None = None) -> None:
    """In a helper: say that it is ready, then answer each frame of stdin on `out`, or stdout, until no more come.

    The helper ends at once when nobody is left to read its answers.
    """
    out = sys.stdout.buffer if out is None else out
    try:
        write_frame(out, {"ready": True})
        while (request := read_frame(sys.stdin.buffer)) is not None:
            write_frame(out, handle(request))
    except BrokenPipeError:
        os._exit(1)  # without a last look at `out`, which would fail again


def read_frame(stream: BinaryIO) -> Any | None:
    """The next frame's value; None at the end of the stream, also when it comes within a frame."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack("<I", head)
    data = stream.read(size)
    if len(data) != size:
        return None
    value = json.loads(data)
    if isinstance(value, dict) and "blobs" in value:
        blobs = [stream.read(count) for count in value["blobs"]]
        if list(map(len, blobs)) != value["blobs"]:
            return None
        value["blobs"] = blobs
    return value


def write_frame(stream: BinaryIO, value: Any) -> None:
    blobs: list[bytes] = value.get("blobs", []) if isinstance(value, dict) else []
    shown = value | {"blobs": list(map(len, blobs))} if blobs else value
    data = json.dumps(shown).encode()
    stream.write(struct.pack("<I", len(data)) + data)
    for blob in blobs:
        stream.write(blob)
    stream.flush()
