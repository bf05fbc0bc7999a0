"""What a decoder of speech may write next: `SpeechRules`, as a change of logits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from octavo.base.params import SpeechRules


def apply_rules(logits: Tensor, rules: SpeechRules, output: np.ndarray, listed: Tensor) -> None:
    """Edit a row of logits float32 [V]: what may not follow the tokens `output` that have been generated is out, and
    text where times together are more likely than any one token of it. `listed`: `listed_ids` on the row's device.

    One row at a time, so that sums do not depend on how many there are; and by ranges, since most of the vocabulary is
    forbidden again and again.
    """
    if len(output) < len(rules.first):
        allowed = list(rules.first[len(output)])
        kept = logits[allowed]
        logits.fill_(-torch.inf)
        logits[allowed] = kept
        return
    text = output[len(rules.first) :]
    logits[listed] = -torch.inf
    logits[rules.end_id + 1 : rules.first_time] = -torch.inf
    if not len(text):
        logits[list(rules.forbidden_start_ids)] = -torch.inf
        logits[: rules.first_time] = -torch.inf
        logits[rules.first_time + rules.max_initial_time + 1 :] = -torch.inf
    else:
        _forbid_behind(logits, rules, text)
    before, times = logits[: rules.first_time], logits[rules.first_time :]
    is_time = times.double().logsumexp(0) > before.max().double()
    before.masked_fill_(is_time, -torch.inf)


def listed_ids(rules: SpeechRules) -> np.ndarray:
    """int64: what is never written behind the first tokens."""
    return np.array(rules.forbidden_ids, np.int64)


def _forbid_behind(logits: Tensor, rules: SpeechRules, text: np.ndarray) -> None:
    """What may not stand behind some text and times."""
    is_time = text >= rules.first_time
    behind_time = bool(is_time[-1])
    behind_pair = behind_time and (len(text) < 2 or bool(is_time[-2]))
    if behind_pair:
        logits[rules.first_time :] = -torch.inf
    elif behind_time:
        logits[: rules.end_id] = -torch.inf
    if is_time.any():
        # A piece has some length: its end is behind its beginning. The next may begin where the last ended.
        last = int(text[is_time][-1])
        logits[rules.first_time : last if behind_time and not behind_pair else last + 1] = -torch.inf
