"""A GGUF file for transformers' modules: its configuration under their keys, its tensors under the tree's names.

octavo's own family stands between. It finds in the file what its blocks declare (`Layout` of GGUF), and of the tensors
that the family knows from safetensors each is put together of the declared ones (`Layout` of Hugging Face): so that the
tree must have exactly the tensors that the family reads, and nothing is guessed.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.models.bridge.skeleton import Skeleton
from octavo.models.checkpoint import Checkpoint
from octavo.models.decoder import define
from octavo.models.layout import TensorSource
from octavo.models.params import TensorDecl
from octavo.models.registry import find_family, model_spec
from octavo.quant.packed import QuantizedWeight

#: Types whose translated configuration was tried against transformers' own models: for others a setting may be lost.
TRIED: Final = (
    "llama", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "gpt_neox",
    "olmo2", "olmoe", "stablelm", "starcoder2", "arcee", "nemotron", "deepseek_v3", "glm4_moe",
)  # fmt: skip
#: Keys of the translated configuration that families share, and what some classes of transformers call them.
_OTHER_NAMES: Final = {
    "rms_norm_eps": ("layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon"),
    "num_local_experts": ("num_experts",), "intermediate_size": ("n_inner",),
}  # fmt: skip
#: Which a class may do without: biases are seen by their tensors, an activation may be the only one there is, and that
#: norms of a file stand around one is undone here.
_IMPLIED: Final = ("attention_bias", "mlp_bias", "hidden_act", "rms_norm_offset")


def class_values(values: dict[str, Any], source: str) -> dict[str, Any]:
    """The translated configuration under the keys of transformers' class. Raises CheckpointError for a setting that
    the class does not have: it would be another model without it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = values.get("model_type")
    if kind not in TRIED:
        raise CheckpointError(
            f"{source}: a .gguf file of the type {str(kind)[:80]} is not read for transformers; octavo's own family "
            f"reads it, and transformers' runs from safetensors files. These are: {', '.join(TRIED)}"
        )
    config = CONFIG_MAPPING[kind]
    known = set(dir(config)) | set(config.attribute_map)
    for each in config.__mro__:
        known |= set(getattr(each, "__annotations__", ()))
    made: dict[str, Any] = {"pad_token_id": None}  # a class's default may be beyond the vocabulary
    implied = (*_IMPLIED, *_following(values))
    for key, value in _said(values).items():
        name = key if key in known else next((other for other in _OTHER_NAMES.get(key, ()) if other in known), None)
        if name is not None:
            made[name] = value
        elif key not in implied and value not in (None, False):
            raise CheckpointError(f"{source}: {key}, which the file says, is no setting of transformers' {kind}")
    rope = values.get("rope_parameters")
    if isinstance(rope, dict) and rope.get("rope_type") == "factors":
        raise CheckpointError(f"{source}: transformers has no rotation with the factors that are in the file")
    return made


def _following(values: dict[str, Any]) -> list[str]:
    """What a class without such a setting has by itself."""
    heads, hidden = values.get("num_attention_heads"), values.get("hidden_size")
    found = ["num_key_value_heads"] if values.get("num_key_value_heads") == heads else []
    if isinstance(heads, int) and isinstance(hidden, int) and values.get("head_dim") == hidden // max(1, heads):
        found.append("head_dim")
    return found


def _said(values: dict[str, Any]) -> dict[str, Any]:
    """Settings that octavo's families and transformers' classes say otherwise, as the latter do."""
    said, kind = dict(values), values["model_type"]
    activation = said.pop("hidden_activation", None)
    if activation is not None and kind.startswith("gemma"):
        said |= {"hidden_activation": activation} if kind != "gemma" else {"hidden_act": activation}
    if (every := said.pop("sliding_window_pattern", None)) is not None:
        kinds = ("sliding_attention",) * (every - 1) + ("full_attention",)
        said["layer_types"] = [kinds[layer % every] for layer in range(said["num_hidden_layers"])]
    rotated = said.pop("partial_rotary_factor", None)
    if rotated is not None:
        said["rope_parameters"] = {**(said.get("rope_parameters") or {}), "partial_rotary_factor": rotated}
    return said


class GGUFForTree:
    """A checkpoint of GGUF as one under Hugging Face's names."""

    naming: Final = "hf"

    def __init__(self, inner: Checkpoint, skeleton: Skeleton) -> None:
        """Raises CheckpointError unless the family and the tree have the same tensors."""
        self.source, self.config = inner.source, inner.config
        self.dtype, self.quantization = inner.dtype, inner.quantization
        family, definition = find_family(inner.config, inner.source), define(model_spec(inner.config, inner.source))
        self._inner = inner
        self._file = TensorSource(inner, family.gguf, definition)
        tree = _Names(skeleton, inner)
        self._tree = TensorSource(tree, family.hf, definition)
        self._shapes = {name: tree.shape(name) for name in self._tree.stored_names()}
        self._is_around_one = inner.config.get("rms_norm_offset") == 0

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def nbytes(self, name: str, float_bytes: int | None = None) -> int:
        found = 0
        for part in self._tree.declared_in(name):
            stored = self._file.name(part)  # of which it may be a share
            whole = max(1, math.prod(self._inner.shape(stored)))
            found += self._inner.nbytes(stored, float_bytes) * math.prod(part.shape) // whole
        return found

    def get(self, name: str) -> Tensor | QuantizedWeight:
        weight = self._tree.assembled(name, self._declared)
        return weight.view(self._shapes[name]) if isinstance(weight, Tensor) else weight

    def _declared(self, tensor: TensorDecl) -> Tensor | QuantizedWeight:
        weight = self._file.get(tensor)
        if self._is_around_one and tensor.role == "norm" and isinstance(weight, Tensor):
            return weight.to(torch.float32) - 1
        return weight


class _Names:
    """Names and shapes of a tree's tensors, for a layout to find its way in them."""

    naming: Final = "hf"
    dtype: Final = None
    quantization: Final = "none"

    def __init__(self, skeleton: Skeleton, inner: Checkpoint) -> None:
        self.source = f"{inner.source}, as transformers' {skeleton.model_type}"
        self.config = inner.config
        self._shapes = {name: tuple(tensor.shape) for name, tensor in skeleton.make().state_dict().items()}

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def nbytes(self, name: str, float_bytes: int | None = None) -> int:
        raise AssertionError("it has no values")

    def get(self, name: str) -> Tensor:
        raise AssertionError("it has no values")
