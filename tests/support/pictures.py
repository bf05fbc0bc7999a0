"""Pictures of random pixels, and what the patches that processors make of them show."""

from __future__ import annotations

from typing import Any

import numpy as np

from octavo.base.media import MediaTensor, PreparedMedia
from octavo.text.media.table import media_processor

IDS = {"<image>": 5}


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def array(tensor: MediaTensor) -> np.ndarray:
    return np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape)


def pictures(media: PreparedMedia, patch: int, side: int, merge: int = 1) -> np.ndarray:
    """float32 [S, 3, side, side]: what the patches of an item show."""
    values, levels = array(media.tensors["patches"]), array(media.tensors["levels"])
    count = side // patch
    channels = values.reshape(len(values), -1, 3, patch, patch)
    seen = np.stack([levels[c][channels[:, :, c]] for c in range(3)], 2)
    squares = seen.reshape(len(seen), count // merge, count // merge, merge, merge, 3, patch, patch)
    return squares.transpose(0, 5, 1, 3, 6, 2, 4, 7).reshape(len(seen), 3, side, side)


def square(**settings: Any) -> Any:
    config = {
        "architectures": ["LlavaForConditionalGeneration"], "image_token_index": 5,
        "vision_config": {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14},
    }  # fmt: skip
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    return media_processor(config, sizes | settings, IDS.get)
