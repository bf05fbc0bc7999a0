"""Builds a tokenizer from the metadata of a .gguf file.

    tokenizer.ggml.model = "gpt2"    byte-level BPE: tokens and merges; the pre-tokenizer by name
    tokenizer.ggml.model = "llama"   SentencePiece BPE: tokens with scores, from which the merges are recovered
    tokenizer.ggml.model = "gemma4"  the same with merges
    tokenizer.ggml.model = "t5"      SentencePiece unigram: tokens with scores, and a character map
    tokenizer.ggml.model = "bert"    WordPiece; tokens that begin a word have U+2581 before them

Text is not normalised: the file does not say whether the original tokenizer composed its characters (NFC).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from octavo.base.errors import CheckpointError
from octavo.files.gguf import GGUFFile
from octavo.files.sentencepiece import ModelKind, Piece, PieceKind, SentencePieceFile
from octavo.text.tokenizers.decoder_plan import BYTE_OF_CHAR, CHAR_OF_BYTE, SPACE
from octavo.text.tokenizers.merges import merges_from_vocabulary
from octavo.text.tokenizers.parts import (
    ExportedSteps,
    TokenizerParts,
    add_missing_special_tokens,
    longest,
    one_line,
    set_bos_eos,
    unique_ids,
)
from octavo.text.tokenizers.pre_tokenizers import BOS_BY_DEFAULT, IGNORE_MERGES, PRE_TOKENIZERS
from octavo.text.tokenizers.preparation import Preparation
from octavo.text.tokenizers.sentencepiece import build_sentencepiece, piece_decoder, with_first_prefix
from octavo.text.tokenizers.wordpiece import wordpiece

#: Values of tokenizer.ggml.model.
_KINDS: Final = ("gpt2", "llama", "gemma4", "t5", "bert")
#: tokenizer.ggml.token_type has SentencePiece's kinds.
_NORMAL, _CONTROL, _USER_DEFINED = PieceKind.NORMAL, PieceKind.CONTROL, PieceKind.USER_DEFINED

_SPECIAL_TOKEN_KEYS: Final = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # so spelled in the format
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
#: Control tokens that end a turn. Files name one EOS only, chat models stop at these as well.
_END_OF_TURN: Final = frozenset(
    {"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<EOT>"}
)
_TEMPLATE_KEY: Final = "tokenizer.chat_template"


class _Unusable(Exception):
    """The metadata is incomplete or contradicts itself; `load` adds the file's name."""


def load(path: Path) -> TokenizerParts:
    with GGUFFile(path) as file:
        metadata = file.metadata
    try:
        return _build(metadata, str(path))
    except _Unusable as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 (a panic of the library is a BaseException)
        raise CheckpointError(f"{path}: the tokenizer cannot be built: {one_line(error)}") from None


