"""Decodes what requests bring, in a process of its own: `python -m octavo.media.decoding.helper`.

Decoders of images, sounds, videos and files are native code that strangers feed. Whoever started this process may kill
it at any moment; nothing is lost but the medium in hand. Frames on stdin and stdout (`frames`). In: {kind, options,
seconds, blobs}. Out: what `decode_image` and its like return, or {refused}.
"""

from __future__ import annotations

import os
import resource
import signal
from typing import Any, Final

# Before numpy: one question at a time needs no threads, of which there may be none here.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

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
    # A terminal sends INT to the whole group; this process ends when its input does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE, MAX_ADDRESS_SPACE))
    # Decoding starts nothing and writes no file.
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        resource.setrlimit(kind, (0, 0))
    serve_frames(_handle_in_time, out)


def _handle_in_time(request: dict[str, Any]) -> dict[str, Any]:
    # If nobody is left to kill it, the kernel does, in the middle of any call.
    signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 1)
    reply = handle(request)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return reply


if __name__ == "__main__":
    main()
