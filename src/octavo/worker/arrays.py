"""Arrays that requests bring."""

from __future__ import annotations

import numpy as np
import torch

from octavo.base.media import MediaTensor


def array(tensor: MediaTensor) -> np.ndarray:
    """A view, not to be written to."""
    return np.frombuffer(tensor.data, np.dtype(tensor.dtype).newbyteorder("<")).reshape(tensor.shape)


def three_by_three(frames: torch.Tensor, step: int) -> torch.Tensor:
    """[T, channels] -> [ceil(T / step), 3 channels]: of every `step`-th frame each channel before it, in it and behind
    it; zeros where there is no frame."""
    return torch.nn.functional.pad(frames, (0, 0, 1, 1)).unfold(0, 3, step).flatten(1)
