"""Log probabilities for the host: of the tokens that were sampled, and of the tokens of a prompt.

Which numbers they are is a setting of the server: `raw_*` are the model's own, `processed_*` those that the token
was drawn from (bias, masks, penalties, temperature, min_p, top_k, top_p); `*_logits` are not normalised. Nothing is
drawn within a prompt, so its tokens have the model's own in every mode.

Both functions launch what computes the scores and return what waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from octavo.base.config import LogprobsMode
from octavo.device.base import Device, Download
from octavo.models.transformer import Transformer
from octavo.ops.reference_sampling import processed_logits
from octavo.ops.sampling_batch import SamplingBatch
from octavo.ops.table import Ops
from octavo.wire.messages import TokenLogprobs
from octavo.worker.input_batch import HostBatch
from octavo.worker.request_states import RequestStates

#: Rows of a prompt whose logits are in memory at once. A whole chunk's would be the largest tensor of all.
PROMPT_ROWS = 32


class Wanted(NamedTuple):
    """Alternatives of a row: the `num_ids` most likely, or these `ids`, which are so many."""

    num_ids: int
    ids: tuple[int, ...] | None = None


_Columns = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def sampled_scores(
    device: Device,
    ops: Ops,
    mode: LogprobsMode,
    logits: torch.Tensor,
    batch: SamplingBatch,
    rows: list[int],
    ids: torch.Tensor,
    wanted: list[Wanted],
) -> Callable[[], list[TokenLogprobs]]:
    """One entry a row of `rows`: of the token ids[row] int32 that was drawn from logits[row], float32 [S, V].

    The i-th gets the alternatives of wanted[i]: rows that ask for fewer than the longest list get theirs cut from it.
    `batch` is the host's. A row without a token, whose id is below 0, gets an entry that means nothing.
    """
    (index,) = device.upload(np.array(rows, np.int64))
    values, chosen = logits[index], ids[index].clamp(min=0)
    named = {i: list(row.ids) for i, row in enumerate(wanted) if row.ids is not None}
    counts = [0 if i in named else row.num_ids for i, row in enumerate(wanted)]
    most = max(1, *counts) if named else max(counts)  # named ones are told from the best
    if mode == "raw_logprobs":
        columns = ops.logprobs(values, chosen, most)
    elif mode == "raw_logits":
        columns = _ranked(values, chosen, most)
    else:
        values, columns = _processed(device, mode, values, chosen, batch, rows, most)
    of_named = [values[i][torch.tensor(token_ids, device=values.device)] for i, token_ids in named.items()]
    of_best = values.gather(1, columns[2][:, :1].long()) if named else values[:0]
    download = device.download(chosen, of_best, *columns, *of_named) if values.device == ids.device else None
    host = [] if download else [tensor.numpy() for tensor in (chosen.cpu(), of_best, *columns, *of_named)]

    def wait() -> list[TokenLogprobs]:
        ids_of_rows, best, *arrays = download() if download else host
        entries = _entries(arrays[:4], counts)
        for (i, token_ids), numbers in zip(named.items(), arrays[4:], strict=True):
            if mode == "raw_logprobs":
                numbers = numbers.astype(np.float64) - float(best[i, 0]) + float(arrays[3][i, 0])
            scores = dict(zip(token_ids, numbers.astype(np.float32).tolist(), strict=True))
            scores |= {token_id: entries[i].logprob for token_id in token_ids if token_id == ids_of_rows[i]}
            entries[i] = TokenLogprobs(entries[i].logprob, entries[i].rank, token_ids, list(scores.values()))
        return entries

    return wait


def _processed(
    device: Device,
    mode: LogprobsMode,
    values: torch.Tensor,
    ids: torch.Tensor,
    batch: SamplingBatch,
    rows: list[int],
    num_alternatives: int,
) -> tuple[torch.Tensor, _Columns]:
    """On the host, from its own batch: the only place that has all of a row's settings in one form."""
    host_values, host_ids = (torch.from_numpy(array) for array in device.download(values, ids)())
    # Row by row: where torch cuts a tensor into vectors must not depend on the number of rows.
    drawn_from = torch.stack(
        [processed_logits(value, batch, row) for value, row in zip(host_values, rows, strict=True)]
    )
    if mode == "processed_logprobs":
        drawn_from = torch.stack([row.double().log_softmax(-1).float() for row in drawn_from])
    return drawn_from, _ranked(drawn_from, host_ids, num_alternatives)


