"""Writes what transformers saved of a model that sees as llama.cpp keeps it: the language model's file and the
projector's, with the names and conversions of its converters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from models.test_gguf_families import interleaved, write_gguf

#: Family -> the projector's type, the language model's architecture in GGUF, its class in transformers.
FAMILIES = {
    "Llava": ("mlp", "llama", "Llama"),
    "Idefics3": ("idefics3", "llama", "Llama"),
    "SmolVLM": ("idefics3", "llama", "Llama"),
    "Gemma3": ("gemma3", "gemma3", "Gemma3"),
    "Qwen2VL": ("qwen2vl_merger", "qwen2vl", "Qwen2"),
    "Qwen2_5_VL": ("qwen2.5vl_merger", "qwen2vl", "Qwen2"),
    "Qwen3VL": ("qwen3vl_merger", "qwen3vl", "Qwen3"),
    "Qwen3VLMoe": ("qwen3vl_merger", "qwen3vlmoe", "Qwen3Moe"),
    "Mistral3": ("pixtral", "llama", "Llama"),
    "InternVL": ("internvl", "llama", "Llama"),
}
Q8 = gguf.GGMLQuantizationType.Q8_0


def write_text(path: Path, scratch: Path, family: str, model: Any) -> None:
    """The language model's file. `scratch`: where its safetensors files may lie."""
    import transformers

    _, arch, name = FAMILIES[family]
    text = model.config.text_config
    values = {key: value for key, value in text.to_dict().items() if key not in ("model_type", "architectures")}
    if family == "Gemma3":
        config = transformers.Gemma3TextConfig(**{**values, "tie_word_embeddings": False})
    else:
        rope = {key: value for key, value in values["rope_parameters"].items() if not key.startswith("mrope")}
        values["rope_parameters"] = {**rope, "rope_type": "default"}
        config = getattr(transformers, f"{name}Config")(**{**values, "tie_word_embeddings": False})
    alone = getattr(transformers, f"{name}ForCausalLM")(config)
    part = model.model.text_model if hasattr(model.model, "text_model") else model.model.language_model
    alone.model.load_state_dict(part.state_dict())
    alone.lm_head.load_state_dict(model.lm_head.state_dict())
    alone.save_pretrained(scratch)
    sections = (text.rope_parameters or {}).get("mrope_section") if arch.startswith("qwen") else None
    write_gguf(path, arch, scratch, alone, sections=sections)


def write_projector(
    path: Path, directory: Path, family: str, model: Any, settings: dict[str, Any], quantized: bool = False
) -> None:
    """`directory`: the whole model's. `quantized`: all matrices of layers whose rows can be are Q8_0."""
    config, vision = model.config, model.config.vision_config
    is_pixtral = vision.model_type == "pixtral"
    kind = "pixtral" if is_pixtral else FAMILIES[family][0]
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(kind)
    _write_sizes(writer, kind, config, settings)
    for name, value in _tensors(kind, load_file(directory / "model.safetensors"), config):
        array = np.ascontiguousarray(value.float().numpy())
        is_matrix = name.startswith(("v.blk.", "mm.")) and array.ndim == 2 and array.shape[-1] % 32 == 0
        if quantized and is_matrix:
            writer.add_tensor(name, gguf.quants.quantize(array, Q8), raw_dtype=Q8)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _side(value: Any) -> int:
    return value[0] if isinstance(value, list | tuple) else int(value)


