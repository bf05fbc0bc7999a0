"""The same tower and SmolLM2 as llama.cpp keeps them: two .gguf files."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file

from seeing.compose import _MARKS, _TEMPLATE, SCALE_FACTOR, TOWER, VISION


def write(text_model: Path, directory: Path) -> Path:
    """Write both files, and give the language model's. `text_model`: SmolLM2's .gguf file."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_text(text_model, directory / "model.gguf")
    _write_projector(directory / "mmproj-model-f16.gguf")
    return directory / "model.gguf"


def _write_text(source: Path, path: Path) -> None:
    """The model with tokens for pictures, whose rows are zero."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    own = {"tokenizer.chat_template": _TEMPLATE}
    for field in reader.fields.values():
        name, kind = field.name, field.types[0]
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = own.get(name, field.contents())
        if name == "tokenizer.ggml.tokens":
            value = [*value, *_MARKS]
        elif name == "tokenizer.ggml.token_type":
            value = [*value, *[gguf.TokenType.CONTROL] * len(_MARKS)]
        elif name == "tokenizer.ggml.scores":
            value = [*value, *[0.0] * len(_MARKS)]
        sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = len(_tokens(reader)) + len(_MARKS) if name == "llama.vocab_size" else value
        writer.add_key_value(name, value, kind, sub_type)
    for tensor in reader.tensors:
        data = tensor.data
        if tensor.name in ("token_embd.weight", "output.weight"):
            data = np.concatenate((data, np.zeros((len(_MARKS), *data.shape[1:]), data.dtype)))
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    _finish(writer)


def _tokens(reader: gguf.GGUFReader) -> list[str]:
    tokens: list[str] = reader.fields["tokenizer.ggml.tokens"].contents()
    return tokens


def _write_projector(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "clip")
    tensors = load_file(TOWER)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, VISION["num_hidden_layers"])
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.IDEFICS3)
    writer.add_vision_projection_dim(tensors["model.connector.modality_projection.proj.weight"].shape[0])
    writer.add_vision_image_size(VISION["image_size"])
    writer.add_vision_preproc_image_size(VISION["image_size"])
    writer.add_vision_patch_size(VISION["patch_size"])
    writer.add_vision_embedding_length(VISION["hidden_size"])
    writer.add_vision_feed_forward_length(VISION["intermediate_size"])
    writer.add_vision_block_count(VISION["num_hidden_layers"])
    writer.add_vision_head_count(VISION["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_projector_scale_factor(SCALE_FACTOR)
    writer.add_vision_use_gelu(True)
    for name, value in tensors.items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        writer.add_tensor(found, value.float().numpy().astype(np.float16 if value.dim() > 1 else np.float32))
    _finish(writer)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
