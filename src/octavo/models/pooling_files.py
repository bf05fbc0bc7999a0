"""What sentence-transformers' files and --pooler-config say about how a vector is made of a text's rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from octavo.base.config import ModelConfig
from octavo.base.config.engine import pooler_settings
from octavo.base.errors import CheckpointError, InvalidConfig
from octavo.base.params import PoolingKind
from octavo.files.reading import read_object, read_text
from octavo.models.safetensors_file import SafetensorsFile
from octavo.models.spec import HeadActivation, PoolingSpec

MODULES: Final = "modules.json"
_CONFIG: Final = "config_sentence_transformers.json"
_MAX_BYTES: Final = 1 << 20
_KINDS: Final[Mapping[str, PoolingKind]] = {
    "pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last",
}  # fmt: skip
_OTHER_KINDS: Final = (
    "pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens",
)  # fmt: skip
_ACTIVATIONS: Final[Mapping[str, HeadActivation]] = {
    "Identity": "", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu", "Sigmoid": "sigmoid",
}  # fmt: skip
#: What a dense layer works on.
_PLACE: Final = "sentence_embedding"
#: llama.cpp's numbers.
_GGUF_KINDS: Final[Mapping[int, PoolingKind]] = {1: "mean", 2: "cls", 3: "last"}


@dataclass(frozen=True, eq=False, kw_only=True)
class DenseNorm:
    """A layer norm: weight and bias float32 [width]."""

    weight: Tensor
    bias: Tensor | None
    eps: float


@dataclass(frozen=True, eq=False)
class Dense:
    """A product with the pooled row: weight float32 [out, in], bias float32 [out]."""

    weight: Tensor
    bias: Tensor | None
    activation: HeadActivation
    norm: DenseNorm | None = None  # behind the activation


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """`PoolingSpec`, with what stands beside the checkpoint."""

    spec: PoolingSpec
    dense: tuple[Dense, ...] = ()
    normalizes: bool = False  # a vector gets the length 1
    max_tokens: int | None = None  # of a text, as the model was trained
    prompts: Mapping[str, str] = field(default_factory=dict)  # what is put in front of a text, by its name
    default_prompt: str | None = None  # the name of one
    dimensions: tuple[int, ...] = ()  # to which a vector may be cut
    may_be_cut: bool = False  # to any length

    @property
    def kind(self) -> PoolingKind:
        return self.spec.kind


def pooling_of(spec: PoolingSpec, model: ModelConfig, values: Mapping[str, Any]) -> Pooling:
    """`values`: the model's configuration. Raises CheckpointError for files that are damaged or say what is not
    implemented, and InvalidConfig for a --pooler-config that does."""
    made = Pooling(spec=spec, normalizes=not spec.classes, **_cuts(values))
    kind = _GGUF_KINDS.get(values.get("pooling_type", 0)) if isinstance(values.get("pooling_type", 0), int) else None
    if kind is not None and not spec.classes:
        made = replace(made, spec=replace(spec, kind=kind))
    directory = Path(model.model)
    if (directory / MODULES).is_file() and not spec.classes:
        made = _with_modules(made, directory)
    if directory.is_dir():
        made = _with_prompts(made, directory)
    return _overridden(made, pooler_settings(model.pooler_config))


def _list(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(read_text(path, _MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise CheckpointError(f"{path}: is not a list of modules")
    return found


def _cuts(values: Mapping[str, Any]) -> dict[str, Any]:
    dimensions = values.get("matryoshka_dimensions")
    if isinstance(dimensions, list) and all(isinstance(each, int) and each > 0 for each in dimensions):
        return {"dimensions": tuple(sorted(dimensions)), "may_be_cut": True}
    return {"may_be_cut": values.get("is_matryoshka") is True}


def _with_modules(made: Pooling, directory: Path) -> Pooling:
    made = replace(made, normalizes=False)
    for module in _list(directory / MODULES):
        kind, path = str(module.get("type")).rpartition(".")[2], str(module.get("path") or "")
        folder = directory / path
        if directory.resolve() not in (folder.resolve(), *folder.resolve().parents):
            raise CheckpointError(f"{directory / MODULES}: the path {path[:80]!r} is outside the model's directory")
        if kind == "Pooling":
            made = replace(made, spec=replace(made.spec, kind=_kind(folder / "config.json")))
        elif kind == "Dense":
            made = replace(made, dense=(*made.dense, _dense(folder)))
        elif kind == "Normalize":
            made = replace(made, normalizes=True)
        elif kind not in ("Transformer", "Dropout"):
            raise CheckpointError(f"{directory / MODULES}: the module {kind[:80]!r} is not supported")
    config = directory / "sentence_bert_config.json"
    most = read_object(config, _MAX_BYTES).get("max_seq_length") if config.is_file() else None
    return replace(made, max_tokens=most) if isinstance(most, int) and most > 0 else made


def _kind(path: Path) -> PoolingKind:
    config = read_object(path, _MAX_BYTES)
    newer = config.get("pooling_mode")
    if isinstance(newer, str) and newer in ("cls", "mean", "lasttoken"):
        return _KINDS[f"pooling_mode_{newer}" + {"cls": "_token", "mean": "_tokens"}.get(newer, "")]
    found = [name for name in (*_KINDS, *_OTHER_KINDS) if config.get(name)]
    if len(found) != 1 or found[0] not in _KINDS:
        raise CheckpointError(f"{path}: the pooling {', '.join(found) or newer!r} is not supported")
    if config.get("include_prompt", True) is False:
        raise CheckpointError(f"{path}: include_prompt false is not supported")
    return _KINDS[found[0]]


def _dense(folder: Path) -> Dense:
    config = read_object(folder / "config.json", _MAX_BYTES)
    if config.get("use_residual") or config.get("module_input_name", _PLACE) != _PLACE:
        raise CheckpointError(f"{folder}: use_residual, and a module_input_name but {_PLACE}, are not supported")
    name = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise CheckpointError(f"{folder}: the activation {name[:80]!r} is not supported")
    file = SafetensorsFile(folder / "model.safetensors")
    shapes = {"linear.weight": (config.get("out_features"), config.get("in_features"))}
    if config.get("bias", True):
        shapes["linear.bias"] = (config.get("out_features"),)  # type: ignore[assignment]
    found = {}
    for each, shape in shapes.items():
        if each not in file.names() or file.shape(each) != shape:
            raise CheckpointError(f"{folder}: the tensor {each} of the shape {list(shape)} is missing")
        found[each] = file.get(each).to(torch.float32, copy=True)
        if not found[each].isfinite().all():
            raise CheckpointError(f"{folder}: the tensor {each} holds NaN or infinite values")
    return Dense(found["linear.weight"], found.get("linear.bias"), _ACTIVATIONS[name])


def _with_prompts(made: Pooling, directory: Path) -> Pooling:
    path = directory / _CONFIG
    if not path.is_file():
        return made
    config = read_object(path, _MAX_BYTES)
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(each, str) for each in prompts.values()):
        raise CheckpointError(f"{path}: prompts are not a mapping of names to texts")
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise CheckpointError(f"{path}: default_prompt_name names none of the prompts")
    return replace(made, prompts={key: text for key, text in prompts.items() if text}, default_prompt=default)


_FLAG: Final = "--pooler-config"
_FLAG_KINDS: Final[Mapping[str, PoolingKind]] = {"CLS": "cls", "LAST": "last", "MEAN": "mean", "ALL": "all"}


def _overridden(made: Pooling, given: dict[str, Any]) -> Pooling:
    for key, value in given.items():
        if key in ("pooling_type", "seq_pooling_type"):
            if str(value).upper() not in _FLAG_KINDS:
                raise InvalidConfig(f"{_FLAG}: {key} is one of {', '.join(_FLAG_KINDS)}")
            made = replace(made, spec=replace(made.spec, kind=_FLAG_KINDS[str(value).upper()]))
        elif not isinstance(value, bool):
            raise InvalidConfig(f"{_FLAG}: {key} must be true or false")
        elif made.spec.classes:
            if key == "normalize":
                raise InvalidConfig(f"{_FLAG}: normalize is for vectors, and this model gives classes")
            if not value:
                made = replace(made, spec=replace(made.spec, classes="none"))
            elif key == "softmax":
                made = replace(made, spec=replace(made.spec, classes="softmax"))
        elif key == "softmax" and value:
            raise InvalidConfig(f"{_FLAG}: softmax is for classes, and this model gives vectors")
        else:
            made = replace(made, normalizes=value)
    return made
