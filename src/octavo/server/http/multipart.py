"""Bodies of several parts, as forms with files send them: multipart/form-data (RFC 7578), read whole."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from octavo.base.errors import InvalidRequest

MAX_PARTS: Final = 64
#: Of the lines in front of a part, and of a field that is no file.
MAX_HEAD_BYTES: Final = 8 << 10
MAX_FIELD_BYTES: Final = 1 << 20

_BOUNDARY: Final = re.compile(r"""(?:^|;)\s*boundary\s*=\s*(?:"([^"]{1,70})"|([^\s;"]{1,70}))""", re.IGNORECASE)
_PARAMETER: Final = re.compile(rb"""[;\s]([a-z]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))""", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FormFile:
    """`name` is what the client calls it, which means nothing here."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Form:
    """Fields and files in their order; a name may come several times."""

    fields: list[tuple[str, str]]
    files: list[tuple[str, FormFile]]


def boundary_of(content_type: str) -> bytes:
    """Raises `InvalidRequest` unless it is that of a form with parts."""
    kind, _, parameters = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        got = f"'{kind.strip()[:100]}'" if kind.strip() else "no Content-Type"
        raise InvalidRequest(f"Unsupported Media Type: Only 'multipart/form-data' is allowed; got {got}")
    found = _BOUNDARY.search(parameters)
    if found is None:
        raise InvalidRequest("The Content-Type 'multipart/form-data' has no boundary.")
    return (found[1] or found[2]).encode("latin-1")


def read_form(body: bytes, boundary: bytes) -> Form:
    """Raises `InvalidRequest` for what is no such body, or has too many or too large parts."""
    form = Form([], [])
    mark = b"\r\n--" + boundary
    whole = b"\r\n" + body  # the first boundary may stand at the very beginning
    at = whole.find(mark)
    if at < 0:
        raise InvalidRequest("The body does not begin with the boundary that its Content-Type names.")
    for _ in range(MAX_PARTS + 1):
        at += len(mark)
        if whole.startswith(b"--", at):
            return form
        end = whole.find(mark, at)
        line_end = whole.find(b"\r\n", at, end if end >= 0 else None)
        # A boundary line ends in white space alone; a part without an end was cut off.
        if end < 0 or line_end < 0 or whole[at:line_end].strip(b" \t"):
            raise InvalidRequest("The body ends before its last boundary.")
        _read_part(form, whole, line_end, end)
        at = end
    raise InvalidRequest(f"The body has more than {MAX_PARTS} parts.")


def _read_part(form: Form, whole: bytes, start: int, end: int) -> None:
    """A part from the end of its boundary line on."""
    head_end = whole.find(b"\r\n\r\n", start, min(end, start + MAX_HEAD_BYTES))
    if head_end < 0:
        raise InvalidRequest(f"A part of the body has no head, or one of more than {MAX_HEAD_BYTES} bytes.")
    parameters = _disposition(whole[start:head_end])
    name, file_name = parameters.get("name"), parameters.get("filename")
    if name is None:
        raise InvalidRequest("A part of the body has no `Content-Disposition: form-data` with a name.")
    content = head_end + 4
    if file_name is not None:
        form.files.append((name, FormFile(file_name, whole[content:end])))
        return
    if end - content > MAX_FIELD_BYTES:
        raise InvalidRequest(f"A field of a form has at most {MAX_FIELD_BYTES} bytes.", name[:64])
    try:
        form.fields.append((name, whole[content:end].decode()))
    except UnicodeDecodeError:
        raise InvalidRequest("A field of a form should be text in UTF-8.", name[:64]) from None


def _disposition(head: bytes) -> dict[str, str]:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition" and value.strip().lower().startswith(b"form-data"):
            return {
                key.decode().lower(): (quoted if quoted or not plain else plain)
                .replace(b'\\"', b'"')
                .decode("utf-8", "replace")
                for key, quoted, plain in _PARAMETER.findall(value)
            }
    return {}
