"""Whose implementation of a model is run: octavo's family, or transformers' modules with octavo's operations."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from octavo.base.config import ModelConfig
from octavo.base.errors import CheckpointError
from octavo.base.suggest import nearest
from octavo.models.bridge.declare import BridgedDefinition
from octavo.models.bridge.define import bridged
from octavo.models.bridge.gguf import GGUFForTree, class_values
from octavo.models.bridge.model import BridgedModel
from octavo.models.bridge.tensors import BridgedTensors
from octavo.models.checkpoint import Checkpoint
from octavo.models.decoder import Definition, define
from octavo.models.gguf_checkpoint import GGUFCheckpoint
from octavo.models.layout import Layout, TensorSource
from octavo.models.overrides import without_windows
from octavo.models.params import TensorDecl
from octavo.models.pooling import gives_vectors, pooled
from octavo.models.pooling_files import MODULES
from octavo.models.projector_checkpoint import JoinedTensors, ProjectorCheckpoint, in_tower
from octavo.models.registry import FAMILIES, find_family, seen_spec
from octavo.models.seeing import SEEING
from octavo.models.transformer import Transformer
from octavo.ops.table import Ops
from octavo.quant.packed import QuantizedWeight

logger = logging.getLogger("octavo.models")

_EXTRA = "pip install 'octavo[transformers]'"


class Tensors(Protocol):
    """The tensors that a model declares, as a checkpoint holds them."""

    def __len__(self) -> int: ...
    def name(self, tensor: TensorDecl) -> str: ...
    def get(self, tensor: TensorDecl) -> Tensor | QuantizedWeight: ...
    def num_bytes(self, float_bytes: int | None) -> int: ...


def definition_of(config: ModelConfig, values: dict[str, Any], source: str, dtype: torch.dtype) -> Definition:
    """The model that a configuration in Hugging Face's form describes. `source` names it in messages; `dtype`: of
    activations. Raises CheckpointError for what cannot be served."""
    if implementation(config, values, source) == "octavo":
        spec = seen_spec(values, source, config)
        has_modules = (Path(source) / MODULES).is_file()
        only_vectors = spec.bidirectional or spec.pooling is not None
        if only_vectors and config.task == "generate":
            raise CheckpointError(f"{source}: this model gives vectors and generates nothing: leave --task out")
        known = {*FAMILIES, *SEEING}
        if spec.pooling is None and (only_vectors or gives_vectors(values, config, known, has_modules=has_modules)):
            spec = pooled(spec, values, config, source)
        return define(without_windows(spec) if config.disable_sliding_window else spec)
    if config.disable_sliding_window:
        raise CheckpointError(f"{source}: --disable-sliding-window is for octavo's own families, and this is none")
    return bridged(config, class_values(values, source) if source.endswith(".gguf") else values, source, dtype)


def tensors_of(definition: Definition, checkpoint: Checkpoint) -> Tensors:
    """Raises CheckpointError unless the checkpoint has the definition's tensors and no others."""
    if isinstance(definition, BridgedDefinition):
        if checkpoint.naming == "gguf":
            checkpoint = GGUFForTree(checkpoint, definition.skeleton)
        return BridgedTensors(checkpoint, definition)
    if isinstance(checkpoint, GGUFCheckpoint) and checkpoint.projector is not None:
        return _joined(definition, checkpoint, checkpoint.projector)
    sees = definition.tower is not None or definition.pictures is not None
    family = find_family(checkpoint.config, checkpoint.source, sees=sees)
    layouts = {"hf": family.hf, "gguf": family.gguf, "declared": Layout()}
    return TensorSource(checkpoint, layouts[checkpoint.naming], definition)


def _joined(definition: Definition, checkpoint: GGUFCheckpoint, projector: ProjectorCheckpoint) -> Tensors:
    """The tensors of a language model's file and of its projector's."""
    tower = [tensor for tensor in definition.tensors.values() if in_tower(tensor)]
    rest = [tensor for tensor in definition.tensors.values() if not in_tower(tensor)]
    layout = find_family(checkpoint.config, checkpoint.source).gguf
    text = TensorSource(checkpoint, layout, definition, rest)
    if not tower:
        return text
    return JoinedTensors(text, TensorSource(projector, projector.layout, definition, tower, "projector"))


def transformer(
    definition: Definition, ops: Ops, weights: Mapping[str, Any], max_num_batched_tokens: int
) -> Transformer:
    """A definition with its weights, as `Transformer` has them."""
    if isinstance(definition, BridgedDefinition):
        return BridgedModel(definition, ops, weights)
    return Transformer(definition, ops, weights, max_num_batched_tokens)


def implementation(config: ModelConfig, values: dict[str, Any], source: str) -> Literal["octavo", "transformers"]:
    """Raises CheckpointError for an architecture that nobody has whom `config` allows, with what to do."""
    name, asked = _architecture(values), config.model_impl
    try:
        find_family(values, source)
        has_family = True
    except CheckpointError:
        has_family = False
    if asked != "transformers" and has_family:
        return "octavo"
    if asked in ("octavo", "vllm"):
        raise _unknown(source, name, "--model-impl transformers runs what transformers has.")
    if source.endswith(".gguf") and not has_family:
        raise _unknown(source, name, "Models without a family need their safetensors files.")
    if importlib.util.find_spec("transformers") is None:
        if asked == "transformers":
            raise CheckpointError(f"--model-impl transformers needs transformers, which is not installed: {_EXTRA}")
        raise _unknown(source, name, f"Many more run with transformers, which is not installed: {_EXTRA}")
    if asked == "auto":
        logger.info("%s: octavo has no family %s: transformers' modules run", source, name)
    return "transformers"


def _architecture(values: dict[str, Any]) -> Any:
    names = values.get("architectures")
    return names[0] if isinstance(names, list) and names else names or values.get("model_type")


def _unknown(source: str, name: Any, advice: str) -> CheckpointError:
    hint = nearest(name, FAMILIES) if isinstance(name, str) else ""
    return CheckpointError(f"{source}: octavo has no family for {str(name)[:80]!r}{hint}. {advice}")
