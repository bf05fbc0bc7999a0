"""Directories of weights in other files than safetensors under Hugging Face's names.

pt             *.bin, *.pt, *.pth: pickles, of which no code is run; with an index or without
npcache        np/: an array of numpy each, as vLLM leaves them beside pickles
sharded_state  model-rank-0-part-*.safetensors, under vLLM's names: fused matrices, padded vocabularies
tensorizer     model.tensors, or the one file of this kind, under Hugging Face's names or vLLM's
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from octavo.base.config.engine import SHARD_PATTERN, TensorizerSettings
from octavo.base.errors import CheckpointError
from octavo.models.checkpoint import StoredCheckpoint, TensorFile, read_index, read_json
from octavo.models.safetensors_file import SafetensorsFile
from octavo.models.tensorizer_file import TensorizerFile
from octavo.models.torch_file import TorchFile
from octavo.models.whisper_files import GgmlFile, is_ggml, name_of

_PT_INDEX: Final = "pytorch_model.bin.index.json"
_PT_SINGLE: Final = "pytorch_model.bin"
#: What lies beside weights of training runs and is none.
_NO_WEIGHTS: Final = re.compile(r"training_args\.bin|optimizer\..*|scheduler\.pt|rng_state.*|scaler\.pt|.*_states?\.pt")
#: Families whose own checkpoints have the matrices in one.
_FUSED_BY_THEMSELVES: Final = ("phi3",)
_NPCACHE: Final = "np"


def torch_checkpoint(directory: Path) -> StoredCheckpoint:
    """The pickles of a directory. Raises `CheckpointError`."""
    config = read_json(directory / "config.json")
    if config.get("model_type") != "whisper":
        return StoredCheckpoint(directory, config, [TorchFile(path) for path in torch_files(directory)])
    files = [GgmlFile(path) if is_ggml(path) else TorchFile(path) for path in torch_files(directory)]
    return StoredCheckpoint(directory, config, files, name_of)


def torch_files(directory: Path) -> list[Path]:
    """Those that hold weights; by the index, if there is one."""
    index = directory / _PT_INDEX
    if (directory / _PT_SINGLE).is_file():
        return [directory / _PT_SINGLE]
    if index.is_file():
        return [directory / name for name in sorted(set(read_index(index).values()))]
    found = [path for kind in ("*.bin", "*.pt", "*.pth") for path in sorted(directory.glob(kind))]
    found = [path for path in found if not _NO_WEIGHTS.fullmatch(path.name)]
    if not found:
        raise CheckpointError(f"{directory}: there are no weights of torch (*.bin, *.pt, *.pth)")
    return found


# ---------------------------------------------------------------- npcache
class _NumpyFolder:
    """The arrays that vLLM keeps beside a model's pickles: a list of the names, and a file each."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        listing = directory / "weight_names.json"
        try:
            names = json.loads(listing.read_bytes())
        except (OSError, ValueError, RecursionError):
            raise CheckpointError(f"{listing}: cannot be read, or is not JSON") from None
        if not isinstance(names, list) or not all(isinstance(n, str) and Path(n).name == n for n in names):
            raise CheckpointError(f"{listing}: not a list of the names of files beside it")
        self._arrays = {name: self._open(name) for name in names}

    def _open(self, name: str) -> np.ndarray:
        try:
            # Copied on write: torch wants memory that counts as writable.
            return np.load(self.path / name, mmap_mode="c", allow_pickle=False)  # type: ignore[no-any-return]
        except (OSError, ValueError, EOFError, SyntaxError) as error:
            raise CheckpointError(f"{self.path / name}: damaged: not an array of numpy: {str(error)[:200]}") from None

    def names(self) -> list[str]:
        return list(self._arrays)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays[name].shape

    def dtype(self, name: str) -> torch.dtype:
        return self.get(name).dtype

    def get(self, name: str) -> Tensor:
        try:
            return torch.from_numpy(self._arrays[name])
        except TypeError:
            kind = self._arrays[name].dtype
            raise CheckpointError(f"{self.path / name}: the type {kind} is not supported") from None


def npcache_checkpoint(directory: Path) -> StoredCheckpoint:
    """The arrays, or the pickles that they would be made of. Raises `CheckpointError`."""
    folder = directory / _NPCACHE
    if not folder.is_dir():
        return torch_checkpoint(directory)
    return StoredCheckpoint(directory, read_json(directory / "config.json"), [_NumpyFolder(folder)])


