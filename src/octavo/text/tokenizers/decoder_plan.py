"""How a vocabulary's tokens become text, as data, so that it can be done token by token.

    ByteLevelPlan   the text is the tokens' bytes in a row (GPT-2, Llama 3, Qwen, SmolLM)
    PiecePlan       the text is the tokens' strings in a row; "<0xHH>" is a byte (SentencePiece: Llama 2, Gemma)
    None            neither: only the tokenizers library knows

The reference is `Tokenizer.decode`. Its rules for pieces, which `octavo.text.tokenizers.detokenizer` follows: a run of
byte tokens is one text if the whole run is valid UTF-8, else one U+FFFD for each byte; a space at the very
start may be dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import tokenizers

#: SentencePiece's stand-in for the space.
SPACE: Final = "\u2581"


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level vocabularies: printable Latin-1 is itself, the rest follows U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


BYTE_OF_CHAR: Final = _byte_alphabet()
CHAR_OF_BYTE: Final = {byte: char for char, byte in BYTE_OF_CHAR.items()}


def byte_token(byte: int) -> str:
    """The byte-fallback token of a byte."""
    return f"<0x{byte:02X}>"


_BYTE_TOKENS: Final = {name: byte for byte in range(256) for name in (byte_token(byte), byte_token(byte).lower())}


@dataclass(frozen=True)
class ByteLevelPlan:
    def piece(self, token: str) -> bytes:
        try:
            return bytes([BYTE_OF_CHAR[char] for char in token])
        except KeyError:  # an added token, written as it is
            return token.encode("utf-8")


@dataclass(frozen=True)
class PiecePlan:
    replacements: tuple[tuple[str, str], ...]
    byte_fallback: bool
    strip_left: int = 0  # most spaces dropped from the start of the text
    drop_first_spaces: bool = False  # the first token loses all of its SPACE characters (Metaspace)

    def piece(self, token: str) -> str | bytes:
        """One byte if the token is a byte-fallback token, else its text."""
        for old, new in self.replacements:
            token = token.replace(old, new)
        if self.byte_fallback and token in _BYTE_TOKENS:
            return bytes([_BYTE_TOKENS[token]])
        return token

    def first_piece(self, token: str) -> str | bytes:
        """The piece of the first token of a text."""
        return self.piece(token.replace(SPACE, "") if self.drop_first_spaces else token)


DecoderPlan = ByteLevelPlan | PiecePlan | None


def plan_of(backend: tokenizers.Tokenizer) -> DecoderPlan:
    if backend.decoder is None:
        return None
    state: Any = json.loads(backend.decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteLevelPlan()
    if kinds == ["Metaspace"]:
        drops = steps[0].get("prepend_scheme", "always") != "never"
        return PiecePlan(((steps[0]["replacement"], " "),), False, drop_first_spaces=drops)
    return _piece_plan(steps)


def _piece_plan(steps: list[dict[str, Any]]) -> PiecePlan | None:
    """Replace* ByteFallback? Fuse? Strip?, as SentencePiece vocabularies have it; None for anything else."""
    steps = list(steps)
    replacements = []
    while steps and steps[0]["type"] == "Replace" and "String" in steps[0]["pattern"]:
        step = steps.pop(0)
        replacements.append((step["pattern"]["String"], step["content"]))
    byte_fallback = bool(steps) and steps[0]["type"] == "ByteFallback"
    del steps[: int(byte_fallback)]
    fused = bool(steps) and steps[0]["type"] == "Fuse"
    del steps[: int(fused)]
    strip_left = 0
    # Without Fuse, Strip would work on every token.
    if fused and steps and steps[0]["type"] == "Strip" and steps[0]["content"] == " " and not steps[0]["stop"]:
        strip_left = steps.pop(0)["start"]
    if steps or not (replacements or byte_fallback or fused):
        return None
    return PiecePlan(tuple(replacements), byte_fallback, strip_left)


class PieceTable(dict[int, Any]):
    """id -> piece: bytes for byte-level vocabularies; str, one byte or None (no text at all) for pieces.

    Filled on first use, because a stream sees few of the 10^5 tokens and start-up should not wait for the rest.
    A table is only ever added to, by values that do not depend on who computes them: threads may share it.
    """

    def __init__(
        self, token: Callable[[int], str | None], plan: ByteLevelPlan | PiecePlan, skipped: frozenset[int]
    ) -> None:
        super().__init__()
        self._token = token
        self._plan = plan
        self._skipped = skipped

    def __missing__(self, token_id: int) -> bytes | str | None:
        nothing = b"" if isinstance(self._plan, ByteLevelPlan) else None
        token = None if token_id in self._skipped else self._token(token_id)
        piece = nothing if token is None else self._plan.piece(token)
        self[token_id] = piece
        return piece
