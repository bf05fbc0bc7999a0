"""Adapters as PEFT saves them: adapter_config.json, and adapter_model.safetensors or adapter_model.bin."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

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
    "alora_invocation_tokens", "layer_replication", "megatron_config", "trainable_token_indices", "use_qalora",
    "use_bdlora", "arrow_config", "monteclora_config", "kasa_config", "kappa_tuner_config",
    "velora_config",
)  # fmt: skip
_PREFIX: Final = re.compile(r"^base_model\.(model\.)?")
#: The adapter's own name stood in the names of tensors once: `.default`.
_TENSORS: Final = (
    (re.compile(r"(.+)\.lora_(A|B)(?:\.\w+)?\.weight"), "matrix"),
    (re.compile(r"(.+)\.lora_embedding_(A|B)(?:\.\w+)?"), "table"),
    (re.compile(r"(.+)\.lora_B(?:\.\w+)?\.bias"), "b_bias"),
    (re.compile(r"(.+)\.lora_magnitude_vector(?:\.\w+)?"), "magnitude"),
    (re.compile(r"(.+?)(?:\.base_layer)?\.bias"), "bias"),
    (re.compile(r"(.+)\.(?:base_layer|original_module)\.weight"), "base"),
    (re.compile(r"(.+?)(?:\.modules_to_save(?:\.\w+)?)?\.weight"), "whole"),
)

#: The parameters of a module in their order, as `target_parameters` may name them.
_PARAMETERS: Final = ("weight", "gate_up_proj", "gate_proj", "up_proj", "down_proj")
#: vLLM's file of the rows of tokens that an adapter adds.
_NEW_ROWS: Final = "new_embeddings.safetensors"
_NESTED: Final = ".base_layer"


def read_peft(directory: Path) -> AdapterFiles:
    """Raises CheckpointError for files that are missing, damaged, or of an adapter that is not supported."""
    config = read_json(directory / CONFIG_NAME)
    _check(config, directory)
    version = re.match(r"(\d+)\.(\d+)", str(config.get("peft_version")))
    files = AdapterFiles(
        str(directory),
        peft_version=(int(version[1]), int(version[2])) if version else (0, 0),
        context_length=config.get("context_length") or 0,
    )
    file = open_tensors(directory)
    named = {name: _meaning(_PREFIX.sub("", name), directory, name) for name in file.names()}
    parameters = _parameters(config, {module for module, kind in named.values() if kind in ("A", "B")}, directory)
    for name, (module, kind) in named.items():
        if kind in ("A", "B") and module in parameters:
            _add_parameter(files, parameters[module], kind, (name, file.get(name)), config)
            continue
        place = files.module(f"{module}.weight")
        value = name, file.get(name)
        if kind in ("A", "B"):
            setattr(place, kind.lower(), value)
            place.scaling = _scaling(config, module, directory)
            _check_rank(config, module, value[1].shape[0 if kind == "A" else 1], f"{directory}: tensor {name!r}")
        elif kind in ("table A", "table B"):
            setattr(place, kind[-1].lower(), value)
            place.scaling, place.is_embedding = _scaling(config, module, directory), True
        else:
            setattr(place, kind, value)
    files.modules = {name: module for name, module in files.modules.items() if not _is_empty(module)}
    if (directory / _NEW_ROWS).is_file():
        new = SafetensorsFile(directory / _NEW_ROWS)
        files.new_rows = {name: (f"{_NEW_ROWS}: {name}", new.get(name)) for name in new.names()}
    if not files.modules and not files.new_rows:
        raise CheckpointError(f"{directory}: the adapter has no tensors")
    return files


def _parameters(config: Mapping[str, Any], modules: set[str], directory: Path) -> dict[str, str]:
    """Of `target_parameters`: by the modules of tensors the names of the parameters that they belong to.

    A module with several has `.base_layer` once behind its name for the last but one, twice for the one before.
    """
    targets = config.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise CheckpointError(f"{directory}: {CONFIG_NAME}: target_parameters is not a list of names")
    found: dict[str, str] = {}
    depths: dict[str, dict[int, str]] = {}
    for module in modules:
        plain = module.removesuffix(_NESTED * module.count(_NESTED))
        depths.setdefault(plain, {})[module.count(_NESTED)] = module
    for plain, of_depth in depths.items():
        names = {target.rpartition(".")[2] for target in targets if _has_parameter(plain, target)}
        if not names:
            continue
        where = f"{directory}: {CONFIG_NAME}: target_parameters"
        if unknown := names - {*_PARAMETERS}:
            raise CheckpointError(f"{where}: {min(unknown)[:60]} of {plain} is not supported")
        if sorted(of_depth) != list(range(len(names))):
            raise CheckpointError(f"{where}: of {plain} the file has {len(of_depth)} parameters, not {len(names)}")
        for depth, name in enumerate(sorted(names, key=_PARAMETERS.index, reverse=True)):
            found[of_depth[depth]] = f"{plain}.{name}"
    return found


def _has_parameter(module: str, target: str) -> bool:
    """Whether a target names a parameter of a module. One without a module's name can be of experts only."""
    owner = target.rpartition(".")[0]
    return f".{module}".endswith(f".{owner}" if owner else ".experts")


def _add_parameter(
    files: AdapterFiles, parameter: str, kind: str, value: tuple[str, Tensor], config: Mapping[str, Any]
) -> None:
    """One half of what belongs to a parameter: of one matrix, or of all experts'."""
    name, tensor = value
    where = f"{files.source}: tensor {name!r}"
    rank = _of_module(config, "rank_pattern", "r", parameter)
    if tensor.dim() != 2 or type(rank) is not int or rank < 1 or tensor.shape["AB".index(kind)] % rank:
        raise CheckpointError(f"{where} has the shape {list(tensor.shape)}, and {CONFIG_NAME} says {str(rank)[:20]}")
    place = files.module(parameter)
    place.scaling = _scaling(config, parameter, Path(files.source))
    place.is_stack = not parameter.endswith(".weight")
    if place.is_stack:
        columns = tensor.shape[1]
        tensor = (
            tensor.view(-1, rank, columns)
            if kind == "A"
            else tensor.view(len(tensor), rank, columns // rank).permute(2, 0, 1)
        )
    setattr(place, kind.lower(), (name, tensor))


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


def open_tensors(directory: Path) -> TensorFile:
    """Raises CheckpointError for one that is missing or damaged."""
    for name, kind in _FILES.items():
        if (directory / name).is_file():
            return kind(directory / name)
    raise CheckpointError(f"{directory}: there is no {' and no '.join(_FILES)}")


def check_kind(config: Mapping[str, Any], directory: Path) -> None:
    """Raises CheckpointError for what is neither LoRA nor a prompt adapter."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{directory}: peft_type is {str(kind)[:40]!r}: of PEFT's adapters octavo reads LORA, PROMPT_TUNING "
            "and P_TUNING"
        )


def _check(config: Mapping[str, Any], directory: Path) -> None:
    check_kind(config, directory)
    for name in _REFUSED:
        if config.get(name):
            raise CheckpointError(f"{directory}: {CONFIG_NAME}: {name} is not supported")
    if type(config.get("context_length") or 0) is not int:
        raise CheckpointError(f"{directory}: {CONFIG_NAME}: context_length is not a number of tokens")
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
