"""Which of its files a directory's weights are read from, by --load-format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from glob import escape
from pathlib import Path
from typing import Final

from octavo.base.config.engine import SHARD_PATTERN, LoadFormat, TensorizerSettings
from octavo.base.errors import CheckpointError
from octavo.models.checkpoint import INDEX_NAME, SINGLE_NAME, SafetensorsCheckpoint, StoredCheckpoint
from octavo.models.consolidated_checkpoint import ConsolidatedCheckpoint, has_consolidated
from octavo.models.stored_checkpoints import (
    npcache_checkpoint,
    sharded_checkpoint,
    tensorizer_checkpoint,
    torch_checkpoint,
)

_FORMATS: Final[Mapping[LoadFormat, Callable[[Path], StoredCheckpoint]]] = {
    "safetensors": SafetensorsCheckpoint,
    "pt": torch_checkpoint,
    "npcache": npcache_checkpoint,
    "mistral": ConsolidatedCheckpoint,
}


def open_directory(directory: Path, load_format: LoadFormat, pattern: str = SHARD_PATTERN) -> StoredCheckpoint:
    """auto: as `_format_of` finds. `pattern`: the names of the files of sharded_state. Raises `CheckpointError`."""
    found = _format_of(directory, pattern) if load_format == "auto" else load_format
    if found == "tensorizer":
        return tensorizer_checkpoint(directory, TensorizerSettings())
    if found == "sharded_state":
        return sharded_checkpoint(directory, pattern)
    if found not in _FORMATS:
        raise CheckpointError(f"{directory}: a directory cannot be read with --load-format {load_format}")
    return _FORMATS[found](directory)


def _format_of(directory: Path, pattern: str) -> LoadFormat:
    """Safetensors, else what Mistral publishes, else what vLLM saved, else pickles."""
    has_config = (directory / "config.json").is_file()
    if has_config and any((directory / name).is_file() for name in (SINGLE_NAME, INDEX_NAME)):
        return "safetensors"
    if has_consolidated(directory):
        return "mistral"
    if any(directory.glob(escape(pattern).replace("{rank}", "*").replace("{part}", "*"))):
        return "sharded_state"
    has_pickles = any(any(directory.glob(kind)) for kind in ("*.bin", "*.pt", "*.pth"))
    return "pt" if has_pickles and not any(directory.glob("*.safetensors")) else "safetensors"
