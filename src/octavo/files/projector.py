"""A projector's file (mmproj): what llama.cpp keeps of a model that sees in a .gguf file beside the language model's.

Its metadata become the configuration that the same model has on the Hugging Face side, and the settings of its image
processor, so that a family has one function whatever the file format. What the metadata leave unsaid is read off the
tensors that are there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from octavo.base.errors import CheckpointError
from octavo.files.gguf import GGUFFile, TensorInfo

logger = logging.getLogger("octavo.files")

ARCHITECTURE: Final = "clip"
#: What released models of Qwen2.5-VL have and files say nothing of: pixels of a window, positions of a second.
_WINDOW: Final = 112
_TOKENS_PER_SECOND: Final = 2
_SIGLIP: Final = {"model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh"}


@dataclass(frozen=True)
class Projector:
    """What a file says. `config`: all but the language model's part of the configuration; `settings`: of the image
    processor."""

    path: Path
    kind: str  # the type of projector, as llama.cpp calls it
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    width: int  # of the rows that it makes
    texts: tuple[str, ...]  # architectures of the language model's file; none: any


class Facts:
    """Metadata and tensors of a file, none of which is trusted."""

    def __init__(self, file: GGUFFile) -> None:
        self.path, self._metadata, self.tensors = file.path, file.metadata, file.tensors

    def fail(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {why}")

    def get(self, key: str) -> Any:
        return self._metadata.get(f"clip.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        found = self.get(key)
        found = default if found is None else found
        if type(found) is not int or not 0 < found < 1 << 24:
            raise self.fail(f"clip.{key} is {str(found)[:40]!r}, which is no size")
        return found

    def number(self, key: str) -> float:
        found = self.get(key)
        if type(found) not in (int, float) or not math.isfinite(found):
            raise self.fail(f"clip.{key} is {str(found)[:40]!r}, which is no number")
        return float(found)

    def list(self, key: str, kind: type, count: int | None = None) -> list[Any]:
        found = self.get(key)
        fits = isinstance(found, list) and all(type(each) is kind for each in found)
        if not fits or (count is not None and len(found) != count):
            raise self.fail(f"clip.{key} is not a list of {count or 'some'} {kind.__name__} values")
        return list(found)

    def tensor(self, name: str, dims: int = 2) -> TensorInfo:
        found = self.tensors.get(name)
        if found is None or len(found.shape) != dims:
            raise self.fail(f"the tensor {name!r} of {dims} dimensions is missing")
        return found

    @property
    def activation(self) -> str:
        """As llama.cpp has it of towers that name none of their own."""
        names = {"gelu": self.get("use_gelu"), "silu": self.get("use_silu")}
        return next((name for name, is_used in names.items() if is_used), "quick_gelu")

    @property
    def inner_size(self) -> int:
        """Of the tower's MLPs, of which some files' metadata tell another."""
        return self.tensor("v.blk.0.ffn_up.weight").shape[1 if self.is_swapped else 0]

    @property
    def is_swapped(self) -> bool:
        """Whether `ffn_down` is the matrix that makes rows wider, as in files of older converters."""
        rows, columns = self.tensor("v.blk.0.ffn_down.weight").shape
        return columns == self.integer("vision.embedding_length") != rows


def is_projector(path: Path) -> bool:
    """By its name, as llama.cpp's are called."""
    return path.suffix == ".gguf" and path.name.lower().startswith("mmproj")


def read_projector(path: Path) -> Projector:
    """Raises CheckpointError for a file that is none, damaged, or of a kind that is not implemented."""
    with GGUFFile(path) as file:
        return projector_of(file)


def projector_of(file: GGUFFile) -> Projector:
    facts = Facts(file)
    architecture = file.metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise facts.fail(f"a projector's architecture is {ARCHITECTURE!r}, and this file's {str(architecture)[:80]!r}")
    found = facts.get("vision.projector_type") or facts.get("projector_type") or "mlp"
    kind = _KINDS.get(found) if isinstance(found, str) else None
    if kind is None:
        raise facts.fail(f"the projector type {str(found)[:80]!r} is not supported; these are: {', '.join(_KINDS)}")
    if facts.get("has_audio_encoder"):
        raise facts.fail("clip.has_audio_encoder: encoders of sounds are not supported in .gguf files")
    config, settings = kind.read(facts)
    if not config["vision_config"].get("num_hidden_layers", config["vision_config"].get("depth")):
        raise facts.fail("clip.vision.block_count is missing")
    normalised = {
        "image_mean": facts.list("vision.image_mean", float, 3), "image_std": facts.list("vision.image_std", float, 3),
    }  # fmt: skip
    if min(normalised["image_std"]) <= 0:
        raise facts.fail("clip.vision.image_std is not above 0")
    width = facts.tensor(kind.last).shape[kind.last_axis]
    return Projector(facts.path, str(found), config, {**normalised, **settings}, width, kind.texts)


