"""Adapters as PEFT saves them: adapter_config.json, and adapter_model.safetensors or adapter_model.bin."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from octavo.base.errors import CheckpointError
from octavo.models.adapters.parts import AdapterFiles
from octavo.models.checkpoint import TensorFile, read_json
from octavo.models.safetensors_file import SafetensorsFile
from octavo.models.torch_file import TorchFile

CONFIG_NAME: Final = "adapter_config.json"
_FILES: Final[dict[str, type[SafetensorsFile] | type[TorchFile]]] = {
    "adapter_model.safetensors": SafetensorsFile,
    "adapter_model.bin": TorchFile,
}
#: Settings that change what an adapter computes, or where, in ways that octavo has not.
_REFUSED: Final = (
    "alora_invocation_tokens", "layer_replication", "megatron_config", "target_parameters", "trainable_token_indices",
    "use_qalora", "use_bdlora", "arrow_config", "monteclora_config", "kappa_tuner_config", "velora_config",
)  # fmt: skip
_PREFIX: Final = re.compile(r"^base_model\.(model\.)?")
#: The adapter's own name stood in the names of tensors once: `.default`.
_TENSORS: Final = (
    (re.compile(r"(.+)\.lora_(A|B)(?:\.\w+)?\.weight"), "matrix"),
    (re.compile(r"(.+)\.lora_embedding_(A|B)(?:\.\w+)?"), "table"),
    (re.compile(r"(.+)\.lora_B(?:\.\w+)?\.bias"), "b_bias"),
    (re.compile(r"(.+)\.lora_magnitude_vector(?:\.\w+)?"), "magnitude"),
    (re.compile(r"(.+?)(?:\.base_layer)?\.bias"), "bias"),
    (re.compile(r"(.+)\.base_layer\.weight"), "base"),
    (re.compile(r"(.+?)(?:\.modules_to_save(?:\.\w+)?)?\.weight"), "whole"),
)


def read_peft(directory: Path) -> AdapterFiles:
    """Raises CheckpointError for files that are missing, damaged, or of an adapter that is not supported."""
    config = read_json(directory / CONFIG_NAME)
    _check(config, directory)
    files = AdapterFiles(str(directory))
    file = _open(directory)
    for name in file.names():
        module, kind = _meaning(_PREFIX.sub("", name), directory, name)
        place = files.module(f"{module}.weight")
        value = name, file.get(name)
        if kind in ("A", "B"):
            setattr(place, kind.lower(), value)
            place.scaling = _scaling(config, module, directory)
            _check_rank(config, module, value[1].shape[0 if kind == "A" else 1], f"{directory}: tensor {name!r}")
        elif kind in ("table A", "table B"):
            setattr(place, kind[-1].lower(), value)
            place.scaling, place.is_embedding = _scaling(config, module, directory), True
        elif kind != "base":  # the model's own, which is there already
            setattr(place, kind, value)
    files.modules = {name: module for name, module in files.modules.items() if not _is_empty(module)}
    if not files.modules:
        raise CheckpointError(f"{directory}: the adapter has no tensors")
    return files


def _is_empty(module: Any) -> bool:
    return not any((module.a, module.b, module.b_bias, module.magnitude, module.bias, module.whole))


def _meaning(name: str, directory: Path, whole_name: str) -> tuple[str, str]:
    """The module that a tensor belongs to, and what it is there."""
    for pattern, kind in _TENSORS:
        if match := pattern.fullmatch(name):
            if kind == "matrix":
                return match[1], match[2]
            return match[1], f"table {match[2]}" if kind == "table" else kind
    raise CheckpointError(f"{directory}: tensor {whole_name!r}: not a part of a LoRA adapter that octavo knows")


def _open(directory: Path) -> TensorFile:
    for name, kind in _FILES.items():
        if (directory / name).is_file():
            return kind(directory / name)
    raise CheckpointError(f"{directory}: there is no {' and no '.join(_FILES)}")


def _check(config: Mapping[str, Any], directory: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{directory}: peft_type is {str(kind)[:40]!r}: of PEFT's adapters octavo reads LORA")
    for name in _REFUSED:
        if config.get(name):
            raise CheckpointError(f"{directory}: {CONFIG_NAME}: {name} is not supported")
    if type(config.get("r")) is not int or config["r"] < 1:
        raise CheckpointError(f"{directory}: {CONFIG_NAME}: r is not a rank")


def _check_rank(config: Mapping[str, Any], module: str, rank: int, where: str) -> None:
    expected = _of_module(config, "rank_pattern", "r", module)
    if rank != expected:
        raise CheckpointError(f"{where} has the rank {rank}, and {CONFIG_NAME} says {str(expected)[:20]}")


def _scaling(config: Mapping[str, Any], module: str, directory: Path) -> float:
    rank, alpha = (
        _of_module(config, *names, module) for names in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    )
    for value in (rank, alpha):
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise CheckpointError(f"{directory}: {CONFIG_NAME}: the rank or lora_alpha of {module} is not a number")
    if rank < 1:
        raise CheckpointError(f"{directory}: {CONFIG_NAME}: the rank of {module} is below 1")
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _of_module(config: Mapping[str, Any], patterns: str, default: str, module: str) -> Any:
    """A number of a module, which patterns of names may give otherwise: the ends of names, or regular expressions."""
    for pattern, value in (config.get(patterns) or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error:
            raise CheckpointError(f"{CONFIG_NAME}: {patterns}: {pattern[:60]!r} is no regular expression") from None
    return config.get(default, 8)
