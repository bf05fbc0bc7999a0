"""Sampling on the device: what `reference_sampling` means, without a look of the host at what is drawn.

The noise of a draw has the reference's bits: its kernels are compiled with `enable_fp_fusion=False`, so that products
and sums are rounded one by one. The token is the reference's, but where two scores are equal within their rounding (the
parts of a row are scored against their own best logits) or a filter's border falls on a sum's.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

import triton
from octavo.ops.sampling_batch import SamplingBatch
from octavo.ops.triton import sampling_kernels as kernels
from octavo.ops.triton.variants import Variant

_SPLIT: Final = 4096
_BLOCK: Final = 1024
_FILTER_BLOCK: Final = 2048


def sample(logits: Tensor, batch: SamplingBatch, out_ids: Tensor, out_flags: Tensor) -> None:
    """`reference_sampling.sample`; all tensors, the batch's too, are on the device."""
    num_rows, vocab = batch.num_rows, logits.shape[1]
    if num_rows == 0:
        return
    assert logits.stride(1) == 1 and logits.dtype == torch.float32
    values = _adjusted(logits, batch)
    num_splits = triton.cdiv(vocab, _SPLIT)
    num_parts = num_rows * num_splits
    floats = torch.empty(2 * num_parts + num_rows, device=logits.device)
    peaks, scores, row_peaks = floats.split([num_parts, num_parts, num_rows])
    peak_ids, score_ids, bad = torch.empty(3, num_parts, dtype=torch.int32, device=logits.device)
    parts = (peaks, peak_ids, scores, score_ids, bad)
    row = (values, values.stride(0))
    kernels.parts_kernel[(num_rows, num_splits)](
        *parts, *row, batch.temperature, batch.seeds, batch.positions, vocab, SPLIT=_SPLIT, NUM_SPLITS=num_splits,
        num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    filters = (batch.temperature, batch.top_k, batch.top_p, batch.min_p)
    kernels.row_kernel[(num_rows,)](
        out_ids, out_flags, row_peaks, *parts, *filters, NUM_SPLITS=num_splits,
        PARTS=triton.next_power_of_2(num_splits), FILTERS=batch.has_filters, num_warps=1,
    )  # fmt: skip
    if batch.has_filters:
        kernels.filter_kernel[(num_rows,)](
            out_ids, out_flags, row_peaks, *row, *filters, batch.seeds, batch.positions, vocab, BLOCK=_FILTER_BLOCK,
            num_warps=16, enable_fp_fusion=False,
        )  # fmt: skip


def _adjusted(logits: Tensor, batch: SamplingBatch) -> Tensor:
    """The rows after bias, masks and penalties: a copy, if there are any."""
    counts, bias, masks, penalties = batch.counts, batch.bias, batch.masks, batch.penalties
    if not (bias.active or masks.active or penalties.active or counts is not None):
        return logits
    values = logits.clone()
    num_rows, stride = batch.num_rows, values.stride(0)
    if bias.active:
        kernels.bias_kernel[(num_rows,)](values, stride, bias.offsets, bias.ids, bias.values, BLOCK=_BLOCK)
    if masks.active:
        kernels.mask_kernel[(num_rows,)](values, stride, masks.offsets, masks.ids, BLOCK=_BLOCK)
    amounts = (batch.repetition, batch.frequency, batch.presence)
    if penalties.active:
        kernels.penalty_kernel[(num_rows,)](
            values, stride, penalties.offsets, penalties.ids, penalties.counts, penalties.in_prompt, *amounts,
            BLOCK=_BLOCK,
        )  # fmt: skip
    if counts is not None:
        grid = (num_rows, triton.cdiv(logits.shape[1], _BLOCK))
        kernels.counted_penalty_kernel[grid](
            values, stride, batch.count_rows, counts.counts, counts.in_prompt, *amounts, logits.shape[1], BLOCK=_BLOCK
        )  # fmt: skip
    return values


class DevicePenalties:
    """How often each token was generated, and whether it stood in the prompt, for some rows: [P, V] each.

    Rows are made as they are needed; a row means nothing before `reset_row`.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self.counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self.in_prompt = torch.zeros(0, vocab_size, dtype=torch.uint8, device=device)

    def reset_row(self, row: int, prompt_ids: Tensor, output_ids: Tensor) -> None:
        """The row of a request that enters: int32 ids of its prompt and of what it has generated so far."""
        if row >= len(self.counts):
            missing = max(8, 2 * row) - len(self.counts)
            self.counts = torch.cat([self.counts, self.counts.new_zeros(missing, self._vocab_size)])
            self.in_prompt = torch.cat([self.in_prompt, self.in_prompt.new_zeros(missing, self._vocab_size)])
        self.counts[row].zero_()
        self.in_prompt[row].zero_()
        self.in_prompt[row].index_fill_(0, prompt_ids.long(), 1)
        self.add(torch.full_like(output_ids, row), output_ids)

    def add(self, rows: Tensor, ids: Tensor) -> None:
        """Count ids[i] in rows[i], int32 both; below 0 nothing is counted."""
        if len(ids):
            kernels.count_kernel[(triton.cdiv(len(ids), _BLOCK),)](
                self.counts, rows, ids, len(ids), self._vocab_size, BLOCK=_BLOCK
            )


def forbid(logits: Tensor, rows: Tensor, masks: Tensor) -> None:
    """`reference_sampling.forbid`."""
    vocab, num_words = logits.shape[1], masks.shape[1]
    grid = (len(masks), triton.cdiv(vocab, _BLOCK))
    kernels.forbid_kernel[grid](logits, logits.stride(0), rows, masks, num_words, vocab, BLOCK=_BLOCK)


def logprobs(logits: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`reference_sampling.logprobs`, with sums in float32."""
    token = torch.arange(logits.shape[1], device=logits.device)
    chosen = logits.gather(1, ids.long()[:, None])
    ahead = (logits > chosen) | ((logits == chosen) & (token[None, :] < ids[:, None]))
    values = logits.log_softmax(-1)
    # One integer a token in the order of (value, falling id), no two alike: which of equals come first is then settled.
    bits = (logits + 0.0).view(torch.int32)
    order = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() * 2**32 + (2**32 - 1 - token)[None, :]
    top = order.topk(k, dim=-1).indices
    return (
        values.gather(1, ids.long()[:, None])[:, 0],
        (ahead.sum(-1) + 1).to(torch.int32),
        top.to(torch.int32),
        values.gather(1, top),
    )


def variants() -> list[Variant]:
    vocab = 151_936
    splits = triton.cdiv(vocab, _SPLIT)
    row = {"logits": "*fp32", "row_stride": "i32", "vocab": "i32"}
    key = {"seeds": "*i64", "positions": "*i64"}
    filters = {"temperature": "*fp32", "top_k": "*i32", "top_p": "*fp32", "min_p": "*fp32"}
    parts = {"peaks": "*fp32", "peak_ids": "*i32", "scores": "*fp32", "score_ids": "*i32", "bad": "*i32"}
    outs = {"out_ids": "*i32", "out_flags": "*i32", "row_peaks": "*fp32"}
    found = []

    def add(name: str, kernel: Any, signature: dict[str, str], constexprs: dict[str, Any], **options: Any) -> None:
        found.append(Variant(name=name, kernel=kernel, signature=signature, constexprs=constexprs,
                             divisible=frozenset(signature), **options))  # fmt: skip

    exact = {"enable_fp_fusion": False}
    temperature = {"temperature": "*fp32"}
    shape = {"SPLIT": _SPLIT, "NUM_SPLITS": splits}
    add("parts", kernels.parts_kernel, {**parts, **row, **temperature, **key}, shape, num_warps=8, **exact)
    for has_filters in (False, True):
        constexprs = {"NUM_SPLITS": splits, "PARTS": triton.next_power_of_2(splits), "FILTERS": has_filters}
        name = f"row{', filters' if has_filters else ''}"
        add(name, kernels.row_kernel, {**outs, **parts, **filters}, constexprs, num_warps=1)
    block = {"BLOCK": _FILTER_BLOCK}
    add("filter", kernels.filter_kernel, {**outs, **row, **filters, **key}, block, num_warps=16, **exact)
    return found
