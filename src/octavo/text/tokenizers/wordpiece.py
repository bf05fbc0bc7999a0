"""WordPiece, the vocabulary of BERT: a word is cut into the longest tokens, those behind its first marked by "##"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

#: A vocabulary that lacks one of them is none of WordPiece.
NEEDED: Final = ("[UNK]", "[CLS]", "[SEP]")


def wordpiece(
    vocab: Mapping[str, int], *, lowercase: bool, strip_accents: bool | None = None, cut_chinese: bool = True
) -> tokenizers.Tokenizer:
    """`strip_accents`: None, as `lowercase`. `cut_chinese`: each Chinese character is a word."""
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=dict(vocab), unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=cut_chinese, strip_accents=strip_accents, lowercase=lowercase
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend
