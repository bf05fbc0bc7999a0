"""Adapters in the worker: those that the host keeps, and those in the slots that rows of a step name."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from octavo.base.config import EngineConfig, LoraConfig
from octavo.base.errors import InvalidConfig
from octavo.device.base import Device
from octavo.models.adapters.adapter import AdapterReader
from octavo.models.adapters.fitting import Adapter, ReadBase, TableDelta
from octavo.models.adapters.long_context import LongRopes, long_ropes, long_tables, with_long_ropes
from octavo.models.adapters.targets import given_width, lora_targets, make_banks, with_deltas
from octavo.models.bridge.declare import BridgedDefinition
from octavo.models.checkpoint import Checkpoint
from octavo.models.decoder import EMBEDDING, LM_HEAD, Definition
from octavo.models.implementation import tensors_of, transformer
from octavo.models.loader import DTYPES, LoadedModel, open_checkpoint
from octavo.models.params import TensorDecl
from octavo.models.transformer import Transformer
from octavo.ops.lora import bank_name
from octavo.ops.operations import LoraDelta
from octavo.ops.table import Ops
from octavo.quant.packed import as_floats
from octavo.wire.messages import AdapterInfo
from octavo.wire.step import SchedulerOutput
from octavo.worker.input_batch import HostBatch, InputBatch

logger = logging.getLogger("octavo.worker")

_AUTO: Final = "auto"


def with_adapters(loaded: LoadedModel, config: EngineConfig, ops: Ops, max_num_batched_tokens: int) -> LoadedModel:
    """The model with a place for adapters behind each product. Raises InvalidConfig where it can have none."""
    if not config.lora.enable_lora:
        return loaded
    definition = loaded.model.definition
    if isinstance(definition, BridgedDefinition):
        raise InvalidConfig("--enable-lora: this model runs by way of transformers, and adapters need octavo's own.")
    if definition.crossing is not None:
        raise InvalidConfig("--enable-lora: models with an encoder take no adapters yet.")
    if definition.spec.bidirectional:
        raise InvalidConfig("--enable-lora: models whose tokens see all of their text take no adapters yet.")
    definition = with_deltas(definition, config.lora.lora_extra_vocab_size)
    if config.lora.long_lora_scaling_factors:
        definition = with_long_ropes(definition)
    weights = with_banks(definition, loaded.weights, config, ops)
    return replace(loaded, model=transformer(definition, ops, weights, max_num_batched_tokens), weights=weights)


def with_banks(definition: Definition, weights: Mapping[str, Any], config: EngineConfig, ops: Ops) -> Mapping[str, Any]:
    """`weights`, with empty places for adapters, and tables for their contexts, where the program wants them and they
    are not there."""
    if not any(isinstance(op, LoraDelta) for op in definition.program.ops):
        return weights
    if bank_name(lora_targets(definition)[0].weight) in weights:
        return weights
    lora = config.lora
    dtype = _dtype(lora) or ops.activation_dtype
    banks = make_banks(definition, ops, lora.max_loras, lora.max_lora_rank, dtype)
    ropes = ropes_of(definition, config)
    return {**weights, **banks, **({} if ropes is None else long_tables(definition, weights, ropes))}


def ropes_of(definition: Definition, config: EngineConfig) -> LongRopes | None:
    """None: all contexts are the model's."""
    factors = config.lora.long_lora_scaling_factors
    longest = config.model.max_model_len or definition.spec.default_positions
    return long_ropes(factors, definition.spec.max_position_embeddings, longest) if factors else None


def bank_bytes(definition: Definition, config: LoraConfig, ops: Ops) -> int:
    """What the places of adapters take at most, on a device that makes room for all of them beforehand."""
    if not config.enable_lora or ops.torch_device.type == "cpu":
        return 0
    itemsize = (_dtype(config) or ops.activation_dtype).itemsize
    values = [
        target.num_products * (len(target.columns) * target.weight.shape[-1] + target.weight.shape[-2])
        for target in lora_targets(definition)
    ]
    return config.max_loras * config.max_lora_rank * sum(values) * itemsize


def _dtype(config: LoraConfig) -> torch.dtype | None:
    return None if config.lora_dtype == _AUTO else DTYPES[config.lora_dtype]


class AdapterStore:
    """The adapters that the host keeps, by their keys. `read` runs in a thread beside the steps."""

    def __init__(self, definition: Definition, config: EngineConfig, checkpoint: Checkpoint) -> None:
        def base() -> ReadBase:
            tensors = tensors_of(definition, open_checkpoint(config.model))

            def read(tensor: TensorDecl) -> Tensor:
                return as_floats(tensors.get(tensor)).to(torch.float32)

            return read

        longest = config.model.max_model_len or definition.spec.default_positions
        lora, values = config.lora, checkpoint.config
        self._reader = AdapterReader(definition, values, base, lora, _dtype(lora), longest)
        self._kept: dict[str, Adapter] = {}

    def read(self, key: str, path: str) -> AdapterInfo:
        """Raises CheckpointError for files that are missing, damaged, or do not fit the model."""
        adapter = self._reader.read(path)
        self._kept[key] = adapter
        logger.info("adapter %s: %d products, %.1f MiB", path, len(adapter.weights), adapter.num_bytes / 2**20)
        return AdapterInfo(adapter.num_extra, adapter.context_length)

    def drop(self, key: str) -> None:
        self._kept.pop(key, None)

    def __getitem__(self, key: str) -> Adapter:
        return self._kept[key]


