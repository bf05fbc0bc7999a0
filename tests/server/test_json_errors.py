"""A body that is not JSON: the error says what is wrong, where, and in which field, on every route."""

from __future__ import annotations

import random
import time
from typing import Any

import msgspec
import pytest

from octavo.server.http.exchange import InvalidRequest, decode_json
from octavo.server.http.json_errors import MAX_CHARS, json_fault
from support.server_fakes import make_server

HALF = "is half of a surrogate pair (an emoji that was cut in two?)"
LATIN = "the byte `\\xe9` is not UTF-8 (is the body in Latin-1?)"
SINGLE = "strings and keys are written in double quotes, not in single ones"

#: Body -> what is wrong, line, column, byte, field.
FAULTS: list[tuple[bytes, str, int, int, int, str | None]] = [
    (b'{"messages":[{"role":"user","content":"x \\ud83d y"}]}', f"`\\ud83d` {HALF}", 1, 42, 41, "messages.0.content"),
    (b'{"a":"\\ude00"}', f"`\\ude00` {HALF}", 1, 7, 6, "a"),
    (b'{"\\ud83d":1}', f"`\\ud83d` {HALF}", 1, 3, 2, None),
    ('{"a":"\U0001f600 é","b":"\\ud83d'.encode(), f"`\\ud83d` {HALF}", 1, 17, 20, "b"),
    ('{"b":[0,{"c":"caf\xe9"}]}'.encode("latin-1"), LATIN, 1, 18, 17, "b.1.c"),
    (b'{"a":1,}', "there is a comma before the closing `}`", 1, 7, 6, "a"),
    (b'{"a":[1, ]}', "there is a comma before the closing `]`", 1, 8, 7, "a.1"),
    (b"{'a':1}", SINGLE, 1, 2, 1, None),
    (b"{\"a\":'x'}", SINGLE, 1, 6, 5, "a"),
    (b"{a:1}", "the key `a` stands where a key in double quotes is expected", 1, 2, 1, None),
    (b'{"a":1,,"b":2}', "`,` stands where a key in double quotes is expected", 1, 8, 7, None),
    (b'{\n "a": 1,\n "b": NaN\n}', "`NaN` is not a number that JSON has", 3, 7, 17, "b"),
    (b'{"a":-Infinity}', "`-Infinity` is not a number that JSON has", 1, 6, 5, "a"),
    (b'{"a":1e999}', "the number 1e999 is beyond the range of a 64-bit float", 1, 6, 5, "a"),
    (b'{"a":1' + b"0" * 5000 + b"}", "the number has 5001 digits", 1, 6, 5, "a"),
    (b'{"a":01}', "`01` is not a number that JSON has", 1, 6, 5, "a"),
    (b'{"a":True}', "`True` is written `true`", 1, 6, 5, "a"),
    (b'{"a":None}', "`None` is written `null`", 1, 6, 5, "a"),
    (b'{"a":}', "a value is missing before `}`", 1, 6, 5, "a"),
    (b'{"a":1', "it ends before the closing `}`", 1, 7, 6, "a"),
    (b'{"a":"x', "it ends inside a string", 1, 8, 7, "a"),
    (b'{"a":[{"b":1}', "it ends before the closing `]`", 1, 14, 13, "a.0"),
    (b'{"a":1} {"a":2}', "there is more text after its end", 1, 9, 8, None),
    (b'{"a" 1}', "a colon is missing after the key", 1, 6, 5, "a"),
    (b'{"a":[1 2]}', "a comma or `]` is missing before `2`", 1, 9, 8, "a.0"),
    (b'{"a":1 // one\n}', "JSON has no comments", 1, 8, 7, "a"),
    (b'{"a":"x\ny"}', "the control character U+000A is written `\\n` in a string", 1, 8, 7, "a"),
    (b'{"a":"\x01"}', "the control character U+0001 is written `\\u0001` in a string", 1, 7, 6, "a"),
    (b'{"a":"C:\\dir"}', "`\\d` is not an escape that JSON has", 1, 9, 8, "a"),
    (b"prompt=a", "`prompt` stands where a value is expected", 1, 1, 0, None),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: repr(fault[0])[:40])
