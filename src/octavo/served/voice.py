"""How a model's texts become tokens and its tokens texts, where an adapter has a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from octavo.base.errors import CheckpointError
from octavo.text.tokenizers.tokenizer import Tokenizer, load_tokenizer

#: Files that a tokenizer can be read from, and those that are of no use without one of them.
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json")
_PARTS: Final = ("added_tokens.json",)


@dataclass(frozen=True, slots=True)
class Voice:
    """`renderer`: `text.templates.renderer.Renderer`, for this tokenizer."""

    tokenizer: Tokenizer
    renderer: Any


def voice_reader(base: Tokenizer, renderer: Any) -> Callable[[Path], Voice | None]:
    """Reads an adapter's own, in a thread; None: it has none, or the model's. Raises `StartupError`."""

    def read(adapter: Path) -> Voice | None:
        if not base.has_text or not adapter.is_dir():
            return None
        if not any((adapter / name).is_file() for name in _TOKENIZERS):
            found = next((name for name in _PARTS if (adapter / name).is_file()), None)
            if found is not None:
                raise CheckpointError(f"{adapter / found}: there is none of {', '.join(_TOKENIZERS)} beside it")
            return None
        tokenizer = load_tokenizer(adapter)
        if _is_same(tokenizer, base):
            return None
        return Voice(tokenizer, renderer.with_tokenizer(tokenizer))

    return read


def _is_same(tokenizer: Tokenizer, base: Tokenizer) -> bool:
    """Whether texts have the same tokens, and conversations the same text."""
    return (
        tokenizer.max_token_id == base.max_token_id
        and tokenizer.special_ids == base.special_ids
        and tokenizer.eos_token_ids == base.eos_token_ids
        and tokenizer.chat_templates in ({}, base.chat_templates)
        and all(tokenizer.token(i) == base.token(i) for i in range(base.max_token_id + 1))
    )
