"""Log probabilities for the host: of the tokens that were sampled, and of the tokens of a prompt.

Which numbers they are is a setting of the server: `raw_*` are the model's own, `processed_*` those that the token
was drawn from (bias, masks, penalties, temperature, min_p, top_k, top_p); `*_logits` are not normalised. Nothing is
drawn within a prompt, so its tokens have the model's own in every mode.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from octavo.config import LogprobsMode
from octavo.messages import TokenLogprobs
from octavo.models.transformer import Transformer
from octavo.ops.reference_sampling import processed_logits
from octavo.ops.sampling_batch import SamplingBatch
from octavo.ops.table import Ops
from octavo.worker.request_states import RequestStates

#: Rows of a prompt whose logits are in memory at once. A whole chunk's would be the largest tensor of all.
PROMPT_ROWS = 32

_Columns = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def sampled_scores(
    ops: Ops,
    mode: LogprobsMode,
    logits: torch.Tensor,
    batch: SamplingBatch,
    rows: list[int],
    ids: torch.Tensor,
    counts: list[int],
) -> list[TokenLogprobs]:
    """One entry a row of `rows`: of the token ids[i] int32, which rows[i] of logits float32 [S, V] led to.

    Row i gets counts[i] alternatives: rows that ask for fewer than the longest list get theirs cut from it.
    """
    if mode == "raw_logprobs":
        return _entries(ops.logprobs(logits[rows], ids, max(counts)), counts)
    if mode == "raw_logits":
        values = logits[rows]
    else:
        # Row by row: where torch cuts a tensor into vectors must not depend on the number of rows.
        values = torch.stack([processed_logits(logits[row], batch, row) for row in rows])
        if mode == "processed_logprobs":
            values = torch.stack([row.double().log_softmax(-1).float() for row in values])
    return _entries(_ranked(values, ids, max(counts)), counts)


def _entries(columns: _Columns, counts: list[int]) -> list[TokenLogprobs]:
    own, ranks, top_ids, top_values = (column.tolist() for column in columns)
    return [
        TokenLogprobs(logprob=logprob, rank=rank, top_ids=row_ids[:k], top_logprobs=row_values[:k])
        for k, logprob, rank, row_ids, row_values in zip(counts, own, ranks, top_ids, top_values, strict=True)
    ]


def _ranked(values: torch.Tensor, ids: torch.Tensor, k: int) -> _Columns:
    """`Ops.logprobs` with the values [S, V] as they are. Ties: the lower id first."""
    chosen = values.gather(1, ids.long()[:, None])
    token = torch.arange(values.shape[1])[None, :]
    ahead = (values > chosen) | ((values == chosen) & (token < ids[:, None]))
    order = torch.sort(values, dim=-1, descending=True, stable=True).indices[:, :k]
    return chosen[:, 0], ahead.sum(-1) + 1, order, values.gather(1, order)


class PromptScorer:
    """Scores the prompt tokens of those slots that ask for it, chunk by chunk as they are computed."""

    def __init__(self, model: Transformer, ops: Ops, mode: LogprobsMode) -> None:
        self._model = model
        self._rank: Callable[[torch.Tensor, torch.Tensor, int], _Columns] = (
            _ranked if mode.endswith("_logits") else ops.logprobs
        )

    def score(
        self, states: RequestStates, num_scheduled: dict[int, int], hidden: torch.Tensor
    ) -> dict[int, list[TokenLogprobs]]:
        """hidden float32 [T, H] of a step's tokens. The row of token i scores token i + 1, within the prompt."""
        scores: dict[int, list[TokenLogprobs]] = {}
        row = 0
        for slot, count in num_scheduled.items():
            num_alternatives = states.prompt_logprobs.get(slot)
            if num_alternatives is not None:
                first = int(states.num_computed[slot]) + 1
                targets = states.token_ids[slot, first : min(first + count, int(states.num_prompt_tokens[slot]))]
                if len(targets):
                    scores[slot] = self._score_rows(hidden[row : row + len(targets)], targets, num_alternatives)
            row += count
        return scores

    def _score_rows(self, hidden: torch.Tensor, targets: np.ndarray, num_alternatives: int) -> list[TokenLogprobs]:
        result: list[TokenLogprobs] = []
        for start in range(0, len(targets), PROMPT_ROWS):
            ids = torch.from_numpy(targets[start : start + PROMPT_ROWS].copy())
            logits = self._model.logits(hidden[start : start + len(ids)])
            result += _entries(self._rank(logits, ids, num_alternatives), [num_alternatives] * len(ids))
        return result
