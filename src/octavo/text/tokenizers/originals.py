"""The vocabulary files that tokenizers had before tokenizer.json, and models of Mistral have today.

tekken.json                       Mistral's byte tokens with ranks
tokenizer.model.v1, .v2, .v3 ...  Mistral's SentencePiece files
tokenizer.model, spiece.model, sentencepiece.bpe.model    SentencePiece's, or tiktoken's under the same name
*.tiktoken                        byte tokens with ranks
vocab.json and merges.txt         byte-level BPE
vocab.txt                         WordPiece
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import tokenizers
from tokenizers import decoders, models, normalizers

from octavo.base.errors import CheckpointError
from octavo.files.reading import MAX_VOCABULARY_BYTES, read_text
from octavo.files.sentencepiece import is_sentencepiece
from octavo.text.tokenizers.parts import BuiltVocabulary, set_bos_eos
from octavo.text.tokenizers.pre_tokenizers import PRE_TOKENIZERS
from octavo.text.tokenizers.sentencepiece import load_sentencepiece
from octavo.text.tokenizers.tiktoken import is_tiktoken, load_tiktoken
from octavo.text.tokenizers.wordpiece import NEEDED, wordpiece

_SENTENCEPIECE: Final = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "tokenizer.spm")
_MISTRAL_VERSION: Final = re.compile(r"tokenizer\.model\.v(\d+)(m\d+)?")
#: Classes whose ids are not those of their SentencePiece file: they put tokens of their own before it.
_OTHER_IDS: Final = (
    "XLMRoberta", "Camembert", "Barthez", "MBart", "Nllb", "XGLM", "Pegasus", "M2M100", "PLBart", "Marian",
    "Speech2Text",
)  # fmt: skip
_ENDS_WITH_EOS: Final = ("T5", "MT5", "UMT5", "ByT5")
#: tokenizer_class -> rule by which byte-level BPE cuts text into words.
_WORDS: Final[Mapping[str, str]] = {
    "GPT2": "gpt-2", "Roberta": "gpt-2", "CodeGen": "gpt-2", "Bart": "gpt-2", "Longformer": "gpt-2", "Whisper": "gpt-2",
    "Qwen2": "qwen2", "": "gpt-2",
}  # fmt: skip


def mistral_file(directory: Path) -> Path | None:
    """The vocabulary that Mistral's own library would take: tekken.json, else the newest tokenizer.model.vN."""
    tekken = directory / "tekken.json"
    if tekken.is_file():
        return tekken
    found = [(match, path) for path in directory.glob("tokenizer.model.v*") if (match := _version(path))]
    if found:
        return max(found)[1]
    plain = directory / "tokenizer.model"
    return plain if plain.is_file() else None


def _version(path: Path) -> tuple[int, str] | None:
    match = _MISTRAL_VERSION.fullmatch(path.name)
    return None if match is None else (int(match[1]), match[2] or "")


def load_original(directory: Path, config: Mapping[str, Any]) -> BuiltVocabulary | None:
    """The tokenizer of a directory's vocabulary file; None if there is none that is known.

    `config` is the directory's tokenizer_config.json. Raises `CheckpointError`.
    """
    named = [path for name in _SENTENCEPIECE if (path := directory / name).is_file()]
    ranks = sorted(directory.glob("*.tiktoken"))
    if named:
        return load_vocabulary_file(named[0], config)
    if len(ranks) == 1:
        return load_tiktoken(ranks[0], config)
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        return _byte_level(directory, config)
    if (directory / "vocab.txt").is_file():
        return _wordpiece(directory, config)
    return None


def load_vocabulary_file(path: Path, config: Mapping[str, Any]) -> BuiltVocabulary:
    """A file of SentencePiece or tiktoken, which may have the same name. Raises `CheckpointError`."""
    try:
        if is_tiktoken(path):
            return load_tiktoken(path, config)
        if not is_sentencepiece(path):
            raise CheckpointError(f"{path}: neither a file of SentencePiece nor one of tiktoken.")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    return _sentencepiece(path, config)


def _sentencepiece(path: Path, config: Mapping[str, Any]) -> BuiltVocabulary:
    name = _class(config)
    if name.startswith(_OTHER_IDS):
        raise CheckpointError(
            f"{path}: the tokenizer {name} has other ids than its SentencePiece file: convert it to a tokenizer.json "
            "with transformers (AutoTokenizer.from_pretrained(...).save_pretrained), and name that with --tokenizer."
        )
    if config.get("add_prefix_space") is False:
        return load_sentencepiece(path, "none")
    # As transformers: "legacy" puts the space before each part of a text that special tokens cut.
    built = load_sentencepiece(path, "first" if config.get("legacy") is False else "every")
    if name.startswith(_ENDS_WITH_EOS):
        return replace(built, add_bos=False, add_eos=True)
    return built


def _class(config: Mapping[str, Any]) -> str:
    return str(config.get("tokenizer_class") or "").removesuffix("Fast").removesuffix("Tokenizer")


def _byte_level(directory: Path, config: Mapping[str, Any]) -> BuiltVocabulary:
    words = _WORDS.get(_class(config))
    if words is None:
        raise CheckpointError(
            f"{directory}: how {str(config.get('tokenizer_class'))[:60]} cuts text into words is not known to octavo; "
            "give a tokenizer.json with --tokenizer."
        )
    path = directory / "vocab.json"
    try:
        vocab = json.loads(read_text(path, MAX_VOCABULARY_BYTES))
        if not isinstance(vocab, dict) or not all(type(i) is int and 0 <= i < 1 << 24 for i in vocab.values()):
            raise CheckpointError(f"{path}: not a mapping of tokens to ids.")
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: not valid JSON.") from None
    lines = read_text(directory / "merges.txt", MAX_VOCABULARY_BYTES).split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    bad = next((merge for merge in merges if len(merge) != 2), None)
    if bad is not None:
        raise CheckpointError(f"{directory / 'merges.txt'}: {' '.join(bad)[:60]!r} is not a pair of tokens.")
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))  # type: ignore[arg-type]
    if words == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = PRE_TOKENIZERS[words]()
    backend.decoder = decoders.ByteLevel()
    return BuiltVocabulary(backend=backend, special_tokens={})


def _wordpiece(directory: Path, config: Mapping[str, Any]) -> BuiltVocabulary:
    tokens = read_text(directory / "vocab.txt", MAX_VOCABULARY_BYTES).split("\n")
    vocab = {token.rstrip("\r"): i for i, token in enumerate(tokens) if token.rstrip("\r")}
    if not vocab.keys() >= set(NEEDED):
        raise CheckpointError(f"{directory / 'vocab.txt'}: not WordPiece: {', '.join(NEEDED)} are not all there.")
    backend = wordpiece(
        vocab,
        lowercase=bool(config.get("do_lower_case", True)),
        strip_accents=config.get("strip_accents"),
        cut_chinese=bool(config.get("tokenize_chinese_chars", True)),
    )
    set_bos_eos(backend, "[CLS]", "[SEP]")
    names = {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    return BuiltVocabulary(backend=backend, special_tokens={n: t for n, t in names.items() if t in vocab})
