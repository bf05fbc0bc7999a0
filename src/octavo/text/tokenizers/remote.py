"""A tokenizer that a model's own code makes (--trust-remote-code): run in a helper process, which may be killed.

For vocabularies that octavo does not read itself. Nothing is known of how such a tokenizer makes text of its tokens:
outputs cannot be held to grammars, and the stream is decoded window by window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken

from octavo.base.errors import CheckpointError, InvalidRequest, ServerError
from octavo.base.helper_process import HelperEnded, HelperProcess
from octavo.text.tokenizers.parts import TokenizerParts

COMMAND: Final = HelperProcess.command("octavo.text.tokenizers.remote_helper")
#: Seconds that the code may take to load, and for one text.
LOAD_SECONDS: Final = 120.0
TEXT_SECONDS: Final = 30.0
_MAX_LENGTH: Final = 1 << 30


@dataclass(frozen=True)
class Encoding:
    ids: list[int]


class RemoteBackend:
    """What `Tokenizer` asks of a tokenizer of the library, answered by the helper."""

    decoder = None
    normalizer = None
    model = None

    def __init__(self, directory: Path, code_revision: str | None = None) -> None:
        """Raises `CheckpointError` when the code cannot be loaded."""
        self._directory = directory
        self._load: dict[str, Any] = {"load": str(directory), "code_revision": code_revision}
        self._helper = HelperProcess(COMMAND, "runs the model's own tokenizer")
        try:
            self.description = self._loaded()
        except (TimeoutError, HelperEnded, ServerError) as error:
            raise CheckpointError(f"{directory}: the tokenizer's own code did not load: {_why(error)}") from None
        self._tokens = {i: token for token, i in self.description["vocab"].items()}

    def _loaded(self) -> dict[str, Any]:
        reply = self._helper.ask(self._load, LOAD_SECONDS)
        if "error" in reply:
            self._helper.close()
            raise CheckpointError(f"{self._directory}: the tokenizer's own code failed: {reply['error']}")
        return reply

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            reply = self._helper.ask(request, TEXT_SECONDS)
            if "unloaded" in reply:  # a new helper: the one before was killed, for another text or by the system
                self._loaded()
                reply = self._helper.ask(request, TEXT_SECONDS)
        except (TimeoutError, HelperEnded) as error:
            raise InvalidRequest(f"The model's own tokenizer was stopped: {_why(error)}.") from None
        if "error" in reply:
            raise InvalidRequest(f"The model's own tokenizer failed: {reply['error']}")
        return reply

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoding:
        text.encode()  # a lone surrogate is the caller's error
        return Encoding(self._ask({"encode": text, "special": add_special_tokens})["ids"])

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return str(self._ask({"decode": list(ids), "skip": skip_special_tokens})["text"]) if ids else ""

    def token_to_id(self, token: str) -> int | None:
        found: int | None = self.description["vocab"].get(token)
        return found

    def id_to_token(self, token_id: int) -> str | None:
        return self._tokens.get(token_id)

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        return int(self.description["size"])

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        special = set(self.description["special_ids"])
        added = {int(i): text for i, text in self.description["added"].items()}
        texts = added | {i: text for i in special if (text := self._tokens.get(i)) is not None}
        return {i: AddedToken(text, special=i in special, normalized=False) for i, text in texts.items()}

    def to_str(self, pretty: bool = False) -> str:
        raise CheckpointError(f"{self._directory}: a tokenizer of a model's own code cannot be written as a file.")


def _why(error: Exception) -> str:
    return "it takes too long" if isinstance(error, TimeoutError) else str(error) or "it ended"


def load_remote(directory: Path, code_revision: str | None) -> TokenizerParts:
    """Raises `CheckpointError`."""
    backend = RemoteBackend(directory, code_revision)
    about = backend.description
    template, length = about["chat_template"], about["max_length"]
    templates = {"default": template} if isinstance(template, str) else dict(template or {})
    ends = about["eos"] if isinstance(about["eos"], list) else [about["eos"]]
    return TokenizerParts(
        backend=backend,  # type: ignore[arg-type] # it answers all that `Tokenizer` asks
        source=str(directory),
        special_tokens_map=about["special_tokens"],
        eos_token_ids=tuple(i for i in ends if type(i) is int),
        chat_templates=templates,
        model_max_length=int(length) if 0 < length <= _MAX_LENGTH else None,
        longest_token=1,
        max_token_id=max([*about["vocab"].values(), int(about["size"]) - 1]),
    )
