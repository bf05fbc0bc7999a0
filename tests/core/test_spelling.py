"""G26: the tokens of a dictated text are those of the model's own tokenizer, as far as they are certain."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.core.grammar.spelling import MAX_BYTES, Spelling
from octavo.text.tokenizers.tokenizer import load_tokenizer
from octavo.text.tokenizers.vocabulary import vocabulary_of

BYTES = [bytes([i]) for i in range(256)]
#: In the order in which a training would have found them.
MERGED = [b"na", b"me", b"name", b'":', b"as", b"am", b"es", b' "', b"_i", b"_id", b"id", b'{"']
TOKENS = [*BYTES, *MERGED, b"</s>", b""]
EOS = len(TOKENS) - 2


def spelled(text: bytes, tokens: list[bytes] = TOKENS) -> list[bytes]:
    return [tokens[i] for i in Spelling(tokens, {EOS}).begin(text)]


@pytest.mark.parametrize(
    ("text", "begin"),
    [
        (b'name":"', [b"name"]),  # the marks may go on, as in `":["`
        (b'name": "', [b"name", b'":']),  # and so may a space and a mark
        (b"name", []),  # `names` would be another word
        (b'{"names', [b'{"']),
        (b"a name 12", [b"a", b" ", b"name"]),
        (b"x_id:", [b"x", b"_id"]),  # one mark before letters is theirs
        (b'"_id:', [b'"', b"_", b"id"]),  # of two it is not
        (b"</s>name:", [b"<", b"/", b"s", b">", b"name"]),  # text is never a special token
        (b"\xc3\xa4:", [b"\xc3", b"\xa4"]),
    ],
)
def test_a_text_is_merged_by_rank_up_to_its_last_word(text: bytes, begin: list[bytes]) -> None:
    assert spelled(text) == begin


def test_where_bytes_are_the_exception_characters_are_merged() -> None:
    tokens = [*BYTES, b"e", b"\xc3\xa4", b"\xc3", b"h\xc3\xa4"]
    assert spelled("hä:".encode(), tokens) == ["hä".encode()]
    assert spelled("ö:".encode(), tokens) == [b"\xc3", b"\xb6"]


def test_a_byte_without_a_token_ends_what_is_known() -> None:
    assert spelled(b"name\x01 name:", [b if b != b"\x01" else b"" for b in TOKENS]) == [b"name"]


@given(st.text('aemns_id"{: 1ä', max_size=12), st.text('aemns_id"{: 1ä', max_size=12))
def test_what_follows_changes_nothing(text: str, more: str) -> None:
    begin = spelled(text.encode())
    assert spelled((text + more).encode())[: len(begin)] == begin
    assert text.encode().startswith(b"".join(begin))


def test_a_long_text_is_spelled_piece_by_piece() -> None:
    text = b"name " * MAX_BYTES
    begin = b"".join(spelled(text))
    assert MAX_BYTES - 20 < len(begin) <= MAX_BYTES and text.startswith(begin)


@pytest.mark.model
@pytest.mark.parametrize("model", ["smollm2_gguf", "qwen_gguf", "gemma_gguf"])
def test_real_tokenizers_agree(model: str, request: pytest.FixtureRequest) -> None:
    """Keys and strings of JSON, of the words of this code base and some of other kinds."""
    tokenizer = load_tokenizer(str(request.getfixturevalue(model)))
    vocabulary = vocabulary_of(tokenizer, tokenizer.eos_token_ids)
    spelling = Spelling(vocabulary.tokens, set(vocabulary.special_ids))
    source = "".join(path.read_text() for path in Path(__file__).parents[2].glob("src/octavo/*/*.py"))
    words = {
        *re.findall(r"[A-Za-z_]{2,30}", source),
        "über",
        "日本語",
        "имя",
        "2024-01-01",
        "$ref",
        "x-y",
        "don't",
        "C++",
    }
    for word in sorted(words):
        for text in (f'"{word}":"', f'"{word}": "', f',"{word}":', f'{word}":"'):
            begin = spelling.begin(text.encode())
            assert begin == list(tokenizer.encode(text, add_special_tokens=False))[: len(begin)], text
