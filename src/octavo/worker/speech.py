"""What a decoder of speech may write next: `SpeechRules`, as token ids and as a change of logits."""

from __future__ import annotations

import numpy as np
import torch

from octavo.base.params import SpeechRules


def forbidden_ids(rules: SpeechRules, output: np.ndarray, vocab_size: int) -> np.ndarray:
    """int32, sorted, unique: what may not follow the tokens `output` that have been generated."""
    if len(output) < len(rules.first):
        allowed = np.array(rules.first[len(output)], np.int32)
        return np.setdiff1d(np.arange(vocab_size, dtype=np.int32), allowed)
    text = output[len(rules.first) :]
    forbidden = np.zeros(vocab_size, bool)
    forbidden[list(rules.forbidden_ids)] = True
    forbidden[rules.end_id + 1 : rules.first_time] = True
    if not len(text):
        forbidden[list(rules.forbidden_start_ids)] = True
        forbidden[: rules.first_time] = True
        forbidden[rules.first_time + rules.max_initial_time + 1 :] = True
        return np.flatnonzero(forbidden).astype(np.int32)
    is_time = text >= rules.first_time
    behind_time = bool(is_time[-1])
    behind_pair = behind_time and (len(text) < 2 or bool(is_time[-2]))
    if behind_pair:
        forbidden[rules.first_time :] = True
    elif behind_time:
        forbidden[: rules.end_id] = True
    if is_time.any():
        # A piece has some length: its end is behind its beginning. The next may begin where the last ended.
        last = int(text[is_time][-1])
        forbidden[rules.first_time : last if behind_time and not behind_pair else last + 1] = True
    return np.flatnonzero(forbidden).astype(np.int32)


def apply_rules(logits: torch.Tensor, rules: SpeechRules, forbidden: torch.Tensor, num_output: int) -> None:
    """Edit a row of logits float32 [V]: forbidden ids are out, and text where times together are more likely than any
    one token of it. One row at a time, so that sums do not depend on how many there are."""
    logits[forbidden] = -torch.inf
    if num_output < len(rules.first):
        return
    text, times = logits[: rules.first_time], logits[rules.first_time :]
    is_time = times.double().logsumexp(0) > text.max().double()
    text.masked_fill_(is_time, -torch.inf)