def _build(metadata: Mapping[str, Any], source: str) -> TokenizerParts:
    model = metadata.get("tokenizer.ggml.model")
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise _Unusable(f"tokenizer.ggml.token_type does not have one entry for each of the {len(tokens)} tokens.")
    add_bos = model in ("llama", "gemma4", "t5")
    preparation = exported = None
    if model == "gpt2":
        backend = _byte_level(metadata, tokens, types)
        add_bos = str(metadata.get("tokenizer.ggml.pre")) in BOS_BY_DEFAULT
    elif model == "llama":
        backend, preparation = _sentencepiece(metadata, tokens, types)
        if preparation is not None:
            exported = with_first_prefix(ExportedSteps(backend.normalizer, backend.pre_tokenizer))
    elif model == "gemma4":
        backend = _gemma4(metadata, tokens)
    elif model == "t5":
        built = build_sentencepiece(_unigram(metadata, tokens, types), Path(source), "every")
        backend, preparation, exported = built.backend, built.preparation, built.exported
    elif model == "bert":
        backend = _wordpiece(tokens, types)
    else:
        raise _Unusable(f"tokenizer.ggml.model is {str(model)[:40]!r}; {', '.join(_KINDS)} are supported.")
    special_tokens_map = _special_tokens_map(metadata, tokens)
    _add_tokens(backend, tokens, types)
    add_missing_special_tokens(backend, special_tokens_map.values())
    # WordPiece puts its texts between [CLS] and [SEP], whatever the file says of BOS and EOS.
    first, last = ("cls_token", "sep_token") if model == "bert" else ("bos_token", "eos_token")
    add_bos = model == "bert" or bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos))
    add_eos = model == "bert" or bool(metadata.get("tokenizer.ggml.add_eos_token", model == "t5"))
    set_bos_eos(
        backend,
        special_tokens_map.get(first, special_tokens_map.get("bos_token")) if add_bos else None,
        special_tokens_map.get(last, special_tokens_map.get("eos_token")) if add_eos else None,
    )
    return TokenizerParts(
        backend=backend,
        source=source,
        special_tokens_map=special_tokens_map,
        eos_token_ids=_eos_token_ids(metadata, tokens, types),
        chat_templates=_chat_templates(metadata),
        longest_token=longest(tokens, is_byte_level=model == "gpt2"),
        max_token_id=len(tokens) - 1,
        model_max_length=_context_length(metadata),
        config={} if model == "bert" else {"add_bos_token": add_bos, "add_eos_token": add_eos},
        preparation=preparation,
        exported=exported,
    )


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not value or not all(type(item) is str for item in value):
        raise _Unusable(f"{key} is missing or is not a list of strings.")
    return value


def _vocabulary(tokens: Sequence[str]) -> dict[str, int]:
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocab[token] != i)
        raise _Unusable(f"the token {twice!r} occurs twice in tokenizer.ggml.tokens.")
    return vocab


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> tokenizers.Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        raise _Unusable(f"the pre-tokenizer {str(pre)[:60]!r} (tokenizer.ggml.pre) is not known to octavo.")
    alphabet = BYTE_OF_CHAR.keys()
    plain = (_CONTROL, _USER_DEFINED)  # written as they are; all others are in the byte alphabet
    listed = set(tokens)

    def spelled(token: str, kind: int) -> str:
        if kind in plain or alphabet >= set(token):
            return token
        # Where the bytes of it are another token, this one can never be met, and is left as it is.
        made = _spelled(token)
        return token if made in listed else made

    vocab = _vocabulary([spelled(token, kind) for token, kind in zip(tokens, types, strict=True)])
    merges = [_pair(merge) for merge in _strings(metadata, "tokenizer.ggml.merges")]
    model = models.BPE(vocab=vocab, merges=merges, fuse_unk=False, ignore_merges=pre in IGNORE_MERGES)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = PRE_TOKENIZERS[pre]()
    backend.decoder = decoders.ByteLevel()
    return backend


def _spelled(text: str) -> str:
    return "".join(CHAR_OF_BYTE[byte] for byte in text.encode("utf-8"))


def _pair(merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not (left and space and right):
        raise _Unusable(f"{merge[:60]!r} in tokenizer.ggml.merges is not a pair of tokens.")
    return left, right


def _sentencepiece(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]
) -> tuple[tokenizers.Tokenizer, Preparation | None]:
    preparation = None
    architecture = str(metadata.get("general.architecture", ""))
    is_gemma = architecture.startswith("gemma")
    if is_gemma:  # runs of spaces are stored as spaces, all other tokens with the stand-in
        tokens = [SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    vocab = _vocabulary(tokens)
    # Gemma's scores are not in the order of its merges; the order of its tokens is.
    scores = None if is_gemma else _scores(metadata, len(tokens))
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    unk_token = tokens[unknown] if is_gemma and type(unknown) is int and 0 <= unknown < len(tokens) else None
    model = models.BPE(
        vocab=vocab,
        merges=merges_from_vocabulary(vocab, scores),
        unk_token=unk_token,
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", SPACE)
    if architecture == "phi3":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), backend.normalizer])
    elif not is_gemma and bool(metadata.get("tokenizer.ggml.add_space_prefix", True)):
        control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
        preparation = Preparation(prefix="first", special=control)
    backend.decoder = piece_decoder(strip=architecture == "phi3" or preparation is not None)
    return backend, preparation


