"""Writes a tokenizer as the files that Hugging Face's `AutoTokenizer.from_pretrained` reads.

What is written is the tokenizer that octavo serves with, whatever it was made from: `load_tokenizer` of the directory
gives it back. The class is the general one, which takes tokenizer.json as it is; a class of a model's own might build
its parts anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from octavo.base.errors import CheckpointError
from octavo.files.reading import read_text
from octavo.text.tokenizers.huggingface import MAX_CONFIG_BYTES
from octavo.text.tokenizers.tokenizer import Tokenizer

_TOKENIZER: Final = "tokenizer.json"
_CONFIG: Final = "tokenizer_config.json"
_SPECIAL_TOKENS: Final = "special_tokens_map.json"
_GENERATION: Final = "generation_config.json"
#: What a reader looks for beside them: left over from another tokenizer, they would be mixed with this one.
_ALSO_READ: Final = ("chat_template.jinja", "chat_template.json", "added_tokens.json")


def tokenizer_files(tokenizer: Tokenizer, generation_config: str | None = None) -> dict[str, str]:
    """File name -> text. `generation_config`: the model's own; default: one with the ids that the tokenizer knows."""
    files = {
        _TOKENIZER: tokenizer.to_json(),
        _CONFIG: _json(_tokenizer_config(tokenizer)),
        _SPECIAL_TOKENS: _json(_special_tokens(tokenizer)),
    }
    ids = _generation_config(tokenizer)
    if generation_config is not None or ids:
        files[_GENERATION] = generation_config if generation_config is not None else _json(ids)
    return files


def read_generation_config(model: Path) -> str | None:
    """The text of the generation_config.json of a model's directory, if there is one. Raises `CheckpointError`."""
    path = model / _GENERATION
    return read_text(path, MAX_CONFIG_BYTES) if path.is_file() else None


def write_tokenizer(files: Mapping[str, str], directory: Path, *, force: bool) -> None:
    """Write `files` into `directory`, which is made if need be; with `force` also over a tokenizer that is there.

    Raises `CheckpointError`; nothing is written then, but for an error of the file system.
    """
    try:
        present = _present(directory)
        if present and not force:
            names = ", ".join(str(path.relative_to(directory)) for path in present[:4])
            raise CheckpointError(f"{directory} holds a tokenizer already ({names}); --force replaces it")
        directory.mkdir(parents=True, exist_ok=True)
        for path in present:
            if path.name not in files:
                path.unlink()
        for name, text in files.items():
            partial = directory / f".{name}.part"
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, directory / name)
    except OSError as error:
        raise CheckpointError(f"cannot write the tokenizer to {directory}: {error.strerror or error}") from None


def _present(directory: Path) -> list[Path]:
    """The files of a tokenizer that are in the directory."""
    names = (_TOKENIZER, _CONFIG, _SPECIAL_TOKENS, _GENERATION, *_ALSO_READ)
    found = [directory / name for name in names if (directory / name).exists()]
    return found + sorted((directory / "additional_chat_templates").glob("*.jinja"))


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """Those that have an id. transformers would give the others new ones, past the end of the model's embedding."""
    named = tokenizer.special_tokens_map.items()
    return {name: text for name, text in named if tokenizer.token_to_id(text) is not None}


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # Off, or older versions of transformers would change the spaces of decoded text.
        "clean_up_tokenization_spaces": False,
        **_special_tokens(tokenizer),
    }
    if tokenizer.model_max_length is not None:
        config["model_max_length"] = tokenizer.model_max_length
    # In this file, which every version of transformers reads, and not in files of their own: the templates' names come
    # from the model and need not be fit for files.
    templates = tokenizer.chat_templates
    if list(templates) == ["default"]:
        config["chat_template"] = templates["default"]
    elif templates:
        config["chat_template"] = [{"name": name, "template": source} for name, source in templates.items()]
    return config


def _generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    pad = _special_tokens(tokenizer).get("pad_token")
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": list(tokenizer.eos_token_ids) or None,
        "pad_token_id": None if pad is None else tokenizer.token_to_id(pad),
    }
    return {name: value for name, value in ids.items() if value is not None}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