def test_a_fault_is_named_with_its_place_and_field(fault: Any) -> None:
    body, what, line, column, byte, param = fault
    inside = f", in `{param}`" if param else ""
    with pytest.raises(InvalidRequest) as caught:
        decode_json(body)
    expected = f"The body is not valid JSON: {what}, at line {line}, column {column} (byte {byte}){inside}."
    assert (caught.value.message, caught.value.param) == (expected, param)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
def test_every_route_says_it(path: str) -> None:
    reply = make_server().post(path, b'{"model":"tiny","user":"\\ud83d"}')
    assert (reply.status, reply.error["param"]) == (400, "user")
    assert "`\\ud83d`" in reply.error["message"] and "(byte 24)" in reply.error["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The request has no body; a JSON object is expected."),
        (b" \n", "The request has no body; a JSON object is expected."),
        (b'"text"', "The body should be a JSON object; got a string."),
        (b'"{\\"n\\": 1}"', "The body should be a JSON object; got a string that holds JSON: it was encoded twice."),
        (b"[1]", "The body should be a JSON object; got a list."),
        (b"null", "The body should be a JSON object; got null."),
        (b"true", "The body should be a JSON object; got true or false."),
        (b"1.5", "The body should be a JSON object; got a number."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/detokenize"])
def test_a_body_of_another_kind_is_named(path: str, body: bytes, message: str) -> None:
    assert make_server().post(path, body).error["message"] == message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_a_body_in_another_unicode_encoding_is_named(encoding: str) -> None:
    assert "UTF-16 or UTF-32" in make_server().post("/tokenize", '{"prompt": "a"}'.encode(encoding)).error["message"]


def test_a_byte_order_mark_is_left_out() -> None:
    assert make_server().post("/tokenize", '{"prompt": "é"}'.encode("utf-8-sig")).json()["tokens"] == list("é".encode())
    assert make_server().post("/tokenize", '{"prompt": "\ufeff"}'.encode()).json()["count"] == 3  # not the text's own


def test_the_scanner_and_the_decoder_agree_on_what_is_json() -> None:
    seeds = [
        b'{"m":[{"r":"u","c":"x \\ud83d\\ude00 \\n y"}],"n":-1.5e3,"t":[true,false,null,{},[] ]}',
        b' [1, 2 , {"a" : ""}] ',
    ]
    letters, rng = b"{}[]\",:\\ud8a0123.eE+-tfn \n'x\xe9\x00", random.Random(5)
    for _ in range(20_000):
        body = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(body))
            body[at : at + rng.randint(0, 1)] = bytes(rng.choices(letters, k=rng.randint(0, 1)))
        try:
            msgspec.json.decode(bytes(body))
            is_json = True
        except (msgspec.DecodeError, UnicodeDecodeError):
            is_json = False
        assert (json_fault(bytes(body)).message == "The body is not valid JSON.") == is_json, bytes(body)


LARGE: dict[str, bytes] = {
    "numbers": b"[" + b"1," * 8_000_000,
    "brackets": b"[" * 16_000_000,
    "a string": b'{"a":"' + b"x\\n" * 5_000_000,
    "keys": b'{"a":' * 3_000_000,
    "escapes": b'["' + b"\\u00e9" * 2_600_000,
    "halves": b'["' + b"\\\\ud83d" * 2_200_000,
    "a late fault": b'{"a":"' + b"x" * 16_000_000 + b'",}',
}


@pytest.mark.parametrize("name", LARGE)
def test_of_a_large_body_only_the_beginning_is_looked_at(name: str) -> None:
    begin = time.process_time()
    assert json_fault(LARGE[name]).message == "The body is not valid JSON."
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("pad", range(MAX_CHARS - 24, MAX_CHARS))
def test_what_stands_where_the_look_ends_is_not_taken_for_a_fault(pad: int) -> None:
    for inside in (b"\\ud83d\\ude00", b"\\u00e9", b'", "b": true, "'):
        text = b'{"a":"' + b"x" * (pad - 6) + inside
        assert json_fault(text + b"x" * 100 + b'",}').message == "The body is not valid JSON."


def test_bytes_that_are_no_text_have_a_place_in_a_body_of_any_size() -> None:
    error = json_fault(b'{"a":"' + b"x" * 10_000_000 + b'\xe9"}')
    assert "byte `\\xe9` is not UTF-8" in error.message and "(byte 10000006)" in error.message and error.param is None