def _gemma4(metadata: Mapping[str, Any], tokens: Sequence[str]) -> tokenizers.Tokenizer:
    merges = [_pair(merge) for merge in _strings(metadata, "tokenizer.ggml.merges")]
    model = models.BPE(vocab=_vocabulary(tokens), merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = piece_decoder(strip=False)
    return backend


def _unigram(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> SentencePieceFile:
    """The metadata as the file of SentencePiece that they were made from."""
    scores = _scores(metadata, len(tokens))
    characters = metadata.get("tokenizer.ggml.precompiled_charsmap") or []
    try:
        pieces = tuple(
            Piece(text, float(score), PieceKind(kind)) for text, score, kind in zip(tokens, scores, types, strict=True)
        )
        character_map = bytes(byte & 0xFF for byte in characters)
    except (TypeError, ValueError):
        raise _Unusable("its tokens' scores, types or character map are not what SentencePiece has.") from None
    return SentencePieceFile(
        pieces=pieces,
        kind=ModelKind.UNIGRAM,
        byte_fallback=any(piece.kind is PieceKind.BYTE for piece in pieces),
        spaces_end_words=False,
        character_map=character_map,
        add_dummy_prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        remove_extra_spaces=bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", True)),
        escape_spaces=True,
    )


def _wordpiece(tokens: Sequence[str], types: Sequence[int]) -> tokenizers.Tokenizer:
    """Hugging Face's spelling marks the tokens that continue a word instead."""

    def spelled(token: str, kind: int) -> str:
        if kind != _NORMAL or (token.startswith("[") and token.endswith("]") and len(token) > 2):
            return token
        return token[1:] if token.startswith(SPACE) else f"##{token}"

    vocab = _vocabulary([spelled(token, kind) for token, kind in zip(tokens, types, strict=True)])
    # The file does not say whether text is put in lower case: a vocabulary without capitals does.
    return wordpiece(vocab, lowercase=all(token == token.lower() for token in vocab if not token.startswith("[")))


def _scores(metadata: Mapping[str, Any], count: int) -> list[float]:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != count:
        raise _Unusable(f"tokenizer.ggml.scores does not have one entry for each of the {count} tokens.")
    return scores


def _special_tokens_map(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, str]:
    found = {}
    for name, key in _SPECIAL_TOKEN_KEYS.items():
        token_id = metadata.get(f"tokenizer.ggml.{key}")
        # Some files write 2**32 - 1 for "none".
        if type(token_id) is int and 0 <= token_id < len(tokens) and tokens[token_id]:
            found[name] = tokens[token_id]
    return found


def _add_tokens(backend: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Control tokens are special; user-defined ones are found whole in a text but are ordinary text."""
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL and token]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    # A run of spaces of Gemma's has another spelling in the vocabulary and is reached through merges.
    user = [token for token, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED]
    known = [token for token in user if token and backend.token_to_id(token) is not None]
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in known])


def _eos_token_ids(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> tuple[int, ...]:
    named = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = [i for i, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED) and tokens[i] in _END_OF_TURN]
    return tuple(i for i in unique_ids([*named, *ends]) if i < len(tokens))


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    templates = {}
    for key, value in metadata.items():
        if key == _TEMPLATE_KEY and isinstance(value, str):
            templates["default"] = value
        elif key.startswith(_TEMPLATE_KEY + ".") and isinstance(value, str):
            templates[key.removeprefix(_TEMPLATE_KEY + ".")] = value
    return templates


def _context_length(metadata: Mapping[str, Any]) -> int | None:
    value = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    return value if type(value) is int and value > 0 else None
