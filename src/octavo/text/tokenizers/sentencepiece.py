"""Builds a tokenizer from a vocabulary file of SentencePiece: its ids are SentencePiece's.

    BPE        tokens with scores, from which the merges are recovered; what no token covers is bytes or unknown
    unigram    tokens with log probabilities; the likeliest cut of the text

Differences that are meant: control tokens, which SentencePiece never finds in a text, are found whole, as Hugging
Face's tokenizers do.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from octavo.base.errors import CheckpointError
from octavo.files.sentencepiece import ModelKind, PieceKind, SentencePieceFile, read_sentencepiece
from octavo.text.tokenizers.decoder_plan import SPACE
from octavo.text.tokenizers.merges import merges_from_vocabulary
from octavo.text.tokenizers.parts import BuiltVocabulary, ExportedSteps
from octavo.text.tokenizers.preparation import Prefix, Preparation, read_character_map

_BYTE_NAME: Final = "<(?=0x[0-9A-F]{2}>)"
#: Unused tokens of a vocabulary that can be kept from being met one by one.
_MAX_UNUSED: Final = 1000


def load_sentencepiece(path: Path, prefix: Prefix) -> BuiltVocabulary:
    """`prefix`: where the dummy prefix stands, if the file has one.

    Raises `CheckpointError`; for whatever the library raises, its own errors.
    """
    return build_sentencepiece(read_sentencepiece(path), path, prefix)


def build_sentencepiece(file: SentencePieceFile, path: Path, prefix: Prefix) -> BuiltVocabulary:
    """`path`: where it was read from, for messages. Raises as `load_sentencepiece`."""
    _check(file, path)
    prefix = prefix if file.add_dummy_prefix else "none"
    try:
        characters = read_character_map(file.character_map) if file.character_map else {}
    except ValueError as error:  # UnicodeDecodeError is one
        raise CheckpointError(f"{path}: {error}") from None
    special = [piece.text for piece in file.pieces if piece.kind in (PieceKind.CONTROL, PieceKind.UNKNOWN)]
    whole = [piece.text for piece in file.pieces if piece.kind is PieceKind.USER_DEFINED]
    backend = _backend(file, path, strip=prefix != "none")
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in whole])
    return BuiltVocabulary(
        backend=backend,
        preparation=Preparation(
            characters, prefix=prefix, remove_extra_spaces=file.remove_extra_spaces, special=special, whole=whole
        ),
        exported=_exported(backend, file, prefix),
        special_tokens=_special_tokens(file),
        add_bos=True,
    )


def _check(file: SentencePieceFile, path: Path) -> None:
    if file.kind not in (ModelKind.BPE, ModelKind.UNIGRAM):
        raise CheckpointError(f"{path}: a SentencePiece model of kind {file.kind.name}; BPE and UNIGRAM are supported.")
    if file.spaces_end_words or not file.escape_spaces:
        raise CheckpointError(f"{path}: SentencePiece's spaces behind words, or as they are, are not supported.")
    unused = _unused(file)
    is_cut = file.kind is ModelKind.UNIGRAM and len(unused) <= _MAX_UNUSED and all(len(text) > 1 for text in unused)
    if unused and not is_cut:
        raise CheckpointError(f"{path}: SentencePiece's unused pieces, such as {unused[0]!r}, are not supported.")
    seen: set[str] = set()
    for piece in file.pieces:
        if piece.text in seen or not piece.text:
            raise CheckpointError(f"{path}: the piece {piece.text!r} occurs twice or is empty.")
        seen.add(piece.text)


def _backend(file: SentencePieceFile, path: Path, *, strip: bool) -> tokenizers.Tokenizer:
    unknown = [i for i, piece in enumerate(file.pieces) if piece.kind is PieceKind.UNKNOWN]
    if len(unknown) != 1:
        raise CheckpointError(f"{path}: {len(unknown)} unknown pieces; SentencePiece has one.")
    unk_token = file.pieces[unknown[0]].text
    model: models.Model
    if file.kind is ModelKind.BPE:
        vocab = {piece.text: i for i, piece in enumerate(file.pieces)}
        plain = {piece.text: i for i, piece in enumerate(file.pieces) if piece.kind is PieceKind.NORMAL}
        merges = merges_from_vocabulary(plain, [piece.score for piece in file.pieces])
        model = models.BPE(
            vocab=vocab, merges=merges, unk_token=unk_token, fuse_unk=True, byte_fallback=file.byte_fallback
        )
    else:
        model = models.Unigram(_scored(file), unknown[0], byte_fallback=file.byte_fallback)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", SPACE)
    never = _never_read(file)
    if never:
        backend.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(never)), behavior="isolated")
    backend.decoder = piece_decoder(strip=strip)
    return backend


def piece_decoder(*, strip: bool) -> decoders.Decoder:
    """Tokens to text; `strip`: but for the space that was put before it."""
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)


def _unused(file: SentencePieceFile) -> list[str]:
    return [piece.text for piece in file.pieces if piece.kind is PieceKind.UNUSED]


def _never_read(file: SentencePieceFile) -> list[str]:
    """Patterns of the first character of texts that are tokens' names and must not be read as the tokens: a text is
    cut behind it."""
    if file.kind is not ModelKind.UNIGRAM:
        return []  # no merges lead to them
    names = [f"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in _unused(file)]
    return [*names, _BYTE_NAME] if file.byte_fallback else names


def _scored(file: SentencePieceFile) -> list[tuple[str, float]]:
    """Tokens that no text is read as have a score too: it must not be the least, from which the unknown follows."""
    worst = min((piece.score for piece in file.pieces if piece.kind is PieceKind.NORMAL), default=0.0)
    return [(piece.text, piece.score if piece.kind is PieceKind.NORMAL else worst) for piece in file.pieces]


def _exported(backend: tokenizers.Tokenizer, file: SentencePieceFile, prefix: Prefix) -> ExportedSteps:
    steps: list[normalizers.Normalizer] = []
    if file.character_map:
        steps.append(normalizers.Precompiled(file.character_map))
    if file.remove_extra_spaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if prefix == "every":
        steps.append(normalizers.Prepend(SPACE))
    made = ExportedSteps(normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)]), backend.pre_tokenizer)
    return with_first_prefix(made) if prefix == "first" else made


def with_first_prefix(steps: ExportedSteps) -> ExportedSteps:
    """SPACE before a text, by the library's nearest rule."""
    whole = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    own = steps.pre_tokenizer
    return replace(steps, pre_tokenizer=whole if own is None else pre_tokenizers.Sequence([whole, own]))


def _special_tokens(file: SentencePieceFile) -> dict[str, str]:
    names = {"<s>": "bos_token", "<bos>": "bos_token", "</s>": "eos_token", "<eos>": "eos_token", "<pad>": "pad_token"}
    found = {names[p.text]: p.text for p in file.pieces if p.kind is PieceKind.CONTROL and p.text in names}
    unknown = next((piece.text for piece in file.pieces if piece.kind is PieceKind.UNKNOWN), None)
    return found if unknown is None else found | {"unk_token": unknown}
