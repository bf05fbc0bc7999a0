"""No tokenizer (--skip-tokenizer-init): prompts are token ids, and so is what is generated. Text of either is empty."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tokenizers import AddedToken

from octavo.base.errors import CheckpointError, InvalidRequest
from octavo.text.tokenizers.parts import TokenizerParts

NO_TEXT = "This server was started without a tokenizer (--skip-tokenizer-init): send token ids in place of text."


class AbsentBackend:
    """What `Tokenizer` asks of a tokenizer of the library."""

    decoder = None
    normalizer = None
    model = None

    def encode(self, text: str, add_special_tokens: bool = True) -> NoReturn:
        raise InvalidRequest(NO_TEXT)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return ""

    def token_to_id(self, token: str) -> None:
        return None

    def id_to_token(self, token_id: int) -> None:
        return None

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        return 0

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        return {}

    def to_str(self, pretty: bool = False) -> NoReturn:
        raise CheckpointError(NO_TEXT)


def absent(source: Path) -> TokenizerParts:
    """The ids that end a text are then the model's own."""
    return TokenizerParts(
        backend=AbsentBackend(),  # type: ignore[arg-type] # it answers all that `Tokenizer` asks
        source=str(source),
        special_tokens_map={},
        eos_token_ids=(),
        longest_token=1,
        max_token_id=-1,
    )
