"""Bodies of parts: what is read, and what is refused."""

from __future__ import annotations

import httpx
import pytest

from octavo.base.errors import InvalidRequest
from octavo.server.http.multipart import MAX_FIELD_BYTES, MAX_HEAD_BYTES, MAX_PARTS, boundary_of, read_form


def part(head: str, content: bytes) -> bytes:
    return b"--b\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"


FIELD = 'Content-Disposition: form-data; name="model"'


def test_what_a_client_sends_is_read_byte_by_byte() -> None:
    data = bytes(range(256)) * 3 + b"\r\n--" + b"\r\n\r\n--x--\r\n"
    request = httpx.Request(
        "POST", "http://x/", data={"model": "whisper-ä", "a[]": ["1", "2"]}, files={"file": ('so"und.wav', data)}
    )
    form = read_form(request.read(), boundary_of(request.headers["content-type"]))
    assert form.fields == [("model", "whisper-ä"), ("a[]", "1"), ("a[]", "2")]
    [(name, file)] = form.files
    assert name == "file" and file.data == data


def test_other_spellings() -> None:
    body = b"a preamble\r\n--b \t\r\ncontent-disposition:form-data;name=x\r\n\r\n1\r\n--b--\r\nan epilogue"
    assert read_form(body, b"b").fields == [("x", "1")]
    assert boundary_of('multipart/form-data; charset=utf-8; Boundary="a b"') == b"a b"
    empty = part('Content-Disposition: form-data; name="f"; filename=""', b"") + b"--b--"
    assert read_form(empty, b"b").files[0][1].data == b""


@pytest.mark.parametrize(
    ("content_type", "told"),
    [("application/json", "Only 'multipart/form-data'"), ("", "no Content-Type"), ("multipart/form-data", "boundary")],
)
def test_other_kinds_of_bodies_are_refused(content_type: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        boundary_of(content_type)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "does not begin"),
        (b"--c--\r\n", "does not begin"),
        (part(FIELD, b"x"), "ends before"),
        (b"--b\r\n" + FIELD.encode(), "ends before"),
        (b"--bx\r\n" + FIELD.encode() + b"\r\n\r\n1\r\n--b--", "ends before"),
        (part("Content-Type: text/plain", b"x") + b"--b--", "with a name"),
        (part("Content-Disposition: attachment; name=x", b"x") + b"--b--", "with a name"),
        (b"--b\r\nno head\r\n--b--", "no head"),
        (part(FIELD + "\r\nX: " + "y" * MAX_HEAD_BYTES, b"") + b"--b--", "no head"),
        (part(FIELD, b"\xff") + b"--b--", "UTF-8"),
        (part(FIELD, b"x" * (MAX_FIELD_BYTES + 1)) + b"--b--", "at most"),
        (part(FIELD, b"x") * (MAX_PARTS + 1) + b"--b--", "more than"),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        read_form(body, b"b")