def _write_sizes(writer: gguf.GGUFWriter, kind: str, config: Any, settings: dict[str, Any]) -> None:
    vision = config.vision_config
    qwen = kind.startswith("qwen")
    width = vision.embed_dim if kind == "qwen2vl_merger" else vision.hidden_size
    # Files of Qwen2-VL have the width of the language model's rows in this place.
    inner = vision.hidden_size if kind == "qwen2vl_merger" else vision.intermediate_size
    writer.add_vision_projection_dim(768 if kind == "mlp" else config.text_config.hidden_size)
    writer.add_vision_image_size(_side(getattr(vision, "image_size", 560)))
    writer.add_vision_patch_size(_side(vision.patch_size))
    writer.add_vision_embedding_length(width)
    writer.add_vision_feed_forward_length(inner)
    layers = vision.depth if qwen else vision.num_hidden_layers
    writer.add_vision_head_count(vision.num_heads if qwen else vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(getattr(vision, "layer_norm_eps", 1e-5))
    half = kind in ("gemma3", "idefics3", "qwen3vl_merger")
    writer.add_vision_image_mean(settings.get("image_mean") or [0.5] * 3 if half else MEAN)
    writer.add_vision_image_std(settings.get("image_std") or [0.5] * 3 if half else STD)
    act = getattr(vision, "hidden_act", "")
    if kind != "mlp" and qwen and act == "silu":
        writer.add_vision_use_silu(True)
    elif act.startswith("gelu"):
        writer.add_vision_use_gelu(True)
    if kind == "mlp":
        chosen = config.vision_feature_layer
        total = layers
        layers = _num_used(config)
        if isinstance(chosen, list):
            writer.add_array("clip.vision.feature_layer", [each % (total + 1) for each in chosen])
    if kind == "gemma3":
        rows = math.isqrt(config.mm_tokens_per_image)
        writer.add_vision_projector_scale_factor(vision.image_size // vision.patch_size // rows)
    if kind == "idefics3":
        writer.add_vision_projector_scale_factor(config.scale_factor)
        writer.add_vision_preproc_image_size(settings["size"]["longest_edge"])
    if kind == "internvl":
        writer.add_vision_projector_scale_factor(int(1 / config.downsample_ratio))
    if kind == "pixtral" and hasattr(config, "spatial_merge_size"):
        writer.add_vision_spatial_merge_size(config.spatial_merge_size)
    if kind == "pixtral":
        writer.add_uint32("clip.vision.image_size", settings["size"]["longest_edge"])
    if kind == "qwen2.5vl_merger":
        writer.add_vision_n_wa_pattern(vision.fullatt_block_indexes[0] + 1)
        writer.add_uint32("clip.vision.window_size", vision.window_size)
    if kind == "qwen3vl_merger":
        writer.add_vision_spatial_merge_size(vision.spatial_merge_size)
        taken = [number in vision.deepstack_visual_indexes for number in range(layers)]
        writer.add_vision_is_deepstack_layers(taken)
    if qwen:
        writer.add_vision_min_pixels(settings["min_pixels"])
        writer.add_vision_max_pixels(settings["max_pixels"])
    writer.add_vision_block_count(layers)


MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


def _num_used(config: Any) -> int:
    """Layers up to the last whose rows a LLaVA takes: its converter writes no others."""
    total = config.vision_config.num_hidden_layers
    chosen = config.vision_feature_layer
    return max(each % (total + 1) for each in (chosen if isinstance(chosen, list) else [chosen]))


def _tensors(kind: str, saved: dict[str, torch.Tensor], config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 16)
    for name, value in saved.items():
        plain = name.removeprefix("model.")
        if (
            plain.startswith(("language_model.", "text_model.", "lm_head.", "embed_tokens.", "layers.", "norm."))
            or ".head." in plain
        ):
            continue
        yield from _converted(kind, names, plain, value, config)


def _converted(
    kind: str, names: gguf.TensorNameMap, name: str, value: torch.Tensor, config: Any
) -> Iterator[tuple[str, torch.Tensor]]:
    vision = config.vision_config
    if name.endswith("patch_embed.proj.weight"):
        yield "v.patch_embd.weight", value[:, :, 0]
        yield "v.patch_embd.weight.1", value[:, :, 1]
        return
    if ".attn.qkv." in name and kind != "qwen3vl_merger":
        for part, rows in zip("qkv", value.chunk(3), strict=True):
            yield _mapped(names, name.replace("qkv", part)), rows
        return
    if kind == "pixtral" and name.startswith("vision_tower.") and name.split(".")[-2] in ("q_proj", "k_proj"):
        value = interleaved(value, vision.num_attention_heads)
    if kind == "gemma3":
        name = name.replace("_weight", ".weight")
        value = value + 1 if "soft_emb_norm" in name else value
    if kind == "internvl":
        name = name.replace("multi_modal_projector.layer_norm", "mlp1.0")
        name = name.replace("multi_modal_projector.linear_1", "mlp1.1").replace(
            "multi_modal_projector.linear_2", "mlp1.3"
        )
        if (".lambda_" in name or "position_embedding" in name) and not name.endswith(".weight"):
            name += ".weight"
    if name.startswith("visual.deepstack_merger_list."):
        number, rest = name.split(".", 3)[2:]
        part, suffix = rest.replace("linear_", "").rsplit(".", 1)
        yield f"v.deepstack.{vision.deepstack_visual_indexes[int(number)]}.{part}.{suffix}", value
        return
    if kind == "qwen3vl_merger" and name.startswith("visual.merger."):
        for ours, theirs in (("norm", "v.post_ln"), ("linear_fc1", "mm.0"), ("linear_fc2", "mm.2")):
            name = name.replace(f"visual.merger.{ours}", theirs)
        yield name, value
        return
    if kind != "mlp":
        yield _mapped(names, name), value
        return
    # An older converter: other numbers of the projector, and the two matrices of MLPs under each other's names.
    found = _mapped(names, name).replace("mm.1.", "mm.0.")
    layer = found.split(".")[2] if found.startswith("v.blk.") else "0"
    if not found.startswith("v.post_ln") and int(layer) < _num_used(config):
        swapped = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
        yield ".".join(swapped.get(part, part) for part in found.split(".")), value


def _mapped(names: gguf.TensorNameMap, name: str) -> str:
    for each in (name, f"model.{name}", name.replace("vision_tower.", "vision_tower.vision_model.")):
        found = names.get_name(each, try_suffixes=(".weight", ".bias"))
        if found is not None:
            return str(found)
    raise AssertionError(f"the converter knows no tensor {name}")
