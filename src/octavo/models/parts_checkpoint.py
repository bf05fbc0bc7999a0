"""Checkpoints of models that are made of others (`files.parts`), with the weights of these."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from octavo.base.errors import CheckpointError
from octavo.files.parts import missing_part, part_directory, parts_of, with_part_configs
from octavo.models.checkpoint import StoredCheckpoint, config_dtype
from octavo.models.quantized_checkpoint import quantization_config

#: What a part's own tensors are called that are wanted of it, where these are not all; the rest of a name stays.
_WANTED: Final = {"audio_config": re.compile(r"(?:model\.)?encoder\.")}


def with_parts(checkpoint: StoredCheckpoint, open_part: Callable[[Path], StoredCheckpoint]) -> StoredCheckpoint:
    """The checkpoint with the tensors of the parts that its configuration names, but for those that it has itself.

    Raises CheckpointError for a part of whose tensors there are none.
    """
    directory, names = Path(checkpoint.source), checkpoint.names()
    parts = parts_of(checkpoint.config)
    if not parts:
        return checkpoint
    for key, section, prefix in parts:
        at = part_directory(checkpoint.config, key, directory)
        if at is None:
            if not any(name.startswith(prefix) for name in names):
                raise missing_part(checkpoint.config, key, directory)
            continue
        part = open_part(at)
        if quantization_config(at, part.config) is not None:
            raise CheckpointError(f"{at}: the weights are quantized, which a part of {directory} cannot be")
        checkpoint.add(part, partial(_renamed, wanted=_WANTED.get(section), prefix=prefix))
    checkpoint.config = with_part_configs(checkpoint.config, directory)
    checkpoint.dtype = config_dtype(checkpoint.config)
    return checkpoint


def _renamed(name: str, wanted: re.Pattern[str] | None, prefix: str) -> str | None:
    if wanted is None:
        return prefix + name
    match = wanted.match(name)
    return None if match is None else prefix + name[match.end() :]
