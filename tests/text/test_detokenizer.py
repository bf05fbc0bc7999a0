"""Incremental decoding equals decoding at once, for any ids and any split, and never breaks a character."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

from octavo.server.openai.logprobs import TextOffsets
from octavo.text.tokenizers.decoder_plan import BYTE_OF_CHAR, byte_token
from octavo.text.tokenizers.detokenizer import IncrementalDetokenizer
from octavo.text.tokenizers.parts import TokenizerParts
from octavo.text.tokenizers.tokenizer import Tokenizer, load_tokenizer


def make(
    vocab: Sequence[str], decoder: decoders.Decoder, specials: Sequence[str], added: Sequence[str] = ()
) -> Tokenizer:
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(vocab)}, merges=[]))
    backend.decoder = decoder
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    backend.add_tokens([AddedToken(token, normalized=False) for token in added])
    return Tokenizer(
        TokenizerParts(
            backend=backend,
            source="test",
            special_tokens_map={},
            eos_token_ids=(),
            longest_token=16,
            max_token_id=backend.get_vocab_size() - 1,
        )
    )


SPACE = "\u2581"
PIECES = [
    *(byte_token(byte) for byte in range(256)),
    *(f"{SPACE}the", SPACE, SPACE * 3, "a", "\u00e9", "\U0001f642", "", f"{SPACE}<0x41>", "<0x4", "x y"),
]
SENTENCEPIECE = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
# Added tokens with characters of the byte alphabet, outside it, and with spaces.
ADDED = ["\u00e9", " x ", "\uff5cend\uff5c"]
TOKENIZERS = {
    "byte-level": make(list(BYTE_OF_CHAR), decoders.ByteLevel(), ["<s>", "</s>"], ADDED),
    "gemma": make(PIECES, decoders.Sequence(SENTENCEPIECE), ["<s>", "</s>"]),
    "llama": make(PIECES, decoders.Sequence([*SENTENCEPIECE, decoders.Strip(" ", 1, 0)]), ["<s>", "</s>"]),
    "strip-2": make(PIECES, decoders.Sequence([*SENTENCEPIECE, decoders.Strip(" ", 2, 0)]), ["<s>", "</s>"]),
    "metaspace": make(PIECES, decoders.Metaspace(SPACE, "always"), ["<s>", "</s>"]),
    "metaspace-never": make(PIECES, decoders.Metaspace(SPACE, "never"), ["<s>", "</s>"]),
}
# Ids past the end of the vocabulary too: a model's logits may be wider than it.
IDS = st.lists(st.integers(0, 275), max_size=40)
CUTS = st.lists(st.integers(0, 40), max_size=10)


def pushes(tokenizer: Tokenizer, ids: Sequence[int], cuts: Sequence[int], skip: bool) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip)
    places = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    return [*(detokenizer.push(ids[a:b]) for a, b in itertools.pairwise(places)), detokenizer.finish()]


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(ids=IDS, cuts=CUTS, skip=st.booleans())
def test_w26_pushes_join_to_the_decoded_whole(kind: str, ids: list[int], cuts: list[int], skip: bool) -> None:
    tokenizer = TOKENIZERS[kind]
    assert "".join(pushes(tokenizer, ids, cuts, skip)) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=st.text(max_size=12), skip=st.booleans())
def test_bytes_of_whole_characters_come_out_whole(kind: str, text: str, skip: bool) -> None:
    tokenizer = TOKENIZERS[kind]
    if kind == "byte-level":
        ids = [list(BYTE_OF_CHAR.values()).index(byte) for byte in text.encode()]
    else:
        ids = list(text.encode())
    parts = pushes(tokenizer, ids, range(len(ids)), skip)
    assert "".join(parts) == tokenizer.decode(ids, skip)
    if "metaspace" not in kind and "\ufffd" not in text:  # Metaspace does not know byte tokens
        assert not any("\ufffd" in part for part in parts)
        assert "".join(parts) in (text, text[1:], text[2:])


@pytest.mark.parametrize("kind", ["byte-level", "gemma"])
def test_w26_a_text_may_begin_inside_a_character(kind: str) -> None:
    # The prompt ended with the first bytes of a character; the model goes on with the others.
    tokenizer = TOKENIZERS[kind]
    raw = "\U0001f642ok".encode()[2:]
    ids = [list(BYTE_OF_CHAR.values()).index(byte) for byte in raw] if kind == "byte-level" else list(raw)
    assert "".join(pushes(tokenizer, ids, range(len(ids)), True)) == tokenizer.decode(ids)


# Bytes that a model may write one token at a time, and the text that they are.
BYTES: list[tuple[bytes, str]] = [
    ("\u00e9".encode(), "\u00e9"),
    ("\u4f60\u597d".encode(), "\u4f60\u597d"),
    ("\U0001f469\u200d\U0001f680".encode(), "\U0001f469\u200d\U0001f680"),
    (b"\xc3", "\ufffd"),  # ends inside a character
    (b"a\xe4\xbd", "a\ufffd"),
    (b"\xf0\x9f\x99", "\ufffd"),
    (b"\x82\xac", "\ufffd\ufffd"),  # begins inside one
    (b"\xc3a", "\ufffda"),  # broken off by another
    (b"\xff\xfe", "\ufffd\ufffd"),
    (b"\xc0\x80", "\ufffd\ufffd"),  # overlong
    (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),  # half of a surrogate pair
    (b"\xf5\x80\x80\x80", "\ufffd" * 4),  # beyond Unicode
    (b"\x00\x7f", "\x00\x7f"),
    (b"", ""),
]


@pytest.mark.parametrize("row", BYTES, ids=lambda row: repr(row[0]))
@pytest.mark.parametrize("cuts", [[], [1], range(8), [2, 3]], ids=str)
def test_w26_bytes_that_are_no_text_come_out_as_in_the_whole(row: Any, cuts: Sequence[int]) -> None:
    raw, text = row
    level = TOKENIZERS["byte-level"]
    ids = [list(BYTE_OF_CHAR.values()).index(byte) for byte in raw]
    assert "".join(pushes(level, ids, cuts, True)) == level.decode(ids) == text
    pieces = TOKENIZERS["gemma"]
    assert "".join(pushes(pieces, list(raw), cuts, True)) == pieces.decode(list(raw))


@pytest.mark.parametrize("kind", ["byte-level", "gemma", "llama"])
@pytest.mark.parametrize("skip", [True, False])
def test_w26_a_special_token_inside_a_character_ends_it(kind: str, skip: bool) -> None:
    tokenizer = TOKENIZERS[kind]
    special = min(tokenizer.special_ids)
    first, second = (
        [list(BYTE_OF_CHAR.values()).index(byte) if kind == "byte-level" else byte for byte in part]
        for part in ("\u4f60".encode()[:2], "\u4f60".encode()[2:])
    )
    ids = [*first, special, *second]
    assert "".join(pushes(tokenizer, ids, range(len(ids)), skip)) == tokenizer.decode(ids, skip)


def test_an_unknown_decoder_works_through_a_window() -> None:
    vocab = ["[CLS]", "play", "##ing", "chess", "\u00e9"]
    tokenizer = make(vocab, decoders.WordPiece(), ["[CLS]"])
    assert tokenizer.decoder_plan is None and tokenizer.token_bytes(1) is None
    ids = [0, 1, 2, 3, 4, 1]
    assert "".join(pushes(tokenizer, ids, range(6), True)) == tokenizer.decode(ids) == "playing chess \u00e9 play"


def test_token_bytes_are_those_of_the_text() -> None:
    level, pieces = TOKENIZERS["byte-level"], TOKENIZERS["gemma"]
    assert [level.token_bytes(i) for i in range(256)] == [bytes([byte]) for byte in BYTE_OF_CHAR.values()]
    assert [pieces.token_bytes(i) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert pieces.token_bytes(256) == b" the"
    assert level.token_bytes(10_000) is None and level.token_bytes(-1) is None and level.token_bytes(2**40) is None


@pytest.fixture(scope="module", params=["smollm2_gguf", "qwen_gguf", "gemma_gguf"])
def real(request: pytest.FixtureRequest) -> Tokenizer:
    path: Path = request.getfixturevalue(request.param)
    return load_tokenizer(path)


TEXT = (
    "Hello  world\n\tdef f(x): return x\u00b2 # caf\u00e9 \u4f60\u597d \U0001f469\u200d\U0001f680 "
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \x00\x7f <|im_end|>"
)


def test_real_vocabularies_stream_exactly(real: Tokenizer) -> None:
    ids = real.encode(TEXT, add_special_tokens=False)
    for skip in (True, False):
        assert "".join(pushes(real, ids, range(len(ids)), skip)) == real.decode(ids, skip)
    assert "".join(pushes(real, ids, range(len(ids)), False)) == TEXT
    assert b"".join(real.token_bytes(i) or b"" for i in ids) == TEXT.encode()


def _places(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Where each token begins in the text: at the character that its first byte belongs to."""
    sizes = [len(tokenizer.token_bytes(i) or b"") for i in ids]
    raw = b"".join(tokenizer.token_bytes(i) or b"" for i in ids)
    return [len(raw[:start].decode("utf-8", "ignore")) for start in itertools.accumulate([0, *sizes[:-1]])]


