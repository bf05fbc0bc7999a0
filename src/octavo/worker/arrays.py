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


def pixel_values(patches: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """float32 [patches, values]: what the bytes of `patches` [..., values] mean, by channel; `levels` [3, 256]."""
    width = patches.shape[-1]
    values: np.ndarray = np.take(levels, patches + np.repeat(np.arange(3, dtype=np.int32) * 256, width // 3))
    return values.reshape(-1, width)
