"""Decodes what requests bring, in a process of its own: `python -m octavo.media.decoding.helper`.

Decoders of images, sounds, videos and files are native code that strangers feed. Whoever started this process may kill
it at any moment; nothing is lost but the medium in hand. Frames on stdin and stdout (`frames`). In: {kind, options,
seconds, blobs}. Out: what `decode_image` and its like return, or {refused}.
"""

from __future__ import annotations

import os
from typing import Any, Final

# Before numpy: one question at a time needs no threads, of which there may be none here.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from octavo.base.confined import confine, in_time
from octavo.base.frames import serve_frames
from octavo.media.decoding.images import decode_image
from octavo.media.decoding.refused import Refused

MAX_ADDRESS_SPACE: Final = 2 << 30


def handle(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return _decoded(request["kind"], request.get("blobs", [b""]), request["options"])
    except Refused as exc:
        return {"refused": str(exc)}
    except MemoryError:
        return {"refused": "it needs too much memory"}
    except Exception:  # noqa: BLE001  (a library's mistake; its words stay here)
        return {"refused": "it cannot be decoded"}


def _decoded(kind: str, blobs: list[bytes], options: dict[str, Any]) -> dict[str, Any]:
    if kind == "image":
        return decode_image(blobs[0], options)
    if kind == "audio":
        from octavo.media.decoding.sounds import decode_sound

        return decode_sound(blobs[0], options)
    if kind == "file":
        from octavo.media.decoding.pages import decode_file

        return decode_file(blobs[0], options)
    from octavo.media.decoding.videos import decode_frames, decode_video

    return decode_frames(blobs, options) if kind == "frames" else decode_video(blobs[0], options)


def main() -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    confine(MAX_ADDRESS_SPACE)
    serve_frames(in_time(handle), out)


if __name__ == "__main__":
    main()
