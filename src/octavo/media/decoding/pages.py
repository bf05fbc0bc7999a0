"""Pages of a PDF: their text, and what they look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from octavo.media.decoding.refused import Refused

try:
    import pypdfium2
except (ImportError, OSError):
    pypdfium2 = None

#: Longest side of a page's picture, in pixels.
SIDE: Final = 1536
#: Points are 72 to the inch; more than this many pixels a point shows nothing new.
_MAX_SCALE: Final = 4.0
MAX_CHARS: Final = 2_000_000


def decode_file(data: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
    """{pages: [{text, width, height}], blobs: [RGB of each]}; no pictures where `text_only`. Raises `Refused`."""
    if not data[:1024].lstrip().startswith(b"%PDF-"):
        raise Refused("it is no PDF; no other files are read")
    if pypdfium2 is None:
        raise Refused("this server reads no PDF; octavo[media] does")
    try:
        return _decoded(pypdfium2.PdfDocument(data), options)
    except pypdfium2.PdfiumError:
        raise Refused("it is a damaged PDF, or one with a password") from None


def _decoded(document: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    count = len(document)
    if not 0 < count <= options["max_pages"]:
        raise Refused(f"it has {count} pages; 1 to {options['max_pages']} are read (--max-file-pages)")
    pages, blobs, num_chars = [], [], 0
    for i in range(count):
        page = document[i]
        text = page.get_textpage().get_text_bounded().replace("\r\n", "\n").replace("\x00", "")
        num_chars += len(text)
        if num_chars > MAX_CHARS:
            raise Refused(f"it has more than {MAX_CHARS} characters")
        shown: dict[str, Any] = {"text": text.encode("utf-8", "replace").decode()}
        if not options.get("text_only"):
            width, height = page.get_size()
            if not (width > 0 and height > 0 and max(width, height) / min(width, height) < 200):
                raise Refused(f"its page {i + 1} has no size that can be shown")
            picture = page.render(scale=min(_MAX_SCALE, SIDE / max(width, height)), rev_byteorder=True).to_pil()
            rgb = picture.convert("RGB")
            shown |= {"width": rgb.width, "height": rgb.height}
            blobs.append(rgb.tobytes())
        pages.append(shown)
    return {"pages": pages} | ({"blobs": blobs} if blobs else {})
