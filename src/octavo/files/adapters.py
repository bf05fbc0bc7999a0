"""Where an adapter's files come from: a directory, a .gguf file, or the same places as models'."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from octavo.base.config import ModelConfig
from octavo.base.errors import CheckpointError
from octavo.files.reading import read_object
from octavo.files.sources import adapter_snapshot

#: PEFT's two files, whatever form the second has.
FILES: Final = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "*.gguf")
#: And others that it may have: rows of tokens that it adds, and its own tokenizer.
_MORE: Final = (
    "new_embeddings.safetensors", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json",
    "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


_MAX_CONFIG_BYTES: Final = 1 << 20
#: PEFT's methods that train rows in front of prompts, by which an adapter is a prompt adapter.
PROMPT_TYPES: Final = ("PROMPT_TUNING", "P_TUNING")


def peft_type(path: Path) -> str:
    """What a directory says that it holds; "": nothing, or it cannot be read, and whoever reads all of it says why."""
    try:
        found = read_object(path / FILES[0], _MAX_CONFIG_BYTES).get("peft_type")
    except CheckpointError:
        return ""
    return found if isinstance(found, str) else ""


def is_prompt_adapter(path: Path) -> bool:
    return peft_type(path) in PROMPT_TYPES


def resolve_adapter(name: str, config: ModelConfig) -> Path:
    """The local directory or .gguf file; what is not on this machine is fetched. Raises `CheckpointError`."""
    path = Path(name).expanduser()
    if not path.exists():
        if name.startswith(("/", "./", "../", "~")):
            raise CheckpointError(f"{name}: there is no such directory or file")
        path = adapter_snapshot(name, config, FILES + _MORE)
    if path.is_dir() and not (path / FILES[0]).is_file():
        files = sorted(path.glob("*.gguf"))
        if len(files) != 1:
            raise CheckpointError(f"{name}: there is no {FILES[0]}, and not one .gguf file")
        path = files[0]
    if path.is_file() and path.suffix != ".gguf":
        raise CheckpointError(f"{name}: an adapter is a directory with {FILES[0]}, or a .gguf file")
    return path.resolve()


def adapter_in(directory: Path, name: str) -> Path | None:
    """The adapter of that name in a directory of adapters: a folder or a .gguf file that lies within it, wherever links
    lead. `name` is one part of a path."""
    root = directory.resolve()
    for path in (root / name, root / f"{name}.gguf"):
        found = path.resolve()
        if found.is_relative_to(root) and (
            (found / FILES[0]).is_file() or (found.is_file() and found.suffix == ".gguf")
        ):
            return found
    return None
