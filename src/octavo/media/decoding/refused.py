"""How a decoder refuses."""

from __future__ import annotations


class Refused(Exception):
    """The bytes are not decoded; the text says why, in words of ours: those of a library may hold addresses."""
