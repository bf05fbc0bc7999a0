"""Models whose configuration names others that they are made of: Ultravox's names a language model and a Whisper, whose
weights its own files need not hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from octavo.base.errors import CheckpointError
from octavo.files.reading import read_object

_MAX_BYTES: Final = 4 << 20
#: By `model_type`: which key names a part, under which its configuration stands, and how its tensors' names begin.
PARTS: Final[Mapping[str, tuple[tuple[str, str, str], ...]]] = {
    "ultravox": (
        ("text_model_id", "text_config", "language_model."),
        ("audio_model_id", "audio_config", "audio_tower."),
    ),
}


def part_directory(config: Mapping[str, Any], key: str, directory: Path) -> Path | None:
    """Where a part is that `key` names: a directory, whole or from the model's own on. None: it is not here."""
    name = config.get(key)
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    found = directory / name
    return found if (found / "config.json").is_file() else None


def parts_of(config: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """Of `PARTS` those that a model names."""
    return tuple(part for part in PARTS.get(str(config.get("model_type")), ()) if config.get(part[0]) is not None)


def with_part_configs(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """A config.json with the configurations of the parts that it names, in the place of its own.

    Raises `CheckpointError` where a part is not here, and the file itself does not tell its configuration.
    """
    found: dict[str, Any] = {}
    for key, section, _ in parts_of(config):
        at = part_directory(config, key, directory)
        if at is not None:
            found[section] = read_object(at / "config.json", _MAX_BYTES)
        elif config.get(section) is None:
            raise missing_part(config, key, directory)
    return {**config, **found} if found else config


def missing_part(config: Mapping[str, Any], key: str, directory: Path) -> CheckpointError:
    name = str(config.get(key))[:200]
    return CheckpointError(
        f"{directory}: config.json: {key} = {name!r} is a model of its own, and there is no such directory here: "
        f"download it to {directory / name}, or name in config.json the directory where it is"
    )
