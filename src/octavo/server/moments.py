"""Moments as Anthropic's and Ollama's APIs write them."""

from __future__ import annotations

from datetime import UTC, datetime


def moment(seconds: float) -> str:
    """`seconds`: Unix time."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
