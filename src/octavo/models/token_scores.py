"""Decoders that judge a pair of texts by their output tokens: the score is how much likelier the next token is `yes`
than `no`. So Qwen3-Reranker, as its authors, vLLM's users, sentence-transformers and GGUF files have it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from octavo.base.errors import CheckpointError
from octavo.files.reading import read_object, read_text
from octavo.models.config_reader import ConfigReader
from octavo.models.spec import HeadSpec, ModelSpec, PoolingSpec, RowsOfTable

#: vLLM's keys of a configuration.
_TOKENS: Final = "classifier_from_token"
_IS_QWEN3: Final = "is_original_qwen3_reranker"
_METHOD: Final = "method"
#: What its authors call it. Their files look like those of a model that writes.
_NAME: Final = "qwen3-reranker"
#: Of GGUF, see `gguf_encoders`.
_HEAD_OF_FILE: Final = "cls_out"
_YES_NO: Final = ("yes", "no")
_MAX_TOKENS: Final = 1000
_MAX_BYTES: Final = 1 << 27
_MODULE: Final = "LogitScore"
#: What Qwen3-Reranker was trained with.
_TEMPLATE: Final = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>: {query}\n"
    "<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


def scores_by_tokens(values: Mapping[str, Any]) -> bool:
    """Whether a decoder's configuration says so."""
    return any(values.get(key) for key in (_TOKENS, _IS_QWEN3, _HEAD_OF_FILE))


def token_scores(values: Mapping[str, Any], spec: ModelSpec, source: str, task: str) -> PoolingSpec | None:
    """The pooling of such a decoder; None for one that is none. `spec`: as it generates. `source`: its directory or
    file, which may name what its files leave unsaid."""
    directory = Path(source)
    template = _TEMPLATE if values.get("model_type") == "qwen3" else ""
    if isinstance(values.get(_HEAD_OF_FILE), dict):
        return _head_of_file(ConfigReader(dict(values)))
    is_told = bool(values.get(_TOKENS) or values.get(_IS_QWEN3))
    if not is_told and (module := _module(directory)) is not None:
        size = spec.vocab_size - 1
        minus = () if module.get("false_token_id") is None else (module.integer("false_token_id", high=size, low=0),)
        head = _head(spec, (module.integer("true_token_id", high=size, low=0),), minus)
        return _pooling(head, ("LABEL_0",), "sigmoid", template)
    is_named = task == "score" and _NAME in source.lower() and values.get("architectures") == ["Qwen3ForCausalLM"]
    if is_told or is_named:
        config = ConfigReader(dict(values))
        tokens = values.get(_TOKENS) or list(reversed(_YES_NO))
        if (
            not isinstance(tokens, list)
            or not 1 <= len(tokens) <= _MAX_TOKENS
            or not all(isinstance(each, str) for each in tokens)
        ):
            raise config.fail(_TOKENS, "is not a list of tokens")
        config.refuse_unless(_METHOD, ("from_2_way_softmax", "no_post_processing"))
        is_difference = config.flag(_IS_QWEN3, is_named) or values.get(_METHOD) == "from_2_way_softmax"
        ids = _ids_of(tokens, directory)
        if not is_difference:
            head = _head(spec, ids)
            return _pooling(head, tuple(tokens), "softmax" if len(tokens) > 1 else "sigmoid")
        if len(ids) != len(_YES_NO):
            raise config.fail(_TOKENS, "is not the token for no, then the token for yes")
        return _pooling(_head(spec, ids[1:], ids[:1]), ("LABEL_0",), "sigmoid", template)
    return None


def _pooling(head: HeadSpec, labels: tuple[str, ...], classes: Any, template: str = "") -> PoolingSpec:
    return PoolingSpec(kind="last", heads=(head,), classes=classes, labels=labels, pair_template=template)


def _head(spec: ModelSpec, rows: tuple[int, ...], minus_rows: tuple[int, ...] = ()) -> HeadSpec:
    """Of rows of the output matrix."""
    name, gguf = ("model.embed_tokens", "token_embd") if spec.tie_word_embeddings else ("lm_head", "output")
    if spec.lm_head_bias or spec.tied_bias or spec.unit_lm_head or spec.logit_softcap or spec.embedding_size:
        raise CheckpointError("scores of tokens are not supported for models of this kind")
    if any(row >= spec.vocab_size for row in (*rows, *minus_rows)):
        raise CheckpointError(f"{_TOKENS}: a token has no row in the output matrix")
    table = RowsOfTable(name=name, gguf=gguf, count=spec.vocab_size, rows=rows, minus_rows=minus_rows)
    return HeadSpec(name="score", gguf="cls.output", size=len(rows), bias=False, of_table=table)


def _head_of_file(config: ConfigReader) -> PoolingSpec:
    """A file of GGUF has the rows of its tokens, in a matrix of their own."""
    own, named = config.section(_HEAD_OF_FILE), config.get("id2label")
    labels = tuple(str(each) for each in named.values()) if isinstance(named, dict) else ()
    template = own.get("template") if isinstance(own.get("template"), str) else ""
    if labels != _YES_NO:
        head = HeadSpec(name="score", gguf="cls.output", size=len(labels), bias=own.flag("bias", False))
        return _pooling(head, labels, "softmax" if len(labels) > 1 else "sigmoid", template)
    table = RowsOfTable(name="score", gguf="cls.output", count=2, rows=(0,), minus_rows=(1,))
    head = HeadSpec(name="score", gguf="cls.output", size=1, bias=False, of_table=table)
    return _pooling(head, ("LABEL_0",), "sigmoid", template or _TEMPLATE)


def _module(directory: Path) -> ConfigReader | None:
    """What sentence-transformers' files say of the tokens."""
    path = directory / "modules.json"
    if not path.is_file():
        return None
    try:
        modules = json.loads(read_text(path, _MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    for module in modules if isinstance(modules, list) else ():
        if isinstance(module, dict) and str(module.get("type")).rpartition(".")[2] == _MODULE:
            folder = directory / str(module.get("path") or "")
            if directory.resolve() not in (folder.resolve(), *folder.resolve().parents):
                raise CheckpointError(f"{path}: the path {str(module.get('path'))[:80]!r} is outside the directory")
            return ConfigReader(read_object(folder / "config.json", _MAX_BYTES), str(folder))
    return None


def _ids_of(tokens: list[str], directory: Path) -> tuple[int, ...]:
    """By the model's `tokenizer.json`."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{directory}: {_TOKENS} needs a tokenizer.json")
    file = read_object(path, _MAX_BYTES)
    model = file.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    known: dict[str, Any] = {}
    if isinstance(vocabulary, dict):
        known |= vocabulary
    elif isinstance(vocabulary, list):
        known |= {str(each[0]): number for number, each in enumerate(vocabulary) if isinstance(each, list) and each}
    added = file.get("added_tokens")
    for each in added if isinstance(added, list) else ():
        if isinstance(each, dict):
            known[str(each.get("content"))] = each.get("id")
    ids = []
    for token in tokens:
        spellings = (token, token.replace(" ", "\u0120"), token.replace(" ", "\u2581"))
        found = next((known[each] for each in spellings if each in known), None)
        if type(found) is not int or found < 0:
            raise CheckpointError(f"{path}: {_TOKENS}: {token[:40]!r} is no token of the vocabulary")
        ids.append(found)
    return tuple(ids)
