"""The tokenizer: text to ids and back, from a Hugging Face directory or a .gguf file.

`Tokenizer` is configured once and never changed, so every method may be called from any thread. `encode` takes
about a microsecond a byte and lets other threads run meanwhile; offload it for long texts. Special tokens that
stand in the text are recognised, as in the Hugging Face tokenizers.

What it does not know: the width of the model's logits, which may be larger or smaller than `vocab_size`.
Compare `max_token_id` with it before an id reaches the engine.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# The library would start a thread pool of its own; it reads the variable when it first encodes.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers

import octavo.text.tokenizers.gguf as gguf_tokenizer
import octavo.text.tokenizers.huggingface as hf_tokenizer
from octavo.base.config.engine import TokenizerMode
from octavo.base.errors import CheckpointError, InvalidRequest
from octavo.text.tokenizers.absent import absent
from octavo.text.tokenizers.decoder_plan import ByteLevelPlan, DecoderPlan, PiecePlan, PieceTable, byte_token, plan_of
from octavo.text.tokenizers.parts import TokenizerParts, one_line
from octavo.text.tokenizers.remote import load_remote

#: Seconds that encoding a few short texts may take at start; a pre-tokenizer regex that explodes takes for ever.
PROBE_SECONDS: Final = 5.0
_PROBE_STARTS: Final = ("a", " ", "\n", "1", "'", ".", "aA1 ", "\u00e9", "\u4e2d")
_PROBE_TEXTS: Final = tuple(start * 48 + end for start in _PROBE_STARTS for end in ("", "!", "\t\u00e9 b"))


class Tokenizer:
    """See the module. Build one with `load_tokenizer`."""

    def __init__(self, parts: TokenizerParts) -> None:
        self._backend = parts.backend
        self._preparation = parts.preparation
        self._exported = parts.exported
        self.source = parts.source
        self.special_tokens_map = dict(parts.special_tokens_map)
        self.eos_token_ids = parts.eos_token_ids
        self.chat_templates = dict(parts.chat_templates)
        self.model_max_length = parts.model_max_length
        self.config = dict(parts.config)
        bos = self.special_tokens_map.get("bos_token")
        self.bos_token_id: int | None = None if bos is None else self._backend.token_to_id(bos)
        added = self._backend.get_added_tokens_decoder()
        self.special_ids: frozenset[int] = frozenset(i for i, token in added.items() if token.special)
        self.vocab_size: int = self._backend.get_vocab_size(with_added_tokens=True)
        self.decoder_plan: DecoderPlan = plan_of(self._backend)
        self._tables: dict[frozenset[int], PieceTable] = {}  # by the ids that are skipped
        #: The largest id that `encode` can return.
        self.max_token_id = parts.max_token_id
        #: Most bytes of text that one token can stand for. None: no such bound is known, because a normalizer may
        #: shrink the text, an added token swallows spaces, or a run of unknown characters becomes one token.
        self.max_token_bytes = self._bound_of_token_bytes(parts.longest_token)

    @property
    def is_byte_level(self) -> bool:
        return isinstance(self.decoder_plan, ByteLevelPlan)

    @property
    def has_text(self) -> bool:
        """Whether tokens have texts at all; see `without_tokenizer`."""
        return self.vocab_size > 0

    def to_json(self) -> str:
        """The text of the tokenizer.json that gives the same ids.

        Of SentencePiece vocabularies the ids of rare texts may differ, where the library cannot say what they do.
        """
        if self._exported is None:
            return self._backend.to_str(pretty=True)
        steps = vars(self._exported).items()
        written = {name: None if step is None else json.loads(step.__getstate__()) for name, step in steps}
        return json.dumps(json.loads(self._backend.to_str()) | written, indent=2)

    def added_tokens(self) -> dict[int, tokenizers.AddedToken]:
        """Tokens that are found whole in a text, special ones among them, by id."""
        return dict(self._backend.get_added_tokens_decoder())

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`; with `add_special_tokens`, BOS and EOS as the tokenizer's own rule says.

        Raises `InvalidRequest` for a lone surrogate, which JSON can smuggle in and no UTF-8 text holds.
        """
        try:
            text = text if self._preparation is None else self._preparation(text)
            return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except (TypeError, UnicodeEncodeError):
            if any("\ud800" <= char <= "\udfff" for char in text):
                raise InvalidRequest("The text holds a lone UTF-16 surrogate, which is not a character.") from None
            raise

    def encode_pair(self, first: str, second: str) -> tuple[list[int], int]:
        """The ids of two texts in one, as the tokenizer's own rule joins them, and where those of the second begin.

        Raises `InvalidRequest` as `encode`.
        """
        if self._preparation is not None:
            first, second = self._preparation(first), self._preparation(second)
        try:
            encoding = self._backend.encode(first, second)
        except (TypeError, UnicodeEncodeError):
            self.encode(first + second)  # for its error
            raise
        ids, of = list(encoding.ids), encoding.sequence_ids
        return ids, next((at for at, number in enumerate(of) if number == 1), len(ids))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`. Ids that the tokenizer does not have are left out."""
        known = [token_id for token_id in ids if 0 <= token_id <= self.max_token_id]
        return self._backend.decode(known, skip_special_tokens=skip_special_tokens)

    def token(self, token_id: int) -> str | None:
        """The vocabulary's spelling of a token, in the vocabulary's own alphabet."""
        return self._backend.id_to_token(token_id) if 0 <= token_id < 1 << 32 else None

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes that a token stands for: exact for byte-level and byte-fallback vocabularies.

        None for an id without a token, and for every id of a vocabulary of another kind.
        """
        token = self.token(token_id)
        plan = self.decoder_plan
        if token is None or not isinstance(plan, ByteLevelPlan | PiecePlan):
            return None
        piece = plan.piece(token)
        return piece if isinstance(piece, bytes) else piece.encode("utf-8")

    def all_token_bytes(self) -> list[bytes] | None:
        """`token_bytes` of ids 0 to `max_token_id`, b"" where there is none; None for a vocabulary of another kind.

        Takes a second for the largest vocabularies.
        """
        if not isinstance(self.decoder_plan, ByteLevelPlan | PiecePlan):
            return None
        return [self.token_bytes(token_id) or b"" for token_id in range(self.max_token_id + 1)]

    def piece_table(
        self, plan: ByteLevelPlan | PiecePlan, skip_special_tokens: bool, shown: frozenset[int] = frozenset()
    ) -> PieceTable:
        """id -> piece for the detokenizer, filled as ids are seen. Shared by all streams.

        `shown`: special tokens that are not skipped.
        """
        skipped = self.special_ids - shown if skip_special_tokens else frozenset[int]()
        table = self._tables.get(skipped)
        if table is None:
            # Two threads may both make one; setdefault lets a single one win.
            table = self._tables.setdefault(skipped, PieceTable(self.token, plan, skipped))
        return table

    def _bound_of_token_bytes(self, longest_token: int) -> int | None:
        model = self._backend.model
        shrinks = _may_shrink(self._backend.normalizer) or (
            self._preparation is not None and self._preparation.may_shrink
        )
        added = self._backend.get_added_tokens_decoder().values()
        strips = any(token.lstrip or token.rstrip for token in added)
        covers = self.is_byte_level or (getattr(model, "byte_fallback", False) and _has_all_bytes(self._backend))
        if shrinks or strips or not covers:
            return None
        return max([longest_token, *(len(token.content.encode("utf-8")) for token in added)])

    def min_num_tokens(self, text: str) -> int:
        """A lower bound of `len(encode(text))`, without encoding: refuse what cannot fit before paying for it."""
        limit = self.max_token_bytes
        return 0 if limit is None else -(-len(text.encode("utf-8", "surrogatepass")) // limit)

    def probe(self, seconds: float = PROBE_SECONDS) -> None:
        """Encode a few short texts under a time limit; `CheckpointError` if it fails or takes too long.

        A regex of a hostile tokenizer.json can take exponential time, and a call into the library cannot be
        stopped from outside: the thread is left to die with the process, which is about to refuse to start.
        """
        problems: list[str] = []
        thread = threading.Thread(target=self._probe, args=(problems,), daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            raise CheckpointError(f"{self.source}: the tokenizer needs more than {seconds:g} s for a short text.")
        if problems:
            raise CheckpointError(f"{self.source}: the tokenizer cannot encode a short text: {problems[0]}")

    def _probe(self, problems: list[str]) -> None:
        try:
            for text in _PROBE_TEXTS:
                self.decode(self.encode(text))
        except BaseException as error:  # noqa: BLE001 (a panic of the library is a BaseException)
            problems.append(one_line(error))


def load_tokenizer(
    path: str | os.PathLike[str],
    mode: TokenizerMode = "auto",
    *,
    trust_remote_code: bool = False,
    code_revision: str | None = None,
) -> Tokenizer:
    """Load from a Hugging Face directory (or its tokenizer.json) or from a .gguf file, and probe it.

    `mode`: `huggingface.load`. `trust_remote_code`: a directory that octavo cannot read, and that names code of its
    own, is left to that code (`remote`), in its revision `code_revision`.

    Raises `CheckpointError`, one message, for anything that is missing, damaged or not supported.
    """
    place = Path(path)
    if place.is_file() and place.name == "tokenizer.json":
        place = place.parent
    if place.is_dir():
        try:
            parts = hf_tokenizer.load(place, mode)
        except CheckpointError:
            if not (trust_remote_code and hf_tokenizer.names_code(place)):
                raise
            parts = load_remote(place, code_revision)
    elif place.is_file() and mode == "mistral":
        raise CheckpointError(
            f"{place}: --tokenizer-mode mistral reads tekken.json or tokenizer.model; give --tokenizer."
        )
    elif place.is_file():
        parts = gguf_tokenizer.load(place)
    else:
        raise CheckpointError(f"{place}: there is no such tokenizer.")
    tokenizer = Tokenizer(parts)
    tokenizer.probe()
    return tokenizer


def without_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """For a server of token ids: it makes no tokens of text, and all its texts are empty."""
    return Tokenizer(absent(Path(path)))


def _may_shrink(normalizer: object) -> bool:
    """Whether text can lose bytes before it is split. Only what surely keeps or adds bytes counts as safe."""
    if normalizer is None:
        return False
    state = repr(normalizer)
    return not (state.startswith(('Replace(pattern=String(" "), content="\u2581")', "Prepend(")))


def _has_all_bytes(backend: tokenizers.Tokenizer) -> bool:
    return all(backend.token_to_id(byte_token(i)) is not None for i in range(256))
