"""Loads a tokenizer from a Hugging Face directory.

Read, where present: tokenizer.json or an original vocabulary (`originals`), tokenizer_config.json,
special_tokens_map.json, generation_config.json and config.json (ids that end a text), chat_template.jinja,
chat_template.json, processor_config.json, additional_chat_templates/*.jinja. The files are not trusted: whatever is
wrong is one `CheckpointError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import tokenizers
from tokenizers import AddedToken

from octavo.base.config.engine import TokenizerMode
from octavo.base.errors import CheckpointError
from octavo.files.reading import MAX_VOCABULARY_BYTES, read_object, read_text
from octavo.text.tokenizers.decoder_plan import ByteLevelPlan, plan_of
from octavo.text.tokenizers.mistral import load_mistral
from octavo.text.tokenizers.originals import load_original, mistral_file
from octavo.text.tokenizers.parts import (
    SPECIAL_TOKEN_NAMES,
    BuiltVocabulary,
    TokenizerParts,
    add_missing_special_tokens,
    longest,
    one_line,
    set_bos_eos,
    unique_ids,
)

#: Of configurations and templates.
MAX_CONFIG_BYTES: Final = 32 << 20
#: Values above it mean "no limit" (transformers writes 1e30).
_MAX_LENGTH: Final = 1 << 30


def load(directory: Path, mode: TokenizerMode = "auto") -> TokenizerParts:
    """`mode`: auto, tokenizer.json if there is one; slow, the original vocabulary if there is one; mistral, what
    Mistral's own library takes."""
    # Who asks for Mistral's own form does not want what Hugging Face's says beside it.
    is_own = mode == "mistral"
    config = {} if is_own else _read_json(directory / "tokenizer_config.json")
    built = _build(directory, mode, config)
    backend = built.backend
    named = (built.special_tokens, {} if is_own else _read_json(directory / "special_tokens_map.json"), config)
    special_tokens_map = _special_tokens_map(*named)
    _add_configured_tokens(backend, config, directory)
    add_missing_special_tokens(backend, [*special_tokens_map.values(), *_nameless_tokens(*named)])
    # As transformers: these keys, when present, replace the rule of the vocabulary.
    add_bos, add_eos = config.get("add_bos_token", built.add_bos), config.get("add_eos_token", built.add_eos)
    if add_bos or add_eos or "add_bos_token" in config or "add_eos_token" in config:
        bos = _known(backend, special_tokens_map.get("bos_token")) if add_bos else None
        eos = _known(backend, special_tokens_map.get("eos_token")) if add_eos else None
        set_bos_eos(backend, bos, eos)
    vocab = backend.get_vocab(with_added_tokens=True)
    return TokenizerParts(
        backend=backend,
        source=str(directory),
        longest_token=longest(vocab, is_byte_level=isinstance(plan_of(backend), ByteLevelPlan)),
        max_token_id=max(vocab.values(), default=-1),
        special_tokens_map=special_tokens_map,
        eos_token_ids=_eos_token_ids(backend, special_tokens_map, directory),
        chat_templates=_own_template(built) | ({} if is_own else _chat_templates(directory, config)),
        model_max_length=_model_max_length(config),
        config=config,
        preparation=built.preparation,
        exported=built.exported,
    )


def names_code(directory: Path) -> bool:
    """Whether a directory's tokenizer is said to be made by code beside it. Raises `CheckpointError`."""
    named = _read_json(directory / "tokenizer_config.json").get("auto_map")
    return isinstance(named, dict) and "AutoTokenizer" in named


def _build(directory: Path, mode: TokenizerMode, config: Mapping[str, Any]) -> BuiltVocabulary:
    """From the files that `mode` asks for. `config`: tokenizer_config.json."""
    try:
        if mode == "mistral":
            return load_mistral(directory)
        fast = directory / "tokenizer.json"
        if mode == "slow" or not fast.is_file():
            original = load_original(directory, config)
            if original is not None:
                return original
            if mistral_file(directory) is not None:
                return load_mistral(directory)
        return BuiltVocabulary(backend=_load_backend(fast), special_tokens={})
    except (KeyboardInterrupt, SystemExit, CheckpointError):
        raise
    except BaseException as error:  # noqa: BLE001 (a panic of the library is a BaseException)
        raise CheckpointError(f"{directory}: the tokenizer cannot be built: {one_line(error)}") from None