def projector_beside(model: Path) -> Path | None:
    """The one projector in the directory of a language model's file, if it belongs to that model."""
    try:
        beside = [each for each in sorted(model.parent.iterdir()) if is_projector(each) and each != model]
    except OSError:  # a directory that may not be listed
        return None
    if len(beside) != 1 or is_projector(model):
        if beside:
            logger.info("%s: of the projectors beside it none is used: --mmproj names one", model)
        return None
    (path,) = beside
    try:
        with GGUFFile(model) as file:
            architecture = str(file.metadata.get("general.architecture"))
            width = file.metadata.get(f"{architecture}.embedding_length")
        joined_config(read_projector(path), {"hidden_size": width}, architecture, str(model))
    except CheckpointError as error:
        logger.warning("the projector beside the model is not used: %s", error.message)
        return None
    logger.info("%s lies beside the model: it is what the model sees with (--mmproj)", path)
    return path


def joined_config(projector: Projector, text: Mapping[str, Any], architecture: str, source: str) -> dict[str, Any]:
    """The configuration of the whole model. `text`: the language model's; `architecture`: its file's.

    Raises CheckpointError where the two do not belong together.
    """
    if projector.texts and architecture not in projector.texts:
        raise CheckpointError(
            f"{projector.path}: a projector of the type {projector.kind!r} belongs to a language model of the "
            f"architecture {' or '.join(projector.texts)}, and {source} is of {architecture!r}"
        )
    if projector.width != text.get("hidden_size"):
        raise CheckpointError(
            f"{projector.path}: the projector of another language model: its rows are {projector.width} wide, and "
            f"those of {source} {text.get('hidden_size')}"
        )
    rest = {key: value for key, value in text.items() if key != "architectures"}
    return {**projector.config, "text_config": rest}


def _tower(facts: Facts, **own: Any) -> dict[str, Any]:
    """A `vision_config` with the names that most families have."""
    return {
        "hidden_size": facts.integer("vision.embedding_length"),
        "intermediate_size": facts.inner_size,
        "num_hidden_layers": facts.integer("vision.block_count"),
        "num_attention_heads": facts.integer("vision.attention.head_count"),
        "image_size": facts.integer("vision.image_size"),
        "patch_size": facts.integer("vision.patch_size"),
        "layer_norm_eps": facts.number("vision.attention.layer_norm_epsilon"),
        "hidden_act": facts.activation,
        **own,
    }


Read = tuple[dict[str, Any], dict[str, Any]]


def _llava(facts: Facts) -> Read:
    if facts.get("vision.mm_patch_merge_type") not in (None, "flat"):
        kind = str(facts.get("vision.mm_patch_merge_type"))[:40]
        raise facts.fail(f"clip.vision.mm_patch_merge_type {kind!r} (LLaVA-NeXT) is not supported")
    is_clip = "v.class_embd" in facts.tensors
    tower = _tower(facts, model_type="clip_vision_model") if is_clip else _tower(facts, **_SIGLIP)
    # A file that does not say whose rows are taken has no layers behind that.
    layers = -1 if facts.get("vision.feature_layer") is None else facts.list("vision.feature_layer", int)
    side = tower["image_size"]
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "vision_config": tower,
        "vision_feature_layer": layers,
        "vision_feature_select_strategy": "default" if is_clip else "full",
        "multimodal_projector_bias": "mm.0.bias" in facts.tensors,
    }, {} if is_clip else {"do_center_crop": False, "size": {"height": side, "width": side}}


def _gemma3(facts: Facts) -> Read:
    tower = _tower(facts, **_SIGLIP)
    side = tower["image_size"] // tower["patch_size"] // facts.integer("vision.projector.scale_factor", 4)
    if side < 1:
        raise facts.fail("clip.vision.projector.scale_factor leaves no rows of a picture")
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "vision_config": tower,
        "mm_tokens_per_image": side * side,
    }, {}


def _idefics3(facts: Facts) -> Read:
    tower = _tower(facts, hidden_act="gelu_pytorch_tanh")
    side = tower["image_size"]
    longest = facts.integer("vision.preproc_image_size", 4 * side)
    return {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "vision_config": tower,
        "scale_factor": facts.integer("vision.projector.scale_factor", 2),
    }, {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": side}}


def _any_size(facts: Facts, **own: Any) -> dict[str, Any]:
    """A `vision_config` with Qwen's names."""
    return {
        "depth": facts.integer("vision.block_count"),
        "num_heads": facts.integer("vision.attention.head_count"),
        "patch_size": facts.integer("vision.patch_size"),
        "spatial_merge_size": facts.integer("vision.spatial_merge_size", 2),
        "temporal_patch_size": 2 if "v.patch_embd.weight.1" in facts.tensors else 1,
        **own,
    }


def _pixels(facts: Facts, least: int, most: int) -> dict[str, Any]:
    """The bounds of a picture's pixels; where files have none, as released settings have them."""
    bounds = {
        "min_pixels": facts.integer("vision.image_min_pixels", least),
        "max_pixels": facts.integer("vision.image_max_pixels", most),
    }
    if bounds["min_pixels"] > bounds["max_pixels"]:
        raise facts.fail("clip.vision.image_min_pixels is above clip.vision.image_max_pixels")
    return bounds


def _qwen2_vl(facts: Facts) -> Read:
    width = facts.integer("vision.embedding_length")
    tower = _any_size(facts, embed_dim=width, mlp_ratio=facts.inner_size / width, hidden_act=facts.activation)
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"], "vision_config": tower,
    }, _pixels(facts, 56 * 56, 28 * 28 * 16384)  # fmt: skip


