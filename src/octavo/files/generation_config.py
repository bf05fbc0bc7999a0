"""The sampling defaults of a server: the model's generation_config.json, or another, under what the flags override.

What a request leaves out, or gives as null, comes from here before it comes from octavo's own defaults.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octavo.base.config import ServerConfig, json_object
from octavo.base.errors import InvalidConfig, InvalidRequest
from octavo.base.params import SamplingParams
from octavo.base.suggest import nearest

logger = logging.getLogger(__name__)

FILE_NAME = "generation_config.json"
MAX_FILE_BYTES = 1 << 20
#: Keys of the file that are defaults of requests -> the parameter. What else the file holds is not about sampling,
#: but for `do_sample` and the like, which say what transformers does when it is not told a temperature.
KEYS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
_INTEGERS = ("top_k", "max_new_tokens")


def default_sampling(config: ServerConfig, model: str) -> dict[str, Any]:
    """Values of `SamplingParams` by name. `model` is the local path of the model.

    Raises `InvalidConfig` for a file that cannot be read and for values that no request could have.
    """
    values: dict[str, Any] = {}
    path = _path(config.generation_config, Path(model))
    if path is not None:
        given = _object(path.read_bytes, f"--generation-config: {path}")
        known = {name: value for name, value in given.items() if name in KEYS and value is not None}
        values = _checked(known, f"{path} (--generation-config vllm leaves it out)")
    if config.override_generation_config is not None:
        text = config.override_generation_config
        given = json_object(text, "--override-generation-config")
        for name in sorted(given.keys() - KEYS.keys()):
            raise InvalidConfig(
                f"--override-generation-config: {name!r} is not one of its settings{nearest(name, KEYS)}"
            )
        for name, value in _checked(given, "--override-generation-config").items():
            if value is None:
                values.pop(name, None)
            else:
                values[name] = value
    if values:
        shown = ", ".join(f"{name} {value}" for name, value in values.items())
        logger.info("default sampling parameters: %s", shown)
    return values


def _path(setting: str, model: Path) -> Path | None:
    """The file to read, None for none. Only a model's own may be missing."""
    if setting == "vllm":
        return None
    if setting == "auto":
        own = model / FILE_NAME
        return own if own.is_file() else None
    path = Path(setting).expanduser()
    if path.is_dir():
        path /= FILE_NAME
    if not path.is_file():
        raise InvalidConfig(f"--generation-config {setting}: there is no file {path}")
    return path


def _object(read: Callable[[], bytes], place: str) -> dict[str, Any]:
    try:
        data = read()
        if len(data) > MAX_FILE_BYTES:
            raise InvalidConfig(f"{place} is larger than {MAX_FILE_BYTES} bytes")
    except OSError as exc:
        raise InvalidConfig(f"{place} cannot be read: {exc.strerror}") from None
    return json_object(data, place)


def _checked(given: dict[str, Any], place: str) -> dict[str, Any]:
    """By the parameters' names. null stays: it takes a default away."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        kinds = int if name in _INTEGERS else (int, float)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise InvalidConfig(f"{place}: {name} must be a number; got {json.dumps(value)[:80]}")
        values[KEYS[name]] = value if value is None or name in _INTEGERS else float(value)
    try:
        # No list of ids is among them, so the width of the logits does not matter.
        SamplingParams(**{name: value for name, value in values.items() if value is not None}).validate(vocab_size=1)
    except InvalidRequest as exc:
        raise InvalidConfig(f"{place}: {exc.message}") from None
    return values
