"""Which processor a model has, by its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from octavo.base.errors import CheckpointError
from octavo.text.media import images
from octavo.text.media.files import OPENING, row_id
from octavo.text.media.fuyu import FuyuProcessor
from octavo.text.media.gemma3 import Gemma3Processor
from octavo.text.media.idefics3 import Idefics3Processor
from octavo.text.media.internvl import InternVLProcessor
from octavo.text.media.llava_next import LlavaNextProcessor
from octavo.text.media.minicpm_v import SlicingProcessor
from octavo.text.media.phi3_v import Phi3VProcessor
from octavo.text.media.pixtral import PixtralProcessor
from octavo.text.media.processor import MediaProcessor
from octavo.text.media.qwen2_vl import QWEN_IMAGE, Qwen2VLProcessor, mixed_by_cubics
from octavo.text.media.qwen_video import QwenVideoProcessor
from octavo.text.media.square import SquareProcessor
from octavo.text.media.tiles import Llama4Processor, MllamaProcessor

#: The settings of the video processor, among those of a family that takes videos.
_VIDEO = "video"
#: Sizes that configurations of towers leave out, since they are transformers' defaults, by `model_type`.
_TOWERS: dict[str, tuple[int, int]] = {  # image, patch
    "clip_vision_model": (224, 32),
    "siglip_vision_model": (224, 16),
    "idefics3_vision": (224, 32),
    "smolvlm_vision": (224, 32),
}


def media_processor(
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    token_id: Callable[[str], int | None],
    video: Mapping[str, Any] | None = None,
) -> MediaProcessor | None:
    """The processor of a model with this config.json; None: it reads text alone.

    `settings`: of the image processor, `files.image_settings`, and `OPENING`. `token_id`: of a special token's text.
    `video`: the settings of the video processor, `files.video_settings`; None: those of a family.
    """
    names = config.get("architectures") or ["?"]
    if video is not None:
        settings = {**settings, _VIDEO: video}
    make = _PROCESSORS.get(str(names[0]))
    return None if make is None else make(config, settings, token_id)


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    tower = config.get("vision_config") or {}
    image, patch = _TOWERS.get(str(tower.get("model_type")), (224, 32))
    return {"image_size": int(tower.get("image_size", image)), "patch_size": int(tower.get("patch_size", patch))}


def _side(found: Any) -> int:
    return int(found[0] if isinstance(found, list) else found)


def _placeholder_id(config: Mapping[str, Any], token_id: Callable[[str], int | None], text: str) -> int:
    return row_id(config, "image", token_id, text)


def _llava(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor | None:
    if str((config.get("vision_config") or {}).get("model_type")) == "pixtral":
        return _pixtral({"spatial_merge_size": 1, **config}, settings, token_id)
    if str((config.get("vision_config") or {}).get("model_type")) not in ("clip_vision_model", "siglip_vision_model"):
        return None
    found, row_text = _placeholder_id(config, token_id, "<image>"), "<image>"
    if found < 0:  # language models that were trained without one: any token that no text has will do
        found, row_text = _placeholder_id(config, token_id, "<unk>"), "<unk>"
    return SquareProcessor(
        settings,
        placeholder="<image>",
        placeholder_id=found,
        row_text=row_text,
        has_class_row=config.get("vision_feature_select_strategy") == "full"
        and config["vision_config"]["model_type"] == "clip_vision_model",
        **_sizes(config),
    )


def _idefics3(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor:
    return Idefics3Processor(
        settings,
        placeholder_id=_placeholder_id(config, token_id, Idefics3Processor.placeholder),
        merge=int(config.get("scale_factor", 2)),
        **_sizes(config),
    )


def _qwen2_vl(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None], **more: Any
) -> MediaProcessor:
    tower = config.get("vision_config") or {}
    return QwenVideoProcessor(
        {key: value for key, value in settings.items() if key != _VIDEO},
        video=settings.get(_VIDEO) or {},
        video_id=row_id(config, "video", token_id, "<|video_pad|>"),
        frames=int(tower.get("temporal_patch_size", 2)),
        placeholder_id=_placeholder_id(config, token_id, QWEN_IMAGE),
        patch_size=int(tower.get("patch_size", 14)),
        merge=int(tower.get("spatial_merge_size", 2)),
        **more,
    )


def _qwen2_5_vl(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor:
    tower = config.get("vision_config") or {}
    window = int(tower.get("window_size", 112)) // int(tower.get("spatial_merge_size", 2))
    window //= int(tower.get("patch_size", 14))
    return _qwen2_vl(
        config, settings, token_id, window=window, tokens_per_second=float(tower.get("tokens_per_second", 4))
    )


def _qwen3_vl(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor:
    tower = config.get("vision_config") or {}
    config = {**config, "vision_config": {"patch_size": 16, **tower}}
    side = int(int(tower.get("num_position_embeddings", 2304)) ** 0.5)
    half = {"image_mean": images.HALF, "image_std": images.HALF}
    return _qwen2_vl(config, {**half, **settings}, token_id, table_side=side, tells_times=True)


def _glm4v(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor:
    tower = config.get("vision_config") or {}
    side = int(tower.get("image_size", 336)) // int(tower.get("patch_size", 14))
    size = {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15000, **(settings.get("size") or {})}
    # These are pixels of all frames of a patch.
    frames = int(tower.get("temporal_patch_size", 2))
    bounds = {"min_pixels": size["shortest_edge"] / frames, "max_pixels": size["longest_edge"] / frames}
    placeholder = "<|image|>"
    return Qwen2VLProcessor(
        {**settings, **bounds},
        placeholder_id=_placeholder_id(config, token_id, placeholder),
        patch_size=int(tower.get("patch_size", 14)),
        merge=int(tower.get("spatial_merge_size", 2)),
        table_side=side,
        mixed=mixed_by_cubics,
        grows=True,
        placeholder=placeholder,
        marks=("<|begin_of_image|>", "<|end_of_image|>"),
    )


def _siglip(config: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a model whose pictures are all of the one size of SigLIP's tower, and its sizes."""
    sizes = _sizes({"vision_config": {"model_type": "siglip_vision_model", **(config.get("vision_config") or {})}})
    side = sizes["image_size"]
    usual = {"do_center_crop": False, "image_mean": images.HALF, "image_std": images.HALF}
    given = {key: value for key, value in settings.items() if value is not None}
    return {**usual, "size": {"height": side, "width": side}, **given}, sizes


