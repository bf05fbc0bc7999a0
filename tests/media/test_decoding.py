"""Bytes of strangers in the helper process: what is decoded, to which values, and what is refused in time."""

from __future__ import annotations

import asyncio
import io
import struct
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from octavo.base.errors import InvalidRequest
from octavo.media.decoder import MediaDecoder, helper
from support.media_fakes import encoded, pdf, picture, png, wav

SECONDS = 20.0
IMAGE = {"max_pixels": 1_000_000}


class Decoder:
    """One helper for all tests of the module, so that whatever one does to it, the next must be answered."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.decoder = self.runner.run(self._made())

    async def _made(self) -> MediaDecoder:
        return MediaDecoder(SECONDS, [helper()])

    def __call__(self, kind: str, *blobs: bytes, **options: Any) -> dict[str, Any]:
        return self.runner.run(self.decoder.decode(kind, blobs, options, "there"))

    def pixels(self, data: bytes, **options: Any) -> np.ndarray:
        reply = self("image", data, **IMAGE, **options)
        return np.frombuffer(reply["blobs"][0], np.uint8).reshape(reply["height"], reply["width"], 3)

    def refusal(self, kind: str, *blobs: bytes, **options: Any) -> str:
        with pytest.raises(InvalidRequest) as caught:
            self(kind, *blobs, **options)
        assert caught.value.param == "there"
        return caught.value.message


@pytest.fixture(scope="module")
def decode() -> Iterator[Decoder]:
    decoder = Decoder()
    yield decoder
    decoder.runner.run(decoder.decoder.close())
    decoder.runner.close()


# ---------------------------------------------------------------- images as a viewer shows them
def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _halves() -> Image.Image:
    """Red above, blue below."""
    image = picture(4, 8, (255, 0, 0))
    image.paste((0, 0, 255), (0, 4, 4, 8))
    return image


def _palette() -> Image.Image:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 255, 0, 9, 9, 9])
    return image


def _animation() -> bytes:
    frames = [picture(8, 8, color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


SHOWN: dict[str, tuple[bytes, tuple[int, int], tuple[int, int, int]]] = {
    "rgb": (encoded(picture()), (8, 16), (255, 0, 0)),
    "jpeg": (encoded(picture(color=(128, 128, 128)), "JPEG"), (8, 16), (128, 128, 128)),
    "webp": (encoded(picture(), "WEBP", lossless=True), (8, 16), (255, 0, 0)),
    "grey": (encoded(picture(mode="L", color=77)), (8, 16), (77, 77, 77)),
    "one bit": (encoded(picture(mode="1", color=1)), (8, 16), (255, 255, 255)),
    "cmyk": (encoded(picture(mode="CMYK", color=(0, 0, 0, 0)), "JPEG"), (8, 16), (255, 255, 255)),
    "palette": (encoded(_palette()), (4, 4), (0, 255, 0)),
    "palette with a transparent entry": (encoded(_palette(), transparency=0), (4, 4), (255, 255, 255)),
    "transparent": (encoded(picture(mode="RGBA", color=(0, 0, 0, 0))), (8, 16), (255, 255, 255)),
    "half transparent": (encoded(picture(mode="RGBA", color=(0, 0, 0, 128))), (8, 16), (127, 127, 127)),
    "grey and alpha": (encoded(picture(mode="LA", color=(0, 0))), (8, 16), (255, 255, 255)),
    "16 bits": (png(2, 2, 16, 0, b"\x00\x80\x00\x80\x00" * 2), (2, 2), (128, 128, 128)),
    "16 bits of RGB": (png(1, 1, 16, 2, b"\x00\xff\xff\x00\x00\x80\x00"), (1, 1), (255, 0, 128)),
    "animated": (_animation(), (8, 8), (255, 0, 0)),
    "one pixel": (encoded(picture(1, 1)), (1, 1), (255, 0, 0)),
    "one line": (encoded(picture(5000, 1)), (1, 5000), (255, 0, 0)),
    "upside down": (encoded(_halves(), exif=_exif(3)), (8, 4), (0, 0, 255)),
    "on its side": (encoded(_halves(), exif=_exif(6)), (4, 8), (0, 0, 255)),
    "an orientation that there is not": (encoded(_halves(), exif=_exif(99)), (8, 4), (255, 0, 0)),
    "broken words about the camera": (encoded(_halves(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), (8, 4), (255, 0, 0)),
}


@pytest.mark.parametrize("name", SHOWN)
def test_an_image_is_what_a_viewer_shows(decode: Decoder, name: str) -> None:
    data, shape, color = SHOWN[name]
    pixels = decode.pixels(data)
    assert pixels.shape[:2] == shape
    assert np.abs(pixels[0, 0].astype(int) - color).max() <= 1


def test_the_background_and_the_detail_are_the_callers(decode: Decoder) -> None:
    pixels = decode.pixels(encoded(picture(mode="RGBA", color=(0, 0, 0, 0))), background=[1, 2, 3])
    assert (pixels == [1, 2, 3]).all()
    assert decode.pixels(encoded(picture(1000, 500)), max_side=512).shape == (256, 512, 3)
    assert decode.pixels(encoded(picture(100, 50)), max_side=512).shape == (50, 100, 3)


# ---------------------------------------------------------------- images that are none, or too much
def _cut(data: bytes, share: float = 0.5) -> bytes:
    return data[: int(len(data) * share)]


def _noise(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    return encoded(Image.fromarray(pixels), kind)


def _icc_bomb() -> bytes:
    """A PNG whose profile unpacks to 64 MB."""
    body = b"icc\0\0" + zlib.compress(bytes(64 << 20))
    whole = encoded(picture())
    chunk = struct.pack(">I", len(body)) + b"iCCP" + body + struct.pack(">I", zlib.crc32(b"iCCP" + body))
    return whole[:33] + chunk + whole[33:]


REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "empty"),
    "words": (b"not an image at all", "no image"),
    "html": (b"<html><img src='http://127.0.0.1/'></html>", "no image"),
    "svg": (b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
            "no image"),
    "svg without a head": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "no image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n", "no image"),
    "bmp": (encoded(picture(), "BMP"), "no image"),
    "tiff": (encoded(picture(), "TIFF"), "no image"),
    "ico": (encoded(picture(16, 16), "ICO"), "no image"),
    "jpeg 2000": (encoded(picture(), "JPEG2000"), "no image"),
    "fits": (b"SIMPLE  =                    T".ljust(80) + b" " * 2800, "no image"),
    "pdf": (pdf("a"), "no image"),
    "a signature alone": (b"\x89PNG\r\n\x1a\n", ""),
    "jpeg of a header": (b"\xff\xd8\xff\xe0\x00\x10JFIF", ""),
    "gif of a header": (b"GIF89a", ""),
    "webp of a header": (b"RIFF\x00\x00\x00\x00WEBPVP8 ", ""),
    "truncated png": (_cut(_noise("PNG")), "truncated or damaged"),
    "truncated jpeg": (_cut(_noise("JPEG")), "truncated or damaged"),
    "truncated webp": (_cut(_noise("WEBP")), ""),
    "truncated gif": (_cut(_noise("GIF")), "truncated or damaged"),
    "png with damaged pixels": (_noise("PNG")[:200] + bytes(300) + _noise("PNG")[500:], ""),
    "png without pixels": (png(64, 64), "truncated or damaged"),
    "png of 0 x 0": (png(0, 0), ""),
    "png of 0 x 9": (png(0, 9), ""),
    "gif of 0 x 0": (b"GIF89a\0\0\0\0\0\0\0,\0\0\0\0\0\0\0\0\0\x02\x02D\x01\0;", ""),
    "100 megapixels of nothing": (png(10_000, 10_000, 1, 0, bytes(10_000 * 1251)), "10000 x 10000 pixels"),
    "a header of 2^31": (png(2**31 - 1, 2**31 - 1), "pixels"),
    "a header of 2^32": (png(2**32 - 1, 1), ""),
    "a jpeg header of 65535 x 65535": (
        b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01" + bytes(64), "pixels"),
    "a gif screen of 65535 x 65535": (b"GIF89a\xff\xff\xff\xff\0\0\0" + _animation()[13:], "pixels"),
    "a profile that unpacks to 64 MB": (_icc_bomb(), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_or_too_much_of_one_is_refused_in_words_of_ours(decode: Decoder, name: str) -> None:
    data, words = REFUSED[name]
    try:
        pixels = decode.pixels(data)
    except InvalidRequest as exc:
        assert words in exc.message and exc.message.startswith("The image cannot be read: ")
        assert "0x" not in exc.message and "PIL" not in exc.message
    else:  # some decoders show what there is
        assert not words and pixels.size


def test_the_bound_counts_pixels_before_any_is_decoded(decode: Decoder) -> None:
    assert "at most 100" in decode.refusal("image", encoded(picture(11, 10)), max_pixels=100)
    assert decode("image", encoded(picture(10, 10)), max_pixels=100)["width"] == 10


def test_any_bytes_are_an_image_or_refused(decode: Decoder) -> None:
    """Files that were damaged at random, each kind of them."""
    rng = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        whole = np.frombuffer(_noise(kind), np.uint8)
        for _ in range(25):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 6)] = rng.integers(0, 256, 6)
            try:
                assert decode.pixels(damaged.tobytes()).size
            except InvalidRequest as exc:
                assert exc.message.startswith("The image cannot be read: ")


# ---------------------------------------------------------------- helpers that hang, die, or chatter
def _planted(code: str, seconds: float = SECONDS) -> MediaDecoder:
    start = "import os, sys, time; from octavo.base.frames import serve_frames; "
    return MediaDecoder(seconds, [helper((sys.executable, "-c", start + code))])


@pytest.mark.parametrize(
    ("code", "seconds", "words"),
    [
        ("serve_frames(lambda r: time.sleep(60))", 0.5, "more than 0.5 s"),
        ("serve_frames(lambda r: os._exit(1))", SECONDS, "damaged, or needs too much memory"),
        ("serve_frames(lambda r: os.kill(os.getpid(), 11))", SECONDS, "damaged, or needs too much memory"),
    ],
)
def test_a_decoder_that_hangs_or_crashes_costs_one_request(code: str, seconds: float, words: str) -> None:
    async def main() -> None:
        decoder = _planted(code, seconds)
        for _ in range(2):
            with pytest.raises(InvalidRequest, match=words):
                await decoder.decode("image", [b"x"], {}, "p")
        await decoder.close()

    asyncio.run(main())


def test_a_caller_that_leaves_takes_its_decoder_with_it() -> None:
    async def main() -> None:
        decoder = MediaDecoder(SECONDS, [helper()])
        task = asyncio.create_task(decoder.decode("image", [encoded(picture(500, 500))], IMAGE, "p"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await decoder.decode("image", [encoded(picture())], IMAGE, "p"))["width"] == 16
        await decoder.close()

    asyncio.run(main())


# ---------------------------------------------------------------- sounds
def _tone(count: int = 1000) -> np.ndarray:
    return (np.sin(np.arange(count) / 9) * 20_000).astype("<i2")


def _sound(decode: Decoder, data: bytes) -> tuple[np.ndarray, int]:
    reply = decode("audio", data, max_seconds=10)
    return np.frombuffer(reply["blobs"][0], np.float32), reply["rate"]


def test_a_sound_is_its_samples_of_one_channel(decode: Decoder) -> None:
    samples, rate = _sound(decode, wav(_tone()))
    assert rate == 1000
    np.testing.assert_allclose(samples, _tone() / 32768, atol=1e-6)
    both = np.stack([_tone(), np.zeros(1000, "<i2")], 1)
    np.testing.assert_allclose(_sound(decode, wav(both, channels=2))[0], _tone() / 65536, atol=1e-6)
    bytes_ = np.array([0, 128, 255], np.uint8)
    np.testing.assert_allclose(_sound(decode, wav(bytes_, width=1))[0], [-1, 0, 127 / 128], atol=1e-6)
    wide = np.array([-(2**31), 0, 2**30], "<i4")
    np.testing.assert_allclose(_sound(decode, wav(wide, width=4))[0], [-1, 0, 0.5], atol=1e-6)


def test_without_a_library_wav_is_read_to_the_same_samples(monkeypatch: pytest.MonkeyPatch, decode: Decoder) -> None:
    from octavo.media.decoding import sounds
    from octavo.media.decoding.refused import Refused

    monkeypatch.setattr(sounds, "soundfile", None)
    three = np.frombuffer(b"\x00\x00\x80\x00\x00\x40\xff\xff\x7f", np.uint8)
    for data in (wav(_tone()), wav(three, width=3), wav(_tone().reshape(-1, 2), channels=2)):
        reply = sounds.decode_sound(data, {"max_seconds": 10})
        samples, rate = _sound(decode, data)
        assert reply["rate"] == rate
        np.testing.assert_allclose(np.frombuffer(reply["blobs"][0], np.float32), samples, atol=1e-6)
    with pytest.raises(Refused, match=r"octavo\[media\]"):
        sounds.decode_sound(b"fLaC" + bytes(99), {"max_seconds": 10})


@pytest.mark.parametrize("kind", ["FLAC", "MP3", "OGG"])
def test_packed_sounds_are_read(decode: Decoder, kind: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    out = io.BytesIO()
    soundfile.write(out, _tone(16_000), 16_000, format=kind)
    samples, rate = _sound(decode, out.getvalue())
    assert rate == 16_000 and abs(len(samples) - 16_000) < 3000
    assert 0.3 < np.abs(samples).max() <= 1.1


_HUGE = bytearray(wav(_tone(10)))
_HUGE[40:44] = struct.pack("<I", 2**32 - 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"RIFF\x24\0\0\0WAVEfmt ", ""),
        (b"a sound", "no sound"),
        (_noise("PNG"), "no sound"),
        (wav(np.zeros(11_000, "<i2")), "longer than 10 s"),
        (wav(np.zeros(0, "<i2")), "no samples"),
        (wav(np.zeros(10, "<i2"), rate=1), "1 Hz"),
        (bytes(_HUGE), ""),
        (wav(_tone())[:60], ""),
    ],
    ids=["empty", "head", "words", "png", "long", "silent", "slow", "huge", "cut"],
)
def test_what_is_no_sound_or_too_long_is_refused(decode: Decoder, data: bytes, words: str) -> None:
    try:
        reply = decode("audio", data, max_seconds=10)
    except InvalidRequest as exc:
        assert words in exc.message and exc.message.startswith("The sound cannot be read: ")
    else:
        assert not words and len(reply["blobs"][0]) < 1000


# ---------------------------------------------------------------- files
def test_pages_are_text_and_pictures(decode: Decoder) -> None:
    pytest.importorskip("pypdfium2")
    reply = decode("file", pdf("First page", "Second page"), max_pages=5)
    assert [page["text"].strip() for page in reply["pages"]] == ["First page", "Second page"]
    for page, blob in zip(reply["pages"], reply["blobs"], strict=True):
        assert (page["width"], page["height"]) == (800, 400)  # four pixels a point
        pixels = np.frombuffer(blob, np.uint8)
        assert len(pixels) == 800 * 400 * 3 and pixels.min() < 50 and pixels.max() == 255


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no PDF"),
        (b"PK\x03\x04 a document", "no PDF"),
        (b"%PDF-1.7\n%%EOF", "damaged"),
        (pdf("a")[:200], "damaged"),
        (pdf("a", "b", "c"), "3 pages; 1 to 2 are read"),
        (pdf("a").replace(b"[0 0 200 100]", b"[0 0 90000 1] "), ""),
    ],
    ids=["empty", "zip", "no pages", "cut", "many pages", "a wide page"],
)
def test_what_is_no_pdf_or_has_too_many_pages_is_refused(decode: Decoder, data: bytes, words: str) -> None:
    pytest.importorskip("pypdfium2")
    assert words in decode.refusal("file", data, max_pages=2)


# ---------------------------------------------------------------- videos
def _colors(reply: dict[str, Any]) -> list[tuple[int, ...]]:
    return [tuple(np.frombuffer(blob, np.uint8)[:3]) for blob in reply["blobs"]]


def test_frames_are_taken_at_equal_distances(decode: Decoder) -> None:
    options = IMAGE | {"num_frames": 2}
    assert _colors(decode("video", _animation(), **options)) == [(255, 0, 0), (0, 0, 255)]
    frames = [encoded(picture(color=(i, 0, 0))) for i in range(9)]
    assert _colors(decode("frames", *frames, **IMAGE, num_frames=3)) == [(0, 0, 0), (4, 0, 0), (8, 0, 0)]
    assert len(decode("frames", *frames[:2], **IMAGE, num_frames=3)["frames"]) == 2


def _film(kind: str, codec: str) -> bytes:
    av = pytest.importorskip("av")
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as file:
        stream = file.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for i in range(20):
            frame = av.VideoFrame.from_image(picture(64, 32, (0, 0, 0) if i < 10 else (255, 255, 255)))
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return out.getvalue()


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "mpeg4"), ("webm", "libvpx"), ("avi", "mpeg4")])
def test_films_are_read(decode: Decoder, kind: str, codec: str) -> None:
    reply = decode("video", _film(kind, codec), **IMAGE, num_frames=4)
    brightness = [max(color) for color in _colors(reply)]
    assert len(brightness) == 4 and brightness[0] < 20 and brightness[-1] > 235
    assert reply["frames"][0] == {"width": 64, "height": 32}
    # Frames 0, 6, 13 and 19 of ten a second.
    assert reply["times"] == pytest.approx([0, 0.6, 1.3, 1.9], abs=0.11)
    assert reply["duration"] == pytest.approx(2.0, abs=0.11)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_frames_of_animations_have_times(decode: Decoder, kind: str) -> None:
    frames = [picture(8, 8, (value, 0, 0)) for value in (0, 80, 160, 240)]
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": [100, 200, 300, 1000]}
    reply = decode("video", encoded(frames[0], kind, **options), **IMAGE, num_frames=3)
    assert reply["times"] == pytest.approx([0, 0.3, 0.6]) and reply["duration"] == pytest.approx(1.6)
    still = decode("video", encoded(frames[0], kind), **IMAGE, num_frames=3)
    assert (still["times"], still["duration"]) == ([0], 0.1)
    assert "times" not in decode("frames", encoded(frames[0]), **IMAGE, num_frames=3)


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (PLAYLIST, "no video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "no video"),
        (b"\x1aE\xdf\xa3" + bytes(100), "damaged"),
        (b"\x00\x00\x00\x18ftypmp42" + PLAYLIST, "damaged"),
        (b"RIFF\x00\x00\x00\x00AVI " + bytes(100), ""),
    ],
    ids=["empty", "playlist", "list", "matroska", "mp4", "avi"],
)
def test_what_is_no_video_is_refused_and_leads_nowhere(decode: Decoder, data: bytes, words: str) -> None:
    assert words in decode.refusal("video", data, **IMAGE, num_frames=4)