def _own_template(built: BuiltVocabulary) -> dict[str, str]:
    return {} if built.chat_template is None else {"default": built.chat_template}


def _load_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent}: there is no tokenizer.json, and no other vocabulary that octavo reads (tokenizer.model, "
            "*.tiktoken, tekken.json, vocab.json with merges.txt, vocab.txt)."
        )
    text = read_text(path, MAX_VOCABULARY_BYTES)
    try:
        backend = tokenizers.Tokenizer.from_str(text)
        backend.no_truncation()
        backend.no_padding()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 (a panic of the library is a BaseException)
        raise CheckpointError(f"{path}: not a usable tokenizer: {one_line(error)}") from None
    return backend


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file, {} if there is no such file."""
    return read_object(path, MAX_CONFIG_BYTES) if path.is_file() else {}


def _special_tokens_map(*sources: Mapping[str, Any]) -> dict[str, str]:
    """Named special tokens, later sources first. A token is its text or an object with `content`."""
    found: dict[str, str] = {}
    for name in SPECIAL_TOKEN_NAMES:
        for source in sources:
            text = _text_of(source.get(name))
            if text:
                found[name] = text
    return found


def _nameless_tokens(*sources: Mapping[str, Any]) -> list[str]:
    """Special tokens that are listed without a name."""
    keys = ("additional_special_tokens", "extra_special_tokens")
    lists = [value for source in sources for key in keys if isinstance(value := source.get(key), list)]
    return [text for tokens in lists for token in tokens if (text := _text_of(token))]


def _text_of(token: object) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _add_configured_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any], directory: Path) -> None:
    """Add what `added_tokens_decoder` of the configuration has and tokenizer.json lacks."""
    listed = config.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        return
    present = backend.get_added_tokens_decoder()
    tokens = {int(i): token for i, token in listed.items() if i.isdecimal() and isinstance(token, dict)}
    for token_id, token in sorted(tokens.items(), key=lambda item: item[0]):
        if token_id in present:
            continue
        content = token.get("content")
        if not isinstance(content, str) or not content:
            continue
        flags = {name: bool(token.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "special")}
        backend.add_tokens([AddedToken(content, normalized=bool(token.get("normalized", True)), **flags)])
        if backend.token_to_id(content) != token_id:
            raise CheckpointError(
                f"{directory}: tokenizer_config.json gives the token {content!r} the id {token_id}, "
                f"tokenizer.json the id {backend.token_to_id(content)}."
            )


def _known(backend: tokenizers.Tokenizer, token: str | None) -> str | None:
    return token if token is not None and backend.token_to_id(token) is not None else None


def _eos_token_ids(
    backend: tokenizers.Tokenizer, special_tokens_map: Mapping[str, str], directory: Path
) -> tuple[int, ...]:
    """The tokenizer's EOS and those of generation_config.json, or else of config.json."""
    own = special_tokens_map.get("eos_token")
    ids: list[Any] = [] if own is None else [backend.token_to_id(own)]
    for name in ("generation_config.json", "config.json"):
        config = _read_json(directory / name)
        text = config.get("text_config")  # of a model that also sees
        value = config.get("eos_token_id", text.get("eos_token_id") if isinstance(text, dict) else None)
        if value is not None:
            ids += value if isinstance(value, list) else [value]
            break
    return unique_ids(ids)


def _model_max_length(config: Mapping[str, Any]) -> int | None:
    value = config.get("model_max_length")
    return int(value) if isinstance(value, int | float) and 0 < value <= _MAX_LENGTH else None


def _chat_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Name -> template. A file of its own wins over the configuration."""
    templates: dict[str, str] = {}
    value = config.get("chat_template")
    if isinstance(value, str):
        templates["default"] = value
    elif isinstance(value, list):
        for entry in value:
            if isinstance(entry, dict) and isinstance(entry.get("name"), str):
                templates[entry["name"]] = str(entry.get("template", ""))
    elif isinstance(value, dict):
        templates |= {str(name): str(source) for name, source in value.items()}
    for name in ("processor_config.json", "chat_template.json"):
        older = _read_json(directory / name).get("chat_template")
        if isinstance(older, str):
            templates["default"] = older
    main = directory / "chat_template.jinja"
    if main.is_file():
        templates["default"] = read_text(main, MAX_CONFIG_BYTES)
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = read_text(path, MAX_CONFIG_BYTES)
    return templates
