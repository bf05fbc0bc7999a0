"""Pictures and sounds as files, a processor whose rows can be counted by hand, and hosts on loopback."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import wave
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from PIL import Image

from octavo.base.errors import InvalidRequest
from octavo.base.media import MediaTensor, PreparedMedia, media_digest

PLACEHOLDER = "\x01"  # with a tokenizer of bytes: token 1
ROW = "\x02"
SOUND = "\x03"
SOUND_ROW = "\x04"
FILM = "\x05"
FILM_ROW = "\x06"


class FakeProcessor:
    """A row for each 8 x 8 pixels, or part of such, between brackets. Keeps what it was given."""

    placeholder = PLACEHOLDER
    placeholder_id = 2
    row_text = ROW

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self.options: list[dict[str, Any]] = []

    def image(self, pixels: np.ndarray, options: Mapping[str, Any]) -> PreparedMedia:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        if options.keys() - {"crop", "detail"}:
            raise InvalidRequest("There is no such option.", "mm_processor_kwargs")
        self.images.append(pixels)
        self.options.append(dict(options))
        rows = -(-pixels.shape[0] // 8) * -(-pixels.shape[1] // 8)
        return _prepared("image", pixels, rows, self.rows_text(rows))

    def rows_text(self, rows: int) -> str:
        return f"[{ROW * rows}]"


class HearingProcessor(FakeProcessor):
    """Takes sounds too: a row for each 100 samples."""

    audio_placeholder = SOUND
    audio_placeholder_id = 4

    def __init__(self) -> None:
        super().__init__()
        self.sounds: list[tuple[np.ndarray, int]] = []

    def audio(self, samples: np.ndarray, rate: int, options: Mapping[str, Any]) -> PreparedMedia:
        self.sounds.append((samples, rate))
        rows = -(-len(samples) // 100)
        return _prepared("audio", samples, rows, SOUND_ROW * rows)


class WatchingProcessor(FakeProcessor):
    """Takes videos as such: a row a frame."""

    video_placeholder = FILM
    video_placeholder_id = 6

    def __init__(self) -> None:
        super().__init__()
        self.videos: list[tuple[list[np.ndarray], list[float] | None, float, dict[str, Any]]] = []

    def video(
        self, frames: Sequence[np.ndarray], times: Sequence[float] | None, duration: float, options: Mapping[str, Any]
    ) -> PreparedMedia:
        told = None if times is None else [round(time, 3) for time in times]
        self.videos.append((list(frames), told, round(duration, 3), dict(options)))
        return _prepared("video", np.stack(frames), len(frames), f"({FILM_ROW * len(frames)})")


def _prepared(kind: Any, array: np.ndarray, rows: int, text: str) -> PreparedMedia:
    tensors = {"values": MediaTensor(array.dtype.name, array.shape, array.tobytes())}
    return PreparedMedia(kind, media_digest(kind, tensors, None), tensors, rows, text)


# ---------------------------------------------------------------- files
def picture(width: int = 16, height: int = 8, color: Any = (255, 0, 0), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (width, height), color)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(image: Image.Image | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(encoded(image or picture())), **more}}


def png(width: int, height: int, bits: int = 8, color: int = 2, data: bytes = b"") -> bytes:
    """A PNG whose header says what it likes. `data`: the pixels, before they are packed."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    packed = zlib.compress(data)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def wav(samples: np.ndarray, rate: int = 1000, width: int = 2, channels: int = 1) -> bytes:
    """`samples`: integers, of several channels side by side."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return out.getvalue()


def pdf(*texts: str) -> bytes:
    """A PDF of a page for each text."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(texts)))
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {len(texts)}>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for i, text in enumerate(texts):
        page = "<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 100]/Resources<</Font<</F 3 0 R>>>>"
        stream = f"BT /F 12 Tf 10 50 Td ({text}) Tj ET"
        objects += [f"{page}/Contents {5 + 2 * i} 0 R>>", f"<</Length {len(stream)}>>stream\n{stream}\nendstream"]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj{body}endobj\n".encode()
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    return out + f"{head}trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{len(out)}\n%%EOF".encode()


# ---------------------------------------------------------------- hosts
class Host:
    """What an address of loopback answers: `answers` by path, as whole responses. Counts connections."""

    def __init__(self, address: str, port: int, answers: Mapping[str, bytes]) -> None:
        self.address = address
        self.port = port
        self.answers = dict(answers)
        self.requests: list[str] = []
        self.num_connections = 0


@asynccontextmanager
async def host(address: str = "127.0.0.1", tls: Any = None, **answers: bytes) -> AsyncIterator[Host]:
    """`answers`: names of paths -> responses. One that does not end in a line break is left open, for ever."""
    open_ends = asyncio.Event()
    known = Host(address, 0, {f"/{name}": data for name, data in answers.items()})

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        known.num_connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            known.requests.append(head)
            answer = known.answers.get(head.split(" ")[1], response(b"", "404 Not Found"))
            writer.write(answer.removesuffix(b"<open>"))
            await writer.drain()
            if answer.endswith(b"<open>"):
                await open_ends.wait()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, address, 0, ssl=tls)
    known.port = server.sockets[0].getsockname()[1]
    try:
        yield known
    finally:
        open_ends.set()
        server.close()


def response(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return response(b"", status, f"Location: {location}")
