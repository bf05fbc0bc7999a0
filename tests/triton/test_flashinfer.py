"""Attention of prompts through FlashInfer's interface, against the reference in float32.

The library needs a GPU; a stand-in takes its place that has the signatures of version 0.7, refuses what the library
does, and computes with torch.
"""

from __future__ import annotations

import logging
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.base.errors import DeviceError
from octavo.ops import flashinfer_prompts
from octavo.ops.operands import Heads
from octavo.ops.table import Binding, bind
from octavo.ops.triton.attention import AttentionPlanner
from support.triton_steps import TOLERANCE, Step

HEADS = (4, 2, 64)


class Wrapper:
    """BatchPrefillWithPagedKVCacheWrapper."""

    plans: list[dict[str, Any]]
    failure: Exception | None = None

    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str = "NHD") -> None:
        assert float_workspace_buffer.dtype == torch.uint8 and kv_layout == "HND"

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        causal: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        q_data_type: str | torch.dtype = "float16",
        kv_data_type: str | torch.dtype | None = None,
    ) -> None:
        if self.failure is not None:
            raise self.failure
        indices = (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        assert all(tensor.dtype == torch.int32 for tensor in indices) and causal
        assert int(paged_kv_indptr[-1]) == len(paged_kv_indices)
        self.plans.append({"window_left": window_left, "rows": int(qo_indptr[-1])})
        self._indices = [tensor.tolist() for tensor in indices]
        self._page_size, self._heads = page_size, (num_qo_heads, num_kv_heads, head_dim_qk)
        self._scale, self._left, self._cap = sm_scale, window_left, logits_soft_cap
        self._types = (q_data_type, kv_data_type)

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor], *, out: Tensor) -> Tensor:
        k_cache, v_cache = paged_kv_cache
        assert (q.dtype, k_cache.dtype) == self._types and q.stride(-1) == 1 and out.is_contiguous()
        queries, pages, ids, last = self._indices
        num_heads, num_kv_heads, dim = self._heads
        assert q.shape == out.shape == (queries[-1], num_heads, dim)
        for i in range(len(last)):
            blocks = ids[pages[i] : pages[i + 1]]
            length = (len(blocks) - 1) * self._page_size + last[i]
            k, v = (
                cache[blocks].transpose(1, 2).reshape(-1, num_kv_heads, dim)[:length].float()
                for cache in (k_cache, v_cache)
            )
            k, v = (x.repeat_interleave(num_heads // num_kv_heads, 1) for x in (k, v))
            rows = slice(queries[i], queries[i + 1])
            scores = torch.einsum("qhd,khd->hqk", q[rows].float(), k) * self._scale
            if self._cap:
                scores = self._cap * torch.tanh(scores / self._cap)
            count = rows.stop - rows.start
            positions, keys = torch.arange(length - count, length)[:, None], torch.arange(length)
            seen = keys <= positions
            if self._left >= 0:
                seen &= keys >= positions - self._left
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            out[rows] = torch.einsum("hqk,khd->qhd", weights, v).to(out.dtype)
        return out


@pytest.fixture
def library() -> types.SimpleNamespace:
    return types.SimpleNamespace(BatchPrefillWithPagedKVCacheWrapper=type("Wrapper", (Wrapper,), {"plans": []}))


def heads(head_dim: int = 64) -> Heads:
    hq, hkv, _ = HEADS
    return Heads(num_heads=hq, num_kv_heads=hkv, head_dim=head_dim)


def planner(library: Any, is_required: bool = False) -> AttentionPlanner:
    return AttentionPlanner(heads(), torch.device("cpu"), torch.bfloat16, library, is_required)


def run(step: Step, planner: AttentionPlanner, num_decodes: int, *options: dict[str, Any]) -> list[Tensor]:
    """The step's attention once for each of `options`, as by layers, with one plan."""
    arrays = planner.arrays(step.seq_lens.numpy(), step.starts.numpy(), num_decodes)
    plan = planner.plan(arrays, [torch.from_numpy(array) for array in arrays.tensors])
    return [step.run(plan=plan, **option) for option in options]


SEQS = [(33, 1), (300, 1), (40, 17), (5, 5), (64, 30)]


def test_prompts_of_a_mixed_step_are_the_librarys(library: types.SimpleNamespace) -> None:
    step = Step(SEQS, HEADS, torch.bfloat16)
    layers: list[dict[str, Any]] = [{}, {"window": 9, "softcap": 5.0}, {}, {"window": 9, "softcap": 5.0}]
    found = run(step, planner(library), 2, *layers)
    for out, options in zip(found, layers, strict=True):
        expected = step.expected(**options)
        torch.testing.assert_close(out.float(), expected, rtol=0, atol=TOLERANCE[torch.bfloat16])
    # Planned once a step and window, whatever the number of layers; the rows that decode are not its.
    assert library.BatchPrefillWithPagedKVCacheWrapper.plans == [
        {"window_left": -1, "rows": 52}, {"window_left": 8, "rows": 52}
    ]  # fmt: skip


def test_groups_of_layers_with_one_window_have_a_plan_each_for_their_tables(library: types.SimpleNamespace) -> None:
    """Layers of two groups in turn: each reads the blocks of its own table, and each table is planned once a step."""
    steps = [Step(SEQS, HEADS, torch.bfloat16) for _ in range(2)]
    other = steps[1]  # the same in other blocks
    other.tables = (other.tables + 1) % len(other.caches[0])
    other.caches = tuple(cache.roll(1, 0) for cache in other.caches)
    k_cache, v_cache = other.reference_caches
    other.reference_caches = k_cache.roll(1, 0), v_cache.roll(1, 0)
    mine = planner(library)
    for _ in range(2):
        arrays = mine.arrays(steps[0].seq_lens.numpy(), steps[0].starts.numpy(), 2)
        plan = mine.plan(arrays, [torch.from_numpy(array) for array in arrays.tensors])
        for step in (*steps, *steps):
            out = step.run(plan=plan, window=9)
            torch.testing.assert_close(out.float(), step.expected(window=9), rtol=0, atol=TOLERANCE[torch.bfloat16])
    assert len(library.BatchPrefillWithPagedKVCacheWrapper.plans) == 4


def test_prompts_of_a_captured_step_would_be_others(library: types.SimpleNamespace) -> None:
    """Its plan is the host's work in each step."""
    lens, starts = np.array([33, 40], np.int32), np.array([0, 1, 18], np.int32)
    most = {"num_seqs": 2, "num_prompt_tokens": 32}
    assert planner(library).padded_arrays(lens, starts, 1, **most) is None
    assert planner(None).padded_arrays(lens, starts, 1, **most) is not None


def test_steps_of_decoding_do_without_it(library: types.SimpleNamespace) -> None:
    step = Step([(33, 1), (5, 1)], HEADS, torch.bfloat16)
    (out,) = run(step, planner(library), 2, {})
    torch.testing.assert_close(out.float(), step.expected(), rtol=0, atol=TOLERANCE[torch.bfloat16])
    assert not library.BatchPrefillWithPagedKVCacheWrapper.plans


def test_one_that_does_not_work_is_told_once_and_replaced(
    library: types.SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    library.BatchPrefillWithPagedKVCacheWrapper.failure = RuntimeError("no nvcc")
    step, own = Step(SEQS, HEADS, torch.bfloat16), planner(library)
    with caplog.at_level(logging.WARNING, "octavo"):
        for out in [*run(step, own, 2, {}, {"window": 9}), *run(step, own, 2, {})]:
            assert torch.isfinite(out).all()
    torch.testing.assert_close(out.float(), step.expected(), rtol=0, atol=TOLERANCE[torch.bfloat16])
    assert [record.message for record in caplog.records] == [
        "FlashInfer is installed and does not work, Triton's kernels are used instead: no nvcc"
    ]


def test_one_that_was_asked_for_must_work(library: types.SimpleNamespace) -> None:
    library.BatchPrefillWithPagedKVCacheWrapper.failure = RuntimeError("no nvcc")
    with pytest.raises(RuntimeError, match="no nvcc"):
        run(Step(SEQS, HEADS, torch.bfloat16), planner(library, is_required=True), 2, {})


def test_heads_that_it_has_no_kernels_for(library: types.SimpleNamespace) -> None:
    with pytest.raises(DeviceError, match="--attention-backend flashinfer has no kernels for heads of 80"):
        AttentionPlanner(heads(80), torch.device("cpu"), torch.bfloat16, library, True)
    AttentionPlanner(heads(80), torch.device("cpu"), torch.bfloat16, library)


def test_when_it_is_used(library: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    find, bf16 = flashinfer_prompts.find, torch.bfloat16
    assert find("auto", bf16, False) is None
    with pytest.raises(DeviceError, match="--attention-backend flashinfer needs FlashInfer"):
        find("flashinfer", bf16, False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "flashinfer", library)
    assert find("auto", bf16, False) is find("flashinfer", bf16, False) is library
    binding = Binding(torch_device=torch.device("cpu"), activation_dtype=bf16, to_device=lambda tensor: tensor)
    assert bind("cuda", binding=binding).implementations["attention"] == "triton, prompts by flashinfer"
    assert find("triton", bf16, False) is find("auto", bf16, True) is find("auto", torch.float32, False) is None
    with pytest.raises(DeviceError, match="excludes --batch-invariant"):
        find("flashinfer", bf16, True)
    with pytest.raises(DeviceError, match="bfloat16 or float16"):
        find("flashinfer", torch.float32, False)
