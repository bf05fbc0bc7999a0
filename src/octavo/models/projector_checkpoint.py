"""The tensors of a projector's file (mmproj) as a `Checkpoint` of a tower, and both files' as those of one model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.files.gguf import GGUFFile
from octavo.files.projector import Facts, projector_of
from octavo.models.layout import QKV, Layout, TensorSource
from octavo.models.params import TensorDecl
from octavo.models.tower import ROOM
from octavo.models.vision.vit import FLATTENED
from octavo.quant.gguf_types import transcode
from octavo.quant.packed import QuantizedWeight, as_floats

_LAYER: Final = rf"{ROOM}.layers.\1."
#: llama.cpp's names -> those that towers declare.
_NAMES: Final = (
    (r"^v\.patch_embd\.", f"{ROOM}.patches."),
    (r"^v\.position_embd\.", f"{ROOM}.positions."),
    (r"^v\.class_embd$", f"{ROOM}.class_token"),
    (r"^v\.pre_ln\.", f"{ROOM}.pre_norm."),
    (r"^v\.post_ln\.", f"{ROOM}.post_norm."),
    (r"^v\.blk\.(\d+)\.ln1\.", f"{_LAYER}input_layernorm."),
    (r"^v\.blk\.(\d+)\.ln2\.", f"{_LAYER}post_attention_layernorm."),
    (r"^v\.blk\.(\d+)\.attn_(q|k|v)\.", rf"{_LAYER}self_attn.\2_proj."),
    (r"^v\.blk\.(\d+)\.attn_(q|k)_norm\.", rf"{_LAYER}self_attn.\2_norm."),
    (r"^v\.blk\.(\d+)\.attn_qkv\.", f"{_LAYER}self_attn.qkv."),
    (r"^v\.blk\.(\d+)\.attn_out\.", f"{_LAYER}self_attn.o_proj."),
    (r"^v\.blk\.(\d+)\.ffn_(up|gate|down)\.", rf"{_LAYER}mlp.\2_proj."),
    (r"^v\.blk\.(\d+)\.ls1(\.weight)?$", f"{_LAYER}self_attn.scale"),
    (r"^v\.blk\.(\d+)\.ls2(\.weight)?$", f"{_LAYER}mlp.scale"),
)
_TWO_MATRICES: Final = {"mm.0.": "projector.up.", "mm.2.": "projector.down."}
#: Of a type of projector what its names begin with.
_PROJECTORS: Final[Mapping[str, Mapping[str, str]]] = {
    "mlp": _TWO_MATRICES,
    "gemma3": {"mm.input_projection.": "projector.", "mm.soft_emb_norm.": "projector.norm."},
    "idefics3": {"mm.model.fc.": "projector."},
    "qwen2vl_merger": _TWO_MATRICES,
    "qwen2.5vl_merger": _TWO_MATRICES,
    "qwen3vl_merger": _TWO_MATRICES,
    "pixtral": {
        "mm.1.": "projector.up.", "mm.2.": "projector.down.", "mm.input_norm.": "post_norm.",
        "mm.patch_merger.": "projector.merger.",
    },
    "internvl": {
        "mm.model.mlp.0.": "projector.norm.", "mm.model.mlp.1.": "projector.up.", "mm.model.mlp.3.": "projector.down.",
    },
}  # fmt: skip
_TAP: Final = re.compile(r"v\.deepstack\.(\d+)\.(norm|fc1|fc2)\.(weight|bias)")
_TAP_PARTS: Final = {"norm": "norm", "fc1": "up", "fc2": "down"}
#: The patches of a second picture of a film have filters of their own, in a tensor of their own.
_SECOND: Final = "v.patch_embd.weight.1"
#: Embeddings of tokens, which the language model's file has too.
_SURPLUS: Final = ("v.token_embd.img_break",)
_FFN: Final = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
#: Norms that stand around zero on the other side have the 1 added.
_NORMS_OF_ONE: Final = {"gemma3": f"{ROOM}.projector.norm.weight"}
#: Matrices that stand as [in, out].
_TRANSPOSED: Final = {"gemma3": f"{ROOM}.projector.weight"}


class ProjectorCheckpoint:
    """Under the names that a tower declares; floats keep the type they have in the file."""

    dtype: Final = None
    naming: Final = "declared"
    quantization: Final = "none"

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._file = GGUFFile(path)
        self.projector = projector_of(self._file)
        self.config: dict[str, Any] = dict(self.projector.config)
        kind = self.projector.kind
        self._transposed, self._norm_of_one = _TRANSPOSED.get(kind, ""), _NORMS_OF_ONE.get(kind, "")
        is_swapped = Facts(self._file).is_swapped
        self._names: dict[str, str] = {}
        for stored in self._file.tensors:
            if stored == _SECOND or stored in _SURPLUS:
                continue
            name = self._declared(stored, is_swapped)
            if name in self._names:
                both = f"{self._names[name]!r} and {stored!r}"
                raise CheckpointError(f"{path}: the tensors {both} are the same of the model")
            self._names[name] = stored

    @property
    def layout(self) -> Layout:
        """How its tensors differ from the declared ones, but for their names."""
        return Layout(
            splits=(QKV,),
            flattened=FLATTENED,
            transposed=re.escape(self._transposed),
            interleaved=self.projector.kind == "pixtral",
        )

    def _declared(self, stored: str, is_swapped: bool) -> str:
        if is_swapped:
            stored = re.sub(r"\b(ffn_up|ffn_down)\b", lambda found: _FFN[found[0]], stored)
        if match := _TAP.fullmatch(stored):
            layers = self.projector.config["vision_config"].get("deepstack_visual_indexes", [])
            if int(match[1]) in layers:
                return f"{ROOM}.taps.{layers.index(int(match[1]))}.{_TAP_PARTS[match[2]]}.{match[3]}"
        for prefix, own in _PROJECTORS[self.projector.kind].items():
            if stored.startswith(prefix):
                return f"{ROOM}.{own}{stored.removeprefix(prefix)}"
        for pattern, replacement in _NAMES:
            found, count = re.subn(pattern, replacement, stored)
            if count:
                return found
        return stored

    def names(self) -> list[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._file.tensors[self._names[name]].shape
        if self._has_second(name):
            return (*shape[:2], 2, *shape[2:])
        return shape

    def nbytes(self, name: str, float_bytes: int | None = None) -> int:
        info = self._file.tensors[self._names[name]]
        count = 2 if self._has_second(name) else 1
        is_float = info.type_name in ("F32", "F16", "BF16")
        return count * (math.prod(info.shape) * float_bytes if is_float and float_bytes is not None else info.nbytes)

    def get(self, name: str) -> Tensor | QuantizedWeight:
        found = self._read(self._names[name])
        if self._has_second(name):
            first, second = (as_floats(each).view(self._shape_of(name)) for each in (found, self._read(_SECOND)))
            return torch.stack((first, second), 2)
        if name == self._norm_of_one:
            return as_floats(found).to(torch.float32) - 1
        return as_floats(found) if name == self._transposed else found

    def _shape_of(self, name: str) -> tuple[int, ...]:
        return self._file.tensors[self._names[name]].shape

    def _has_second(self, name: str) -> bool:
        if self._names[name] != "v.patch_embd.weight" or _SECOND not in self._file.tensors:
            return False
        if self._file.tensors[_SECOND].shape != self._shape_of(name) or len(self._shape_of(name)) != 4:
            raise CheckpointError(f"{self.source}: tensor {_SECOND!r} has not the shape of the first")
        return True

    def _read(self, stored: str) -> Tensor | QuantizedWeight:
        info = self._file.tensors[stored]
        shape = info.shape if len(info.shape) < 3 else (math.prod(info.shape[:-1]), info.shape[-1])
        try:
            return transcode(self._file.data(info), info.type_name, shape, info.name)
        except CheckpointError as error:
            raise CheckpointError(f"{self.source}: {error.message}") from None


class JoinedTensors:
    """The tensors of a model in two files."""

    def __init__(self, text: TensorSource, tower: TensorSource) -> None:
        self._text, self._tower = text, tower

    def __len__(self) -> int:
        return len(self._text) + len(self._tower)

    def name(self, tensor: TensorDecl) -> str:
        return self._of(tensor).name(tensor)

    def get(self, tensor: TensorDecl) -> Tensor | QuantizedWeight:
        return self._of(tensor).get(tensor)

    def num_bytes(self, float_bytes: int | None) -> int:
        return self._text.num_bytes(float_bytes) + self._tower.num_bytes(float_bytes)

    def _of(self, tensor: TensorDecl) -> TensorSource:
        return self._tower if in_tower(tensor) else self._text


def in_tower(tensor: TensorDecl) -> bool:
    return tensor.name.startswith(f"{ROOM}.")
