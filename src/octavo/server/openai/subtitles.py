"""Pieces of a transcript as subtitles: SubRip and WebVTT."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.served.transcription import Piece


def srt(pieces: Sequence[Piece]) -> str:
    return "".join(
        f"{number}\n{_time(piece.start, ',')} --> {_time(piece.end, ',')}\n{_text(piece)}\n\n"
        for number, piece in enumerate(pieces, 1)
    )


def vtt(pieces: Sequence[Piece]) -> str:
    cues = (f"{_time(piece.start, '.')} --> {_time(piece.end, '.')}\n{_text(piece)}\n\n" for piece in pieces)
    return "WEBVTT\n\n" + "".join(cues)


def _text(piece: Piece) -> str:
    """On one line, without what would end the cue."""
    return " ".join(piece.text.split()).replace("-->", "->")


def _time(seconds: float, point: str) -> str:
    millis = round(seconds * 1000)
    return f"{millis // 3_600_000:02}:{millis // 60_000 % 60:02}:{millis // 1000 % 60:02}{point}{millis % 1000:03}"