# ---------------------------------------------------------------- sharded_state
class _Unfused:
    """A file of vLLM's names, as Hugging Face's: fused matrices are cut, rows of padding left out."""

    def __init__(self, file: TensorFile, config: dict[str, object]) -> None:
        self.path = file.path
        self._file = file
        self._rows: dict[str, tuple[str, int, int]] = {}  # name -> name in the file, first row, rows behind the last
        for name in file.names():
            for part, begin, end in self._parts(name, file.shape(name), config):
                self._rows[part] = (name, begin, end)

    def _parts(self, name: str, shape: tuple[int, ...], config: dict[str, object]) -> list[tuple[str, int, int]]:
        rows = shape[0] if shape else 0
        count = _reader(config, f"{self.path}: tensor {name!r}")
        if ".qkv_proj." in name:
            heads, kv_heads = count("num_attention_heads"), count("num_key_value_heads", "num_attention_heads")
            if rows % (heads + 2 * kv_heads):
                raise CheckpointError(
                    f"{self.path}: tensor {name!r}: {rows} rows are no {heads} + 2 x {kv_heads} heads"
                )
            head = rows // (heads + 2 * kv_heads)
            ends = [0, heads * head, (heads + kv_heads) * head, rows]
            names = [name.replace("qkv_proj", part) for part in ("q_proj", "k_proj", "v_proj")]
            return [(part, begin, end) for part, begin, end in zip(names, ends, ends[1:], strict=False)]
        if ".gate_up_proj." in name:
            gate, up = (name.replace("gate_up_proj", part) for part in ("gate_proj", "up_proj"))
            return [(gate, 0, rows // 2), (up, rows // 2, rows)]
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            return [(name, 0, min(rows, count("vocab_size")))]
        return [(name, 0, rows)]

    def names(self) -> list[str]:
        return list(self._rows)

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def shape(self, name: str) -> tuple[int, ...]:
        stored, begin, end = self._rows[name]
        shape = self._file.shape(stored)
        return (end - begin, *shape[1:]) if shape else shape

    def dtype(self, name: str) -> torch.dtype:
        return self._file.dtype(self._rows[name][0])

    def get(self, name: str) -> Tensor:
        stored, begin, end = self._rows[name]
        tensor = self._file.get(stored)
        return tensor[begin:end] if tensor.dim() else tensor


def _reader(config: dict[str, object], place: str) -> Callable[..., int]:
    def count(*keys: str) -> int:
        value = next((config[key] for key in keys if config.get(key) is not None), None)
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{place}: config.json has no {keys[0]} by which it could be cut")
        return value

    return count


def sharded_checkpoint(directory: Path, pattern: str = SHARD_PATTERN) -> StoredCheckpoint:
    """What `save_sharded_state` of vLLM wrote on one device, under names of `pattern`. Raises `CheckpointError`."""
    words = {"rank": r"(?P<rank>\d+)", "part": r"(?P<part>\d+)"}
    shard = re.compile(re.sub(r"\\\{(rank|part)\\\}", lambda word: words.pop(word[1], word[0]), re.escape(pattern)))
    found = sorted((int(m["rank"]), int(m["part"]), p) for p in directory.iterdir() if (m := shard.fullmatch(p.name)))

    def name(part: int) -> Path:
        return directory / pattern.replace("{rank}", "0").replace("{part}", str(part))

    if not found:
        raise CheckpointError(f"{name(0)}: there is no such file")
    if ranks := {rank for rank, _, _ in found} - {0}:
        raise CheckpointError(
            f"{directory}: the weights were saved for {len(ranks) + 1} devices, and octavo runs a model on one: "
            "give the model that they were made from"
        )
    if missing := set(range(len(found))) - {part for _, part, _ in found}:
        raise CheckpointError(f"{name(min(missing))}: this shard is missing")
    config = read_json(directory / "config.json")
    is_fused = config.get("model_type") in _FUSED_BY_THEMSELVES
    files = [SafetensorsFile(path) for _, _, path in found]
    return StoredCheckpoint(directory, config, [file if is_fused else _Unfused(file, config) for file in files])


# ---------------------------------------------------------------- tensorizer
_TENSORS: Final = "model.tensors"


def tensorizer_checkpoint(directory: Path, settings: TensorizerSettings) -> StoredCheckpoint:
    """What tensorizer wrote, beside the model's configuration. Raises `CheckpointError`."""
    config = read_json(directory / "config.json")
    file = TensorizerFile(_tensors_of(directory, settings), settings.verify_hash)
    is_fused = not settings.vllm_tensorized or config.get("model_type") in _FUSED_BY_THEMSELVES
    return StoredCheckpoint(directory, config, [file if is_fused else _Unfused(file, config)])


def _tensors_of(directory: Path, settings: TensorizerSettings) -> Path:
    if settings.uri is not None:
        return Path(settings.uri).expanduser()
    found = sorted(directory.glob("*.tensors"))
    if (directory / _TENSORS).is_file():
        return directory / _TENSORS
    if len(found) != 1:
        told = ", ".join(path.name for path in found[:12]) or "there is none"
        raise CheckpointError(
            f"{directory}: neither {_TENSORS} nor one *.tensors file is there ({told}); "
            '--model-loader-extra-config \'{"tensorizer_uri": "..."}\' names one'
        )
    return found[0]
