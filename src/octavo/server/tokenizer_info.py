"""GET /tokenizer_info: the tokenizer in the form of a tokenizer_config.json, for clients that tokenize themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from octavo.base.errors import CheckpointError
from octavo.text.tokenizers.tokenizer import Tokenizer

#: Settings that name files of this machine, or code.
_HIDDEN = frozenset(
    {"name_or_path", "vocab_file", "merges_file", "tokenizer_file", "special_tokens_map_file", "auto_map", "cache_dir"}
)
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


def tokenizer_info(tokenizer: Tokenizer, templates: Mapping[str, str]) -> bytes:
    """The reply's body. `templates`: those that requests are rendered with, by name; "default" is the usual one.

    What the model's file does not hold comes from the tokenizer that was built from it: a .gguf file has tokens only.
    Raises `CheckpointError` for a configuration that JSON cannot hold.
    """
    config = {name: value for name, value in tokenizer.config.items() if name not in _HIDDEN}
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    if tokenizer.model_max_length is not None:
        config.setdefault("model_max_length", tokenizer.model_max_length)
    config.setdefault("added_tokens_decoder", _added_tokens(tokenizer))
    config |= tokenizer.special_tokens_map
    config.pop("chat_template", None)
    if set(templates) == {"default"}:
        config["chat_template"] = templates["default"]
    elif templates:
        config["chat_template"] = [{"name": name, "template": source} for name, source in templates.items()]
    try:
        return json.dumps(config, allow_nan=False).encode()
    except ValueError:
        raise CheckpointError(
            f"{tokenizer.source}: tokenizer_config.json holds a number that JSON does not have."
        ) from None


def _added_tokens(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    return {
        str(token_id): {"content": token.content, **{flag: getattr(token, flag) for flag in _FLAGS}}
        for token_id, token in sorted(tokenizer.added_tokens().items())
    }
