"""Whisper's weights under OpenAI's own names: in its pickles (`*.pt`), and in the containers of whisper.cpp
(`ggml-*.bin`), beside the configuration and the tokenizer that transformers has for the same model.

    ggml   magic, 11 sizes, mel filters, vocabulary, then tensors to the end: dimensions, name, type, data
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from octavo.base.errors import CheckpointError

_MAGIC: Final = b"lmgg"
_NUM_SIZES: Final = 11
_DTYPES: Final[dict[int, np.dtype[Any]]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}
_MAX_NAME: Final = 256
_MAX_DIMS: Final = 4
#: Parts of OpenAI's names, and what transformers calls them, one after the other.
_NAMES: Final = (
    (r"^(en|de)coder\.", r"model.\g<0>"), (r"\.blocks\.", ".layers."), (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."), (r"\.attn\.", ".self_attn."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."), (r"\.query\.", ".q_proj."), (r"\.key\.", ".k_proj."),
    (r"\.value\.", ".v_proj."), (r"\.out\.", ".out_proj."), (r"\.mlp\.0\.", ".fc1."), (r"\.mlp\.2\.", ".fc2."),
    (r"\.mlp_ln\.", ".final_layer_norm."), (r"coder\.ln(_post)?\.", "coder.layer_norm."),
    (r"\.positional_embedding$", ".embed_positions.weight"), (r"\.token_embedding\.", ".embed_tokens."),
)  # fmt: skip


def name_of(stored: str) -> str:
    """transformers' name of a tensor that has OpenAI's; any other is its own."""
    if not stored.startswith(("encoder.", "decoder.")):
        return stored
    for pattern, replacement in _NAMES:
        stored = re.sub(pattern, replacement, stored)
    return stored


def is_ggml(path: Path) -> bool:
    """False too for what cannot be read: who reads it as a pickle says why."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


class GgmlFile:
    """As `SafetensorsFile`. Raises `CheckpointError`, naming file and tensor, for a file that is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = np.memmap(path, np.uint8, "r")
        self._places: dict[str, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        at = self._skip_vocabulary(len(_MAGIC) + 4 * _NUM_SIZES)
        while at < len(self._data):
            at = self._read_tensor(at)

    def names(self) -> list[str]:
        return list(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name][1]

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32 if self._places[name][2].itemsize == 4 else torch.float16

    def get(self, name: str) -> Tensor:
        at, shape, dtype = self._places[name]
        size = math.prod(shape) * dtype.itemsize
        # A copy: tensors stand at any byte.
        return torch.from_numpy(self._data[at : at + size].copy().view(dtype).reshape(shape))

    def _ints(self, at: int, count: int) -> tuple[int, ...]:
        if at + 4 * count > len(self._data):
            raise CheckpointError(f"{self.path}: damaged: it ends within its tensors; truncated?")
        return struct.unpack(f"<{count}i", self._data[at : at + 4 * count].tobytes())

    def _skip_vocabulary(self, at: int) -> int:
        channels, bins = self._ints(at, 2)
        at += 8 + 4 * max(channels, 0) * max(bins, 0)
        (count,) = self._ints(at, 1)
        at += 4
        for _ in range(count):
            (length,) = self._ints(at, 1)
            at += 4 + max(length, 0)
        return at

    def _read_tensor(self, at: int) -> int:
        """Returns where the next begins."""
        num_dims, name_length, kind = self._ints(at, 3)
        if not (0 < num_dims <= _MAX_DIMS and 0 < name_length <= _MAX_NAME):
            raise CheckpointError(f"{self.path}: damaged: no tensor stands where one should")
        shape = self._ints(at + 12, num_dims)[::-1]
        at += 12 + 4 * num_dims
        name = self._data[at : at + name_length].tobytes().decode("ascii", "replace")
        at += name_length
        if kind not in _DTYPES:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is quantized (type {kind}); files of f16 and f32 are read"
            )
        size = math.prod(shape) * _DTYPES[kind].itemsize
        if min(shape) < 1 or at + size > len(self._data):
            raise CheckpointError(f"{self.path}: damaged: tensor {name!r} passes the end; truncated?")
        if name.endswith(".bias"):  # those of convolutions stand as [channels, 1]
            shape = (math.prod(shape),)
        self._places[name] = at, shape, _DTYPES[kind]
        return at + size
