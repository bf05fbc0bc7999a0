"""Attention of prompts by FlashInfer (Ye et al. 2025), where it is installed: its kernels for Hopper use what Triton's
do not. Decoding stays with our own kernel, whose bits do not depend on the batch and which graphs can replay.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from octavo.base.errors import DeviceError
from octavo.ops.operands import Heads

logger = logging.getLogger("octavo.ops")

#: The size that the library recommends, for partial results of one call.
_WORKSPACE_BYTES: Final = 128 << 20
_HEAD_DIMS: Final = (64, 128, 256)


@dataclass(slots=True)
class PromptStep:
    """The sequences of a step that do not decode; their rows follow those of the others."""

    num_decodes: int
    seq_lens: np.ndarray  # int32 [B]
    starts: np.ndarray  # int32 [B + 1]: of their queries, from 0 on
    #: (window, address of a block table) -> whose plan is for this step.
    planned: dict[tuple[int, int], _Wrapper] = field(default_factory=dict)


class _Wrapper:
    """The library's object for one window and block table, and when its last plan was copied."""

    def __init__(self, library: Any, workspace: Tensor) -> None:
        self.calls = library.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
        self._copied: Any = None
        if workspace.device.type == "cuda":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def plan(self, *args: Any, **kwargs: Any) -> None:
        # A plan goes to the device from one pinned buffer, and the step before may not have got there yet.
        if self._copied is not None:
            self._copied.synchronize()
        self.calls.plan(*args, **kwargs)
        if self._copied is not None:
            self._copied.record()


class FlashInferPrompts:
    """Plans and runs the library's paged attention of prompts. One a model, as the planner that owns it."""

    def __init__(self, library: Any, heads: Heads, device: torch.device, is_required: bool) -> None:
        """`is_required`: what the library raises is raised; else it is told once, and `run` refuses from then on."""
        self._library = library
        self._heads = (heads.num_heads, heads.num_kv_heads, heads.head_dim)
        self._device = device
        self._is_required = is_required
        self._is_broken = False
        self._workspace: Tensor | None = None
        self._wrappers: dict[tuple[int, int], _Wrapper] = {}  # (window, how many tables with it came before in a step)

    def step(self, seq_lens: np.ndarray, query_start_loc: np.ndarray, num_decodes: int) -> PromptStep | None:
        """None: no sequence has a prompt, or the library does not work here."""
        if self._is_broken or num_decodes == len(seq_lens):
            return None
        starts = query_start_loc[num_decodes:]
        return PromptStep(num_decodes, seq_lens[num_decodes:].copy(), starts - starts[0])

    def run(
        self,
        step: PromptStep,
        out: Tensor,
        qkv: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        seq_lens: Tensor,
        scale: float,
        window: int,
        softcap: float,
    ) -> bool:
        """`attention.attention` for the rows of the step's prompts. False: nothing was computed."""
        if self._is_broken:
            return False
        place = window, block_tables.data_ptr()
        key = window, sum(planned == window for planned, _ in step.planned)
        try:
            wrapper = step.planned.get(place)
            if wrapper is None:
                wrapper = self._wrappers.get(key) or self._wrapper()
                self._plan(wrapper, step, qkv.dtype, k_cache, block_tables, seq_lens, scale, window, softcap)
                step.planned[place] = wrapper
            num_heads, _, head_dim = self._heads
            num_rows = int(step.starts[-1])
            rows = slice(step.num_decodes, step.num_decodes + num_rows)
            queries = qkv[rows, : num_heads * head_dim].view(num_rows, num_heads, head_dim)
            wrapper.calls.run(queries, (k_cache, v_cache), out=out[rows].view(num_rows, num_heads, head_dim))
        except Exception as error:
            # It compiles its kernels at the first call and may lack a compiler; later failures are another matter.
            if self._is_required or (window, 0) in self._wrappers:
                raise
            self._is_broken = True
            logger.warning("FlashInfer is installed and does not work, Triton's kernels are used instead: %s", error)
            return False
        self._wrappers.setdefault(key, wrapper)
        return True

    def _wrapper(self) -> _Wrapper:
        if self._workspace is None:
            self._workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=self._device)
        return _Wrapper(self._library, self._workspace)

    def _plan(
        self,
        wrapper: _Wrapper,
        step: PromptStep,
        dtype: torch.dtype,
        k_cache: Tensor,
        block_tables: Tensor,
        seq_lens: Tensor,
        scale: float,
        window: int,
        softcap: float,
    ) -> None:
        block_size = k_cache.shape[2]
        counts = -(-step.seq_lens // block_size)
        indptr = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        wrapper.plan(
            torch.from_numpy(step.starts),
            torch.from_numpy(indptr),
            _pages(block_tables[step.num_decodes :], seq_lens[step.num_decodes :], block_size, int(indptr[-1])),
            torch.from_numpy(step.seq_lens - (counts - 1) * block_size),
            *self._heads,
            block_size,
            causal=True,
            sm_scale=scale,
            window_left=window - 1,  # -1: all keys are seen
            logits_soft_cap=softcap,
            q_data_type=dtype,
            kv_data_type=k_cache.dtype,
        )


def _pages(block_tables: Tensor, seq_lens: Tensor, block_size: int, count: int) -> Tensor:
    """The blocks of all sequences one after the other, int32 [count]. Nothing waits for the device."""
    counts = ((seq_lens + block_size - 1) // block_size).long()
    firsts = counts.cumsum(0) - counts
    rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=count)
    return block_tables[rows, torch.arange(count, device=counts.device) - firsts[rows]]


def find(backend: str, dtype: torch.dtype, batch_invariant: bool) -> Any:
    """The library for `--attention-backend`, or None where Triton's kernels are to be used.

    Raises DeviceError when it was asked for by name and cannot be used.
    """
    if backend == "triton" or (backend == "auto" and importlib.util.find_spec("flashinfer") is None):
        return None
    reason = None
    if batch_invariant:
        reason = "excludes --batch-invariant: how it splits a context depends on the batch"
    elif dtype.itemsize != 2:
        reason = "computes in bfloat16 or float16, see --dtype"
    if reason is None:
        try:
            return importlib.import_module("flashinfer")
        except Exception as error:  # noqa: BLE001  # an installation for another CUDA raises all kinds
            reason = f"needs FlashInfer (pip install flashinfer-python): {error}"
            if backend == "auto":
                logger.warning("FlashInfer is installed and cannot be imported; Triton's kernels are used: %s", error)
    if backend == "auto":
        return None
    raise DeviceError(f"--attention-backend flashinfer {reason}.")


def prompts_of(library: Any, heads: Heads, device: torch.device, is_required: bool) -> FlashInferPrompts | None:
    """Who computes a model's prompts; None: Triton's kernels, for want of the library or of its kernels for the heads.

    Raises DeviceError for the latter if it `is_required`.
    """
    if library is None:
        return None
    if heads.head_dim in _HEAD_DIMS:
        return FlashInferPrompts(library, heads, device, is_required)
    if is_required:
        raise DeviceError(f"--attention-backend flashinfer has no kernels for heads of {heads.head_dim}.")
    return None