def _entries(columns: Sequence[np.ndarray], counts: list[int]) -> list[TokenLogprobs]:
    own, ranks, top_ids, top_values = (column.tolist() for column in columns)
    return [
        TokenLogprobs(logprob=logprob, rank=rank, top_ids=row_ids[:k], top_logprobs=row_values[:k])
        for k, logprob, rank, row_ids, row_values in zip(counts, own, ranks, top_ids, top_values, strict=True)
    ]


def _ranked(values: torch.Tensor, ids: torch.Tensor, k: int) -> _Columns:
    """`Ops.logprobs` with the values [S, V] as they are. Ties: the lower id first."""
    chosen = values.gather(1, ids.long()[:, None])
    token = torch.arange(values.shape[1], device=values.device)[None, :]
    ahead = (values > chosen) | ((values == chosen) & (token < ids[:, None]))
    order = torch.sort(values, dim=-1, descending=True, stable=True).indices[:, :k]
    return chosen[:, 0], ahead.sum(-1) + 1, order, values.gather(1, order)


class PromptScorer:
    """Scores the prompt tokens of those slots that ask for it, chunk by chunk as they are computed."""

    def __init__(self, model: Transformer, ops: Ops, device: Device, mode: LogprobsMode) -> None:
        self._model = model
        self._device = device
        self._rank: Callable[[torch.Tensor, torch.Tensor, int], _Columns] = (
            _ranked if mode.endswith("_logits") else ops.logprobs
        )

    def score(
        self, states: RequestStates, batch: HostBatch, hidden: torch.Tensor
    ) -> Callable[[], dict[int, list[TokenLogprobs]]]:
        """hidden [T, H] of a step's tokens. The row of token i scores token i + 1, within the prompt."""
        launched: list[tuple[int, int, Download]] = []  # slot, alternatives, columns of some rows
        starts = batch.query_start_loc.tolist()
        for i, (slot, count) in enumerate(zip(batch.slots.tolist(), batch.num_scheduled.tolist(), strict=True)):
            num_alternatives = states.prompt_logprobs.get(slot)
            if num_alternatives is not None:
                first = int(batch.seq_lens[i]) - count + 1
                targets = states.token_ids[slot, first : min(first + count, int(states.num_prompt_tokens[slot]))]
                rows = hidden[starts[i] : starts[i] + len(targets)]
                columns = self._launch(rows, targets, num_alternatives, int(states.adapter_slots[slot]))
                launched += [(slot, num_alternatives, download) for download in columns]

        def wait() -> dict[int, list[TokenLogprobs]]:
            scores: dict[int, list[TokenLogprobs]] = {}
            for slot, num_alternatives, download in launched:
                columns = download()
                scores.setdefault(slot, []).extend(_entries(columns, [num_alternatives] * len(columns[0])))
            return scores

        return wait

    def _launch(
        self, hidden: torch.Tensor, targets: np.ndarray, num_alternatives: int, adapter_slot: int
    ) -> list[Download]:
        launched = []
        for start in range(0, len(targets), PROMPT_ROWS):
            (ids,) = self._device.upload(targets[start : start + PROMPT_ROWS].copy())
            slots = torch.full((len(ids),), adapter_slot, dtype=torch.int32, device=ids.device)
            logits = self._model.logits(hidden[start : start + len(ids)], None if adapter_slot < 0 else slots)
            launched.append(self._device.download(*self._rank(logits, ids, num_alternatives)))
        return launched
