"""Puts `tower.safetensors` before SmolLM2, as a model of SmolVLM's kind that is saved as transformers saves one.

python tests/seeing/compose.py SMOLLM2_DIRECTORY DIRECTORY
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file

TOWER: Final = Path(__file__).parent / "tower.safetensors"
VISION: Final = {
    "image_size": 64, "patch_size": 8, "hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4,
    "num_attention_heads": 3,
}  # fmt: skip
SCALE_FACTOR: Final = 2
#: The rows of these tokens are zero: what stands around a picture says nothing, and is never sampled.
_MARKS: Final = ("<fake_token_around_image>", "<global-img>", "<image>")
#: Pictures come first: they read as sentences, about which the question is asked.
_TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def compose(
    text_model: Path,
    directory: Path,
    vision: Mapping[str, int] = VISION,
    scale_factor: int = SCALE_FACTOR,
    tower: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """`text_model`: SmolLM2-135M-Instruct as a Hugging Face directory. `tower`: tensors of sizes `vision`, in place
    of those that were trained."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = load_file(text_model / "model.safetensors")
    embedding = tensors.pop("model.embed_tokens.weight")
    tensors["model.embed_tokens.weight"] = torch.cat((embedding, embedding.new_zeros(len(_MARKS), embedding.shape[1])))
    tensors = {name.replace("model.", "model.text_model.", 1): tensor for name, tensor in tensors.items()}
    tensors |= load_file(TOWER) if tower is None else tower
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    ids = {mark: len(embedding) + i for i, mark in enumerate(_MARKS)}
    _write_tokenizer(text_model, directory, ids)
    text = json.loads((text_model / "config.json").read_text())
    config = {
        "architectures": ["SmolVLMForConditionalGeneration"], "model_type": "smolvlm", "dtype": "bfloat16",
        "image_token_id": ids["<image>"], "scale_factor": scale_factor, "tie_word_embeddings": True,
        "vision_config": {"model_type": "smolvlm_vision", **vision},
        "text_config": {**text, "vocab_size": len(embedding) + len(_MARKS)},
    }  # fmt: skip
    _write(directory / "config.json", config)
    edge = {"longest_edge": vision["image_size"]}
    image_processor = {
        "image_processor_type": "SmolVLMImageProcessor", "do_convert_rgb": True, "do_resize": True, "size": edge,
        "max_image_size": edge, "do_image_splitting": False, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_pad": True, "resample": 1,
    }  # fmt: skip
    _write(directory / "preprocessor_config.json", image_processor)
    image_seq_len = (vision["image_size"] // vision["patch_size"] // scale_factor) ** 2
    _write(directory / "processor_config.json", {"processor_class": "SmolVLMProcessor", "image_seq_len": image_seq_len})


def _write_tokenizer(text_model: Path, directory: Path, ids: dict[str, int]) -> None:
    tokenizer = json.loads((text_model / "tokenizer.json").read_text())
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer["added_tokens"] += [{"id": i, "content": mark, **plain} for mark, i in ids.items()]
    _write(directory / "tokenizer.json", tokenizer)
    settings = json.loads((text_model / "tokenizer_config.json").read_text())
    settings |= {"chat_template": _TEMPLATE, "image_token": "<image>"}
    settings |= {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    _write(directory / "tokenizer_config.json", settings)
    for name in ("generation_config.json", "special_tokens_map.json"):
        if (text_model / name).exists():
            (directory / name).write_bytes((text_model / name).read_bytes())


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))


if __name__ == "__main__":
    compose(Path(sys.argv[1]), Path(sys.argv[2]))
