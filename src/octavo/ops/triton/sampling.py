"""Sampling on the device: what `reference_sampling` means, without a look of the host at what is drawn.

The noise and the score of a draw have the reference's bits: kernels are compiled with `enable_fp_fusion=False`, so that
products and sums are rounded one by one. So the token is the reference's, unless the border of top_p or min_p falls
within the rounding of weights to float32.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

import triton
from octavo.ops.sampling_batch import SamplingBatch
from octavo.ops.triton import sampling_draws as draws
from octavo.ops.triton import sampling_filters as filters
from octavo.ops.triton import sampling_kernels as kernels
from octavo.ops.triton.variants import Variant

_SPLIT: Final = 4096
_BLOCK: Final = 1024
#: Tokens whose best is looked at to find a bound of what filters leave.
_GROUP: Final = 64
#: Candidates of a filtered row that are drawn from at once.
_CANDIDATES: Final = 4096
_FILTER_BLOCK: Final = 2048


def sample(logits: Tensor, batch: SamplingBatch, out_ids: Tensor, out_flags: Tensor) -> None:
    """`reference_sampling.sample`; all tensors, the batch's too, are on the device."""
    num_rows, vocab = batch.num_rows, logits.shape[1]
    if num_rows == 0:
        return
    assert logits.stride(1) == 1 and logits.dtype == torch.float32
    values = _adjusted(logits, batch)
    width: int = triton.next_power_of_2(max(vocab, 2 * _GROUP))
    split, most = min(_SPLIT, width), min(_CANDIDATES, width)
    num_splits = triton.cdiv(vocab, split)
    scratch = _Scratch(num_rows, num_splits, split // _GROUP, logits.device)
    row = (values, values.stride(0))
    parameters = (batch.temperature, batch.top_k, batch.top_p, batch.min_p)
    key = (batch.seeds, batch.positions)
    common: dict[str, Any] = {"FILTERS": batch.has_filters, "enable_fp_fusion": False}
    draws.parts_kernel[(num_rows, num_splits)](
        *scratch.parts, *row, *parameters, *key, vocab, SPLIT=split, NUM_SPLITS=num_splits, GROUP=_GROUP,
        num_warps=8, **common,
    )  # fmt: skip
    draws.row_kernel[(num_rows,)](
        out_ids, out_flags, *scratch.rows, *scratch.parts, *row, *parameters, *key, vocab, SPLIT=split,
        NUM_SPLITS=num_splits, PARTS=triton.next_power_of_2(num_splits), GROUP=_GROUP,
        GROUPS=triton.next_power_of_2(num_splits) * (split // _GROUP), num_warps=4, **common,
    )  # fmt: skip
    if batch.has_filters:
        values_of, ids_of = (
            torch.empty(num_rows, most, dtype=dtype, device=logits.device) for dtype in (torch.float32, torch.int32)
        )
        peaks, bounds, counts, totals = scratch.rows
        filters.gather_kernel[(num_rows, num_splits)](
            values_of, ids_of, counts, totals, bounds, peaks, *row, *parameters, vocab, SPLIT=split,
            MOST=most, num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip
        filters.pick_kernel[(num_rows,)](
            out_ids, values_of, ids_of, counts, totals, bounds, peaks, *row, *parameters, *key, vocab,
            MOST=most, BLOCK=_FILTER_BLOCK, num_warps=8, enable_fp_fusion=False,
        )  # fmt: skip


class _Scratch:
    """What the kernels of one draw tell each other; each is written before it is read."""

    def __init__(self, num_rows: int, num_splits: int, groups: int, device: torch.device) -> None:
        """`groups`: of a part."""
        num_parts = num_rows * num_splits
        floats = torch.empty(num_parts * (3 + groups) + num_rows, device=device)
        peaks, scores, masses, maxima, row_peaks = floats.split(
            [num_parts, num_parts, num_parts, num_parts * groups, num_rows]
        )
        ints = torch.empty(3 * num_parts + 2 * num_rows, dtype=torch.int32, device=device)
        peak_ids, score_ids, bad, bounds, counts = ints.split([num_parts] * 3 + [num_rows] * 2)
        totals = torch.empty(num_rows, dtype=torch.int64, device=device)
        self.parts = (peaks, peak_ids, scores, score_ids, bad, maxima, masses)
        self.rows = (row_peaks, bounds, counts, totals)


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
    parts = triton.next_power_of_2(splits)
    row = {"logits": "*fp32", "row_stride": "i32", "vocab": "i32"}
    key = {"seeds": "*i64", "positions": "*i64"}
    parameters = {"temperature": "*fp32", "top_k": "*i32", "top_p": "*fp32", "min_p": "*fp32"}
    of_parts = dict.fromkeys(("peaks", "scores", "maxima", "masses"), "*fp32")
    of_parts |= dict.fromkeys(("peak_ids", "score_ids", "bad"), "*i32")
    of_rows = {"row_peaks": "*fp32", "bounds": "*i32", "counts": "*i32", "totals": "*i64"}
    outs = {"out_ids": "*i32", "out_flags": "*i32"}
    candidates = {"values": "*fp32", "ids_of": "*i32"}
    shape = {"SPLIT": _SPLIT, "NUM_SPLITS": splits, "GROUP": _GROUP}
    found = []

    def add(name: str, kernel: Any, signature: dict[str, str], constexprs: dict[str, Any], num_warps: int) -> None:
        names = frozenset({*candidates, *outs, *key, "logits", "row_stride", "vocab"} & signature.keys())
        found.append(Variant(name=name, kernel=kernel, signature=signature, constexprs=constexprs,
                             num_warps=num_warps, enable_fp_fusion=False, divisible=names))  # fmt: skip

    for has_filters in (False, True):
        kind = ", filters" if has_filters else ""
        constexprs = {**shape, "FILTERS": has_filters}
        add(f"parts{kind}", draws.parts_kernel, {**of_parts, **row, **parameters, **key}, constexprs, 8)
        constexprs = {**constexprs, "PARTS": parts, "GROUPS": parts * (_SPLIT // _GROUP)}
        signature = {**outs, **of_rows, **of_parts, **row, **parameters, **key}
        add(f"row{kind}", draws.row_kernel, signature, constexprs, 4)
    rest = {**candidates, **of_rows, **row, **parameters}
    add("gather", filters.gather_kernel, rest, {"SPLIT": _SPLIT, "MOST": _CANDIDATES}, 8)
    signature = {"out_ids": "*i32", **rest, **key}
    add("pick", filters.pick_kernel, signature, {"MOST": _CANDIDATES, "BLOCK": _FILTER_BLOCK}, 8)
    return found
