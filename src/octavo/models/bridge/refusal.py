"""Why a model cannot be served by way of transformers."""

from __future__ import annotations

from typing import Final

from octavo.base.errors import CheckpointError

NO_INTERFACE: Final = "its attention does not go through transformers' attention interface"


class Refusal(Exception):
    """What a model asks for and cannot have: the rest of a sentence about it."""


def refused(source: str, name: str, why: object) -> CheckpointError:
    return CheckpointError(f"{source}: {name} cannot be served by way of transformers: {why}")