class AdapterSlots:
    """Puts adapters into the slots that a plan names, and lets the rows of a step find them."""

    def __init__(self, model: Transformer, ops: Ops, device: Device, store: AdapterStore, config: EngineConfig) -> None:
        num_slots = config.lora.max_loras
        self._ropes = ropes_of(model.definition, config)
        self._starts = np.zeros(num_slots, np.int32)  # of the tables of their positions
        self._model, self._ops, self._device, self._store = model, ops, device, store
        self._width = given_width(model.definition)
        self._banks = {
            target.weight.name: model.weights[bank_name(target.weight)] for target in lora_targets(model.definition)
        }
        self._tables: dict[int, TableDelta] = {}  # of the slots whose adapters change the embedding
        for slot in range(num_slots):
            self._put(slot, Adapter({}))

    def apply(self, plan: SchedulerOutput) -> None:
        for slot, key in plan.adapters_placed:
            self._put(slot, self._store[key])

    def _put(self, slot: int, adapter: Adapter) -> None:
        for name, bank in self._banks.items():
            bank.put(slot, adapter.weights.get(name))
        self._model.heads.pop(slot, None)
        self._model.head_deltas.discard(slot)
        self._tables.pop(slot, None)
        self._starts[slot] = 0 if self._ropes is None else self._ropes.start(adapter.long_factor)
        self._model.extra_heads.pop(slot, None)
        if adapter.extra_head is not None:
            head = self._ops.pack_output(self._device.upload_weight(adapter.extra_head), None)
            self._model.extra_heads[slot] = head, len(adapter.extra_head)
        if adapter.head is not None:
            self._model.heads[slot] = self._ops.pack_output(self._device.upload_weight(adapter.head), None)
        if LM_HEAD in adapter.weights:
            self._model.head_deltas.add(slot)
        if adapter.embedding is not None:
            self._tables[slot] = _on_device(adapter.embedding, self._device)

    def is_plain(self, slots: np.ndarray) -> bool:
        """Whether the adapters of these slots, int32, change neither the embedding nor the output matrix nor positions:
        a captured step has no place for that."""
        model, moved = self._model, self._starts.nonzero()[0].tolist()
        special = {*self._tables, *model.heads, *model.head_deltas, *model.extra_heads, *moved}
        return not special or special.isdisjoint(slots.tolist())

    def place(self, batch: InputBatch, host: HostBatch) -> None:
        """Let the step's tokens whose adapters change the embedding read what those say, and those with a context of
        their own find its positions. Rows of media stay."""
        if host.adapter_slots is not None and self._starts.any():
            starts = np.where(host.adapter_slots < 0, 0, self._starts[host.adapter_slots])
            (batch.position_parts,) = self._device.upload((host.positions + starts).astype(np.int32)[None])
        if not self._tables or host.adapter_slots is None:
            return
        wanted = np.isin(host.adapter_slots, list(self._tables))
        if batch.replaced_index is not None:
            wanted[batch.replaced_index.cpu().numpy()] = False
        at = wanted.nonzero()[0]
        if not len(at):
            return
        (index,) = self._device.upload(at)
        ids = batch.token_ids[index]
        rows = torch.empty(len(at), self._model.spec.embedding_size or self._model.spec.hidden_size,
                           dtype=self._ops.activation_dtype, device=self._ops.torch_device)  # fmt: skip
        scale, num_known = self._model.spec.embedding_scale, self._model.spec.vocab_size
        self._ops.embedding(rows, ids * (ids < num_known), self._model.weights[EMBEDDING], scale)
        slots = host.adapter_slots[at]
        for slot in np.unique(slots).tolist():
            (mine,) = self._device.upload((slots == slot).nonzero()[0])
            rows[mine] = _rows(self._tables[slot], ids[mine].long(), num_known, rows[mine], scale)
        batch.give_rows(index, torch.nn.functional.pad(rows, (0, self._width - rows.shape[1])))


def _rows(table: TableDelta, ids: Tensor, num_known: int, rows: Tensor, scale: float) -> Tensor:
    """Of the tokens, [n, width]; the model knows the first ids. The sums run over the ranks one by one: no library's
    product, whose order could depend on the number of rows."""
    known = ids * (ids < num_known)
    found = rows.float()
    if table.whole is not None:
        found = table.whole[known].float() * scale
    elif table.a is not None and table.b is not None:
        inner, added = table.a[known].float(), torch.zeros(rows.shape, device=rows.device)
        for rank, row in enumerate(table.b.float()):
            added += inner[:, rank, None] * row
        found = found + added * (table.scaling * scale)
    if table.extra is not None:
        own = table.extra[(ids - num_known).clamp(0, len(table.extra) - 1)].float() * scale
        found = torch.where((ids < num_known)[:, None], found, own)
    return found.to(rows.dtype)


def _on_device(table: TableDelta, device: Device) -> TableDelta:
    whole, a, b, extra = (
        None if each is None else device.upload_weight(each) for each in (table.whole, table.a, table.b, table.extra)
    )
    return TableDelta(whole, a, b, table.scaling, extra)