def _qwen2_5_vl(facts: Facts) -> Read:
    pattern = facts.get("vision.n_wa_pattern") or 1
    if type(pattern) is not int or pattern < 1:
        raise facts.fail("clip.vision.n_wa_pattern is no number of layers")
    tower = _any_size(
        facts,
        hidden_size=facts.integer("vision.embedding_length"),
        intermediate_size=facts.inner_size,
        hidden_act=facts.activation,
        window_size=facts.integer("vision.window_size", _WINDOW),
        tokens_per_second=_TOKENS_PER_SECOND,
    )
    tower["fullatt_block_indexes"] = list(range(pattern - 1, tower["depth"], pattern))
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": tower,
    }, _pixels(facts, 56 * 56, 28 * 28 * 16384)  # fmt: skip


def _qwen3_vl(facts: Facts) -> Read:
    tower = _any_size(
        facts,
        hidden_size=facts.integer("vision.embedding_length"),
        intermediate_size=facts.inner_size,
        hidden_act="gelu_pytorch_tanh" if facts.activation == "gelu" else facts.activation,
        num_position_embeddings=facts.tensor("v.position_embd.weight").shape[0],
    )
    tower["deepstack_visual_indexes"] = []
    if facts.get("vision.is_deepstack_layers") is not None:
        taken = facts.list("vision.is_deepstack_layers", bool)
        tower["deepstack_visual_indexes"] = [number for number, is_taken in enumerate(taken) if is_taken]
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"], "vision_config": tower,
    }, _pixels(facts, 256 * 256, 4096 * 4096)  # fmt: skip


def _pixtral(facts: Facts) -> Read:
    tower = _tower(facts, model_type="pixtral")
    if facts.get("rope.freq_base") is not None:
        tower["rope_theta"] = facts.number("rope.freq_base")
    shared = {
        "vision_config": tower, "vision_feature_layer": -1, "multimodal_projector_bias": "mm.1.bias" in facts.tensors,
    }  # fmt: skip
    settings = {"size": {"longest_edge": tower["image_size"]}}
    if "mm.patch_merger.weight" not in facts.tensors:
        return {"architectures": ["LlavaForConditionalGeneration"], **shared}, settings
    merge = facts.integer("vision.spatial_merge_size", 1)
    return {"architectures": ["Mistral3ForConditionalGeneration"], "spatial_merge_size": merge, **shared}, settings


def _internvl(facts: Facts) -> Read:
    tower = _tower(
        facts,
        attention_bias="v.blk.0.attn_q.bias" in facts.tensors,
        use_qk_norm="v.blk.0.attn_q_norm.weight" in facts.tensors,
        norm_type="layer_norm" if "v.blk.0.ln1.bias" in facts.tensors else "rms_norm",
        use_mean_pooling="v.post_ln.weight" not in facts.tensors,
    )
    tiles = {
        "min_patches": facts.integer("vision.preproc_min_tiles", 1),
        "max_patches": facts.integer("vision.preproc_max_tiles", 12),
    }
    scale = facts.integer("vision.projector.scale_factor", 2)
    return {
        "architectures": ["InternVLForConditionalGeneration"], "vision_config": tower, "downsample_ratio": 1 / scale,
    }, tiles  # fmt: skip


@dataclass(frozen=True)
class _Kind:
    read: Callable[[Facts], Read]
    last: str  # the matrix that makes rows of the language model
    texts: tuple[str, ...] = ()
    last_axis: int = 0


_KINDS: Final[Mapping[str, _Kind]] = {
    "mlp": _Kind(_llava, "mm.2.weight"),
    "gemma3": _Kind(_gemma3, "mm.input_projection.weight", ("gemma3",), last_axis=1),
    "idefics3": _Kind(_idefics3, "mm.model.fc.weight"),
    "qwen2vl_merger": _Kind(_qwen2_vl, "mm.2.weight", ("qwen2vl",)),
    "qwen2.5vl_merger": _Kind(_qwen2_5_vl, "mm.2.weight", ("qwen2vl",)),
    "pixtral": _Kind(_pixtral, "mm.2.weight"),
    "internvl": _Kind(_internvl, "mm.model.mlp.3.weight"),
    "qwen3vl_merger": _Kind(_qwen3_vl, "mm.2.weight", ("qwen3vl", "qwen3vlmoe")),
}