def test_offsets_of_tokens_are_their_places_in_the_text(real: Tokenizer) -> None:
    ids = real.encode(TEXT + "\U00013000\U00013001 end", add_special_tokens=False)
    for pieces in ([ids], [[token_id] for token_id in ids]):
        offsets = TextOffsets(IncrementalDetokenizer(real, False), 7)
        assert [place for piece in pieces for place in offsets.take(piece)] == [7 + p for p in _places(real, ids)]


def test_offsets_leave_out_what_is_not_in_the_text() -> None:
    for kind, ids, expected in (
        ("gemma", [256, *"\U0001f642\u00e9".encode(), 256], [0, 4, 4, 4, 4, 5, 5, 6]),
        ("llama", [256, 256], [0, 3]),  # the space in front is dropped
    ):
        assert TextOffsets(IncrementalDetokenizer(TOKENIZERS[kind], True)).take(ids) == expected
    level = TOKENIZERS["byte-level"]
    special = min(level.special_ids)
    ids = [level.encode("a", False)[0], special, level.encode("b", False)[0]]
    assert TextOffsets(IncrementalDetokenizer(level, True)).take(ids) == [0, 1, 1]


def test_random_ids_of_real_vocabularies_stream_exactly(real: Tokenizer) -> None:
    @given(ids=st.lists(st.integers(0, real.max_token_id + 5), max_size=30), cuts=CUTS, skip=st.booleans())
    def check(ids: list[int], cuts: list[int], skip: bool) -> None:
        assert "".join(pushes(real, ids, cuts, skip)) == real.decode(ids, skip)

    check()


def test_the_state_of_a_decoder_is_json() -> None:
    """`decoder_plan` reads it; a library that changes it must not go unnoticed."""
    state = json.loads(decoders.Sequence(SENTENCEPIECE).__getstate__())
    assert [step["type"] for step in state["decoders"]] == ["Replace", "ByteFallback", "Fuse"]
