"""Log probabilities for the host: of the tokens that were sampled, and of the tokens of a prompt."""

from __future__ import annotations

import numpy as np
import torch

from octavo.messages import TokenLogprobs
from octavo.models.transformer import Transformer
from octavo.ops.table import Ops
from octavo.worker.request_states import RequestStates

#: Rows of a prompt whose logits are in memory at once. A whole chunk's would be the largest tensor of all.
PROMPT_ROWS = 32


def entries(ops: Ops, logits: torch.Tensor, ids: torch.Tensor, counts: list[int]) -> list[TokenLogprobs]:
    """One entry a row of logits float32 [S, V], for the tokens ids int32 [S].

    Row i gets counts[i] alternatives: rows that ask for fewer than the longest list get theirs cut from it.
    """
    own, ranks, top_ids, top_values = ops.logprobs(logits, ids, max(counts))
    columns = (own.tolist(), ranks.tolist(), top_ids.tolist(), top_values.tolist())
    return [
        TokenLogprobs(logprob=logprob, rank=rank, top_ids=row_ids[:k], top_logprobs=row_values[:k])
        for k, logprob, rank, row_ids, row_values in zip(counts, *columns, strict=True)
    ]


class PromptScorer:
    """Scores the prompt tokens of those slots that ask for it, chunk by chunk as they are computed."""

    def __init__(self, model: Transformer, ops: Ops) -> None:
        self._model = model
        self._ops = ops

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
            result += entries(self._ops, logits, ids, [num_alternatives] * len(ids))
        return result
