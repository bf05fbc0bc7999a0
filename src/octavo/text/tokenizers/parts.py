"""What the loaders of tokenizers hand over, and the few things they share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import tokenizers
from tokenizers import AddedToken, processors
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from octavo.text.tokenizers.preparation import Preparation

#: The names that templates may use; other keys of a special_tokens_map are no names.
SPECIAL_TOKEN_NAMES: Final = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip


@dataclass(frozen=True)
class ExportedSteps:
    """What a tokenizer.json has in place of a `preparation`: the nearest that the library can say."""

    normalizer: Normalizer | None
    pre_tokenizer: PreTokenizer | None


@dataclass(frozen=True, kw_only=True)
class TokenizerParts:
    """What a loader found. `backend` has no truncation and no padding; nobody changes it from here on."""

    backend: tokenizers.Tokenizer
    source: str  # file or directory, for messages
    special_tokens_map: dict[str, str]  # bos_token, eos_token, unk_token, ... -> text
    eos_token_ids: tuple[int, ...]  # the tokenizer's own first, then those of the generation config
    chat_templates: dict[str, str] = field(default_factory=dict)  # name -> source; "default" is the usual one
    model_max_length: int | None = None  # tokens
    config: dict[str, Any] = field(default_factory=dict)  # as in a tokenizer_config.json, for whoever asks
    longest_token: int  # bytes of text that the longest token stands for
    max_token_id: int
    preparation: Preparation | None = None  # of a text, before the backend sees it
    exported: ExportedSteps | None = None


@dataclass(frozen=True, kw_only=True)
class BuiltVocabulary:
    """A tokenizer made from an original vocabulary file, before what a directory's configuration adds."""

    backend: tokenizers.Tokenizer
    preparation: Preparation | None = None
    exported: ExportedSteps | None = None
    special_tokens: dict[str, str]  # bos_token, ... as the file or its kind names them
    add_bos: bool = False  # unless the backend's own rule puts it there, or the configuration says otherwise
    add_eos: bool = False
    chat_template: str | None = None


def one_line(error: BaseException) -> str:
    """An error of a library as part of our message: one line, not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."


def add_missing_special_tokens(backend: tokenizers.Tokenizer, special_tokens: Iterable[str]) -> None:
    """Make each of the tokens that the vocabulary has one that is special and found whole in a text."""
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    for token in dict.fromkeys(special_tokens):
        # One that the vocabulary lacks would get a new id, past the end of the model's embedding.
        if token not in known and backend.token_to_id(token) is not None:
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])


def set_bos_eos(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> None:
    """Make `add_special_tokens` put `bos` before and `eos` behind the text; None: nothing there."""
    names = [name for name in (bos, eos) if name is not None]
    ids = [(name, backend.token_to_id(name)) for name in dict.fromkeys(names)]
    backend.post_processor = processors.TemplateProcessing(
        single=[*([bos] if bos is not None else []), "$A", *([eos] if eos is not None else [])],
        special_tokens=ids,
    )


def longest(tokens: Iterable[str], is_byte_level: bool) -> int:
    """Bytes of the longest token, 1 at least. A character of the byte alphabet is one byte."""
    size = len if is_byte_level else _utf8_size
    return max(map(size, tokens), default=1) or 1


def _utf8_size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def unique_ids(ids: Iterable[Any]) -> tuple[int, ...]:
    """The token ids among `ids`, in order, each once. What is no token id is left out."""
    return tuple(dict.fromkeys(i for i in ids if type(i) is int and i >= 0))