def _gemma3(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor:
    settings, sizes = _siglip(config, {"resample": 2, **settings})
    side = sizes["image_size"] // sizes["patch_size"]
    return Gemma3Processor(
        settings,
        placeholder="<start_of_image>",
        placeholder_id=_placeholder_id(config, token_id, "<image_soft_token>"),
        row_text="<image_soft_token>",
        around=("\n\n<start_of_image>", "<end_of_image>\n\n"),
        merge=side // int(int(config.get("mm_tokens_per_image", 256)) ** 0.5),
        **sizes,
    )


def _paligemma(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor:
    settings, sizes = _siglip(config, settings)
    return SquareProcessor(
        settings,
        placeholder="<image>",
        placeholder_id=_placeholder_id(config, token_id, "<image>"),
        around=("", "<bos>"),
        brings_bos=True,
        **sizes,
    )


def _pixtral(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor:
    return PixtralProcessor(
        settings,
        placeholder_id=_placeholder_id(config, token_id, PixtralProcessor.placeholder),
        patch_size=int((config.get("vision_config") or {}).get("patch_size", 16)),
        merge=int(config.get("spatial_merge_size", 2)),
    )


def _internvl(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor:
    tower = config.get("vision_config") or {}
    image, patch = (_side(tower.get(key, usual)) for key, usual in (("image_size", 448), ("patch_size", 14)))
    return InternVLProcessor(
        settings,
        placeholder_id=_placeholder_id(config, token_id, InternVLProcessor.placeholder),
        patch_size=patch,
        image_size=image,
        merge=round(1 / float(config.get("downsample_ratio", 0.5))),
    )


def _llava_next(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor | None:
    kind = (config.get("vision_config") or {}).get("model_type", "clip_vision_model")
    if config.get("vision_feature_select_strategy") == "full" and kind == "clip_vision_model":
        return None  # its class token would have no place in a grid of tiles
    return LlavaNextProcessor(
        settings,
        placeholder_id=_placeholder_id(config, token_id, LlavaNextProcessor.placeholder),
        grids=config.get("image_grid_pinpoints") or settings.get("image_grid_pinpoints"),
        **_sizes(config),
    )


def _minicpm_v_4_6(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor:
    mode = config.get("downsample_mode") or "16x"
    if settings.get("downsample_mode", mode) != mode:
        raise CheckpointError(f"The image processor's `downsample_mode` is not {mode!r}, which is the tower's.")
    tower = {"model_type": "siglip_vision_model", "image_size": 224, **(config.get("vision_config") or {})}
    return SlicingProcessor(
        settings,
        placeholder="<|image_pad|>",
        placeholder_id=_placeholder_id(config, token_id, "<|image_pad|>"),
        row_text="<|image_pad|>",
        merges=1 if mode == "4x" else 2,
        **_sizes({"vision_config": tower}),
    )


def _minicpm_v(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor | None:
    row = token_id("<unk>")
    if row is None:
        return None
    is_old = str(config.get("version", "2.5")) == "2.5"
    usual = {"image_mean": settings.get("norm_mean"), "image_std": settings.get("norm_std"), "use_image_id": not is_old}
    tower = config.get("vision_config") or {}
    return SlicingProcessor(
        {**usual, **settings},
        placeholder="(<image>./</image>)",
        placeholder_id=row,
        row_text="<unk>",
        patch_size=int(tower.get("patch_size", 14)),
        image_size=int(tower.get("image_size", 980)),
        merges=0,
        num_queries=int(config.get("query_num", 64)),
        wraps_slices=is_old,
    )


def _phi3_v(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor | None:
    row = token_id("<|image|>")
    if row is None:
        return None
    return Phi3VProcessor(
        settings, placeholder_id=row, row_text="<|image|>", opening=settings.get(OPENING, ""), side=336, patch_size=14
    )


def _llama4(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor:
    tower = config.get("vision_config") or {}
    return Llama4Processor(
        settings,
        placeholder_id=_placeholder_id(config, token_id, Llama4Processor.row_text),
        patch_size=int(tower.get("patch_size", 14)),
        image_size=int(tower.get("image_size", 448)),
        merge=round(1 / float(tower.get("pixel_shuffle_ratio", 0.5))),
    )


def _mllama(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor:
    tower = config.get("vision_config") or {}
    return MllamaProcessor(
        settings,
        placeholder_id=_placeholder_id(config, token_id, MllamaProcessor.placeholder),
        patch_size=int(tower.get("patch_size", 14)),
        image_size=int(tower.get("image_size", 448)),
        most_tiles=int(tower.get("max_num_tiles", 4)),
    )


def _blip2(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor:
    tower = config.get("vision_config") or {}
    image, patch = (_side(tower.get(key, usual)) for key, usual in (("image_size", 224), ("patch_size", 14)))
    placeholder_id = _placeholder_id(config, token_id, "<image>")
    if placeholder_id < 0:
        raise CheckpointError("config.json has no `image_token_index`, and the tokenizer no token `<image>`.")
    usual = {"do_center_crop": False, "size": {"height": image, "width": image}}
    return SquareProcessor(
        {**usual, **{key: value for key, value in settings.items() if value is not None}, "do_center_crop": False},
        placeholder="<image>",
        placeholder_id=placeholder_id,
        image_size=image,
        patch_size=patch,
        num_rows=int(config.get("num_query_tokens", 32)),
        around=("", "</s>"),
        brings_bos=True,
    )


def _chameleon(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor:
    codes = config.get("vq_config") or {}
    side, levels = int(codes.get("resolution", 512)), len(codes.get("channel_multiplier") or range(5))
    usual = {
        "size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}, "resample": 1,
        "image_mean": [1.0] * 3, "image_std": [1.0] * 3, "rescale_factor": 0.0078,
    }  # fmt: skip
    known = {"image_token_id": (config.get("vocabulary_map") or {}).get("<image>"), **config}
    return SquareProcessor(
        {**usual, **{key: value for key, value in settings.items() if value is not None}},
        placeholder="<image>",
        placeholder_id=_placeholder_id(known, token_id, "<image>"),
        image_size=side,
        patch_size=side,
        num_rows=(side >> (levels - 1)) ** 2,
        around=("<racm3:break>", "<eoss>"),
        end_id=token_id("<reserved08706>"),
    )


def _fuyu(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> MediaProcessor:
    return FuyuProcessor(
        settings,
        placeholder_id=_placeholder_id(config, token_id, FuyuProcessor.placeholder),
        patch_size=int(config.get("patch_size", 30)),
        end_id=token_id("<0x04>"),
    )


_PROCESSORS: dict[str, Callable[..., MediaProcessor | None]] = {
    "LlavaForConditionalGeneration": _llava,
    "Idefics3ForConditionalGeneration": _idefics3,
    "SmolVLMForConditionalGeneration": _idefics3,
    "Qwen2VLForConditionalGeneration": _qwen2_vl,
    "Qwen2_5_VLForConditionalGeneration": _qwen2_5_vl,
    "Qwen3VLForConditionalGeneration": _qwen3_vl,
    "Qwen3VLMoeForConditionalGeneration": _qwen3_vl,
    "Glm4vForConditionalGeneration": _glm4v,
    "Glm4vMoeForConditionalGeneration": _glm4v,
    "Glm46VForConditionalGeneration": _glm4v,
    "Gemma3ForConditionalGeneration": _gemma3,
    "PaliGemmaForConditionalGeneration": _paligemma,
    "LlavaNextForConditionalGeneration": _llava_next,
    "Phi3VForCausalLM": _phi3_v,
    "MiniCPMV4_6ForConditionalGeneration": _minicpm_v_4_6,
    "MiniCPMV": _minicpm_v,
    "Mistral3ForConditionalGeneration": _pixtral,
    "InternVLForConditionalGeneration": _internvl,
    "FuyuForCausalLM": _fuyu,
    "ChameleonForConditionalGeneration": _chameleon,
    "Blip2ForConditionalGeneration": _blip2,
    "Llama4ForConditionalGeneration": _llama4,
    "MllamaForConditionalGeneration": _mllama,
}
