"""Prompt adapters in the worker: rows that the first tokens of requests read in the place of embeddings."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from octavo.base.config import EngineConfig
from octavo.base.errors import CheckpointError, InvalidConfig
from octavo.device.base import Device
from octavo.files.adapters import is_prompt_adapter
from octavo.models.adapters.peft import CONFIG_NAME, check_kind
from octavo.models.adapters.prompts import PromptFit, read_prompt
from octavo.models.adapters.targets import given_width, with_given_rows
from octavo.models.bridge.declare import BridgedDefinition
from octavo.models.checkpoint import read_json
from octavo.models.decoder import Definition
from octavo.models.implementation import transformer
from octavo.models.loader import LoadedModel
from octavo.models.transformer import Transformer
from octavo.ops.operations import Embed, ReplaceRows
from octavo.ops.table import Ops
from octavo.wire.messages import AdapterInfo
from octavo.wire.step import SchedulerOutput
from octavo.worker.adapters import AdapterStore
from octavo.worker.input_batch import HostBatch, InputBatch

logger = logging.getLogger("octavo.worker")

_FLAG = "--enable-prompt-adapter"


def with_prompts(loaded: LoadedModel, config: EngineConfig, ops: Ops, max_num_batched_tokens: int) -> LoadedModel:
    """The model with a place for rows of prompt adapters. Raises InvalidConfig where it can have none."""
    if not config.prompt_adapter.enable_prompt_adapter:
        return loaded
    definition = loaded.model.definition
    if isinstance(definition, BridgedDefinition):
        raise InvalidConfig(f"{_FLAG}: this model runs by way of transformers, and prompt adapters need octavo's own.")
    if definition.crossing is not None:
        raise InvalidConfig(f"{_FLAG}: models with an encoder take no prompt adapters.")
    if definition.spec.pooling is not None:
        raise InvalidConfig(f"{_FLAG}: models that give vectors take no prompt adapters.")
    changed = with_given_rows(definition)
    embeds = [op for op in changed.program.ops if isinstance(op, Embed) and op.index == "token_ids"]
    if len(embeds) > 1:
        raise InvalidConfig(f"{_FLAG}: models whose layers have inputs of their own for each token take none.")
    if not any(isinstance(op, ReplaceRows) and op.x == embeds[0].out for op in changed.program.ops):
        raise InvalidConfig(f"{_FLAG}: models that see and whose embeddings are made wide take no prompt adapters.")
    if changed is definition:
        return loaded
    return replace(loaded, model=transformer(changed, ops, loaded.weights, max_num_batched_tokens))


def prompt_bytes(definition: Definition, config: EngineConfig, ops: Ops) -> int:
    """What the rows in the slots take at most."""
    prompts = config.prompt_adapter
    if not prompts.enable_prompt_adapter:
        return 0
    rows = prompts.max_prompt_adapters * prompts.max_prompt_adapter_token
    return rows * given_width(definition) * ops.activation_dtype.itemsize


class KeptFiles:
    """What the host keeps of adapters of both kinds, by their keys. `read` runs in a thread beside the steps."""

    def __init__(self, definition: Definition, config: EngineConfig, weights: AdapterStore | None) -> None:
        """`weights`: keeps those that are not prompt adapters; None: there are none."""
        spec, prompts = definition.spec, config.prompt_adapter
        self._weights = weights
        self._fit: PromptFit | None = None
        if prompts.enable_prompt_adapter:
            self._fit = PromptFit(spec.embedding_size or spec.hidden_size, prompts.max_prompt_adapter_token)
        self._rows: dict[str, Tensor] = {}

    def read(self, key: str, path: str) -> AdapterInfo:
        """Raises CheckpointError for files that are missing, damaged, do not fit the model, or are of a kind that is
        not served."""
        place = Path(path)
        if not is_prompt_adapter(place):
            if self._weights is not None:
                return self._weights.read(key, path)
            if place.is_dir():
                check_kind(read_json(place / CONFIG_NAME), place)
            raise CheckpointError(f"{path}: a LoRA adapter, which needs --enable-lora")
        if self._fit is None:
            raise CheckpointError(f"{path}: a prompt adapter, which needs {_FLAG}")
        rows = self._rows[key] = read_prompt(place, self._fit)
        logger.info("prompt adapter %s: %d virtual tokens, %.1f MiB", path, len(rows), rows.nbytes / 2**20)
        return AdapterInfo(num_virtual_tokens=len(rows))

    def drop(self, key: str) -> None:
        self._rows.pop(key, None)
        if self._weights is not None:
            self._weights.drop(key)

    def rows(self, key: str) -> Tensor:
        """Of a prompt adapter, float32 [tokens, width]."""
        return self._rows[key]


class PromptSlots:
    """Puts prompt adapters into the slots that a plan names, and lets the first tokens of requests read them."""

    def __init__(self, model: Transformer, ops: Ops, device: Device, kept: KeptFiles) -> None:
        self._scale, self._width = model.spec.given_scale, given_width(model.definition)
        self._dtype, self._device, self._kept = ops.activation_dtype, device, kept
        self._rows: dict[int, Tensor] = {}  # by slot: [tokens, width] of the activations' type

    def apply(self, plan: SchedulerOutput) -> None:
        for slot, key in plan.prompts_placed:
            rows = self._kept.rows(key) * self._scale
            # Columns that layers behind the first take are media's.
            rows = torch.nn.functional.pad(rows, (0, self._width - rows.shape[1]))
            self._rows[slot] = self._device.upload_weight(rows.to(self._dtype))

    def place(self, batch: InputBatch, host: HostBatch) -> None:
        if host.virtual is None:
            return
        index, slots, numbers = host.virtual
        rows = torch.empty(len(index), self._width, dtype=self._dtype, device=self._device.torch_device)
        for slot in np.unique(slots).tolist():
            (mine,) = (slots == slot).nonzero()
            at, which = self._device.upload(mine, numbers[mine])
            rows[at] = self._rows[slot][which]
        (at,) = self._device.upload(index)
        batch.give_rows(at, rows)
