"""Runs a `Transformer` over token ids, as the worker would, without one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from octavo.base.config import ModelConfig
from octavo.models.loader import LoadedModel, load_model
from octavo.ops.table import Ops, cache_shapes

BLOCK_SIZE = 16


def load(path: Path, ops: Ops, **config: Any) -> LoadedModel:
    return load_model(ModelConfig(model=str(path), **config), ops, 64, lambda name, detail: None)


@dataclass
class Batch:
    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    query_start_loc: torch.Tensor
    seq_lens: torch.Tensor
    block_tables: torch.Tensor
    num_groups: int
    attention_plan: Any = None  # an attention that wants one makes it
    state_slots: torch.Tensor | None = None
    input_rows: torch.Tensor | None = None
    key_ends: torch.Tensor | None = None
    encoder_lens: torch.Tensor | None = None
    encoder_plan: None = None
    position_parts: torch.Tensor | None = None
    replaced_index: torch.Tensor | None = None
    replaced_rows: torch.Tensor | None = None
    adapter_slots: torch.Tensor | None = None

    @property
    def cache_groups(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """One table for all: each layer has a cache of its own here."""
        return [(self.block_tables, self.slot_mapping)] * self.num_groups


class Run:
    """A few sequences over one KV cache. Their blocks are interleaved, and memory not yet written holds NaN."""

    def __init__(self, loaded: LoadedModel, ops: Ops, num_seqs: int, max_len: int, kv_dtype: torch.dtype) -> None:
        self.model = loaded.model
        blocks_per_seq = -(-max_len // BLOCK_SIZE)
        num_blocks = 1 + num_seqs * blocks_per_seq
        self.caches = []
        for cache in self.model.definition.program.caches:
            shapes = cache_shapes(ops, cache.heads, num_blocks, BLOCK_SIZE, kv_dtype)
            # All ones are a NaN in each type of floats, and so they are in the scales of int8.
            sizes = [(*shape[:-1], shape[-1] * kv_dtype.itemsize) for shape in shapes]
            self.caches.append(tuple(torch.full(size, 0xFF, dtype=torch.uint8).view(kv_dtype) for size in sizes))
        for state in self.model.definition.program.states:
            self.caches.append((torch.full((num_seqs, *state.shape), torch.nan),))
        order = torch.arange(num_blocks - 1, 0, -1, dtype=torch.int32)
        self.block_tables = order.view(blocks_per_seq, num_seqs).t().contiguous()
        self.lens = [0] * num_seqs

    def plan(self, batch: Batch) -> Any:
        """The attention's, where a test wants one."""
        return None

    def step(self, tokens: list[list[int]], needed: list[int] | None = None) -> list[torch.Tensor]:
        """Feed tokens[i] (at least one) to sequence i. Returns their logits, [len(tokens[i]), V] each, or those of the
        rows `needed`, all together."""
        ids, positions, slots, starts = [], [], [], [0]
        for i, new in enumerate(tokens):
            for token in new:
                ids.append(token)
                positions.append(self.lens[i])
                block = int(self.block_tables[i, self.lens[i] // BLOCK_SIZE])
                slots.append(block * BLOCK_SIZE + self.lens[i] % BLOCK_SIZE)
                self.lens[i] += 1
            starts.append(len(ids))
        batch = Batch(
            torch.tensor(ids, dtype=torch.int32),
            torch.tensor(positions, dtype=torch.int32),
            torch.tensor(slots, dtype=torch.int64),
            torch.tensor(starts, dtype=torch.int32),
            torch.tensor(self.lens, dtype=torch.int32),
            self.block_tables,
            len(self.model.definition.cache_groups),
            state_slots=torch.arange(len(tokens), dtype=torch.int32),
        )
        batch.attention_plan = self.plan(batch)
        if needed is not None:
            return [
                self.model.logits(
                    self.model.forward(batch, self.caches, torch.tensor(needed, dtype=torch.int64))
                ).clone()
            ]
        logits = self.model.logits(self.model.forward(batch, self.caches)).clone()
        return [logits[begin:end] for begin, end in pairwise(starts)]


def prompt_logits(
    loaded: LoadedModel,
    ops: Ops,
    prompts: list[list[int]],
    chunk: int = 1 << 30,
    kv_dtype: torch.dtype = torch.float32,
) -> list[torch.Tensor]:
    """Logits of all positions of prompts of one length, `chunk` tokens of each a step."""
    length = len(prompts[0])
    run = Run(loaded, ops, len(prompts), length, kv_dtype)
    parts = [run.step([prompt[at : at + chunk] for prompt in prompts]) for at in range(0, length, chunk)]
    return [torch.cat([part[i] for part in parts]) for i in range(len(prompts))]


def greedy(loaded: LoadedModel, ops: Ops, prompt: list[int], count: int) -> list[int]:
    run = Run(loaded, ops, 1, len(prompt) + count, torch.float32)
    out: list[int] = []
    tokens = prompt
    for _ in range(count):
        tokens = [int(run.step([tokens])[0][-1].argmax())]
        out += tokens
    return out
