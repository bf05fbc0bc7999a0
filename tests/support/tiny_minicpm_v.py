"""Tiny random models of MiniCPM-V 2.5 and 2.6, for which transformers has no class: what their description says, in
plain torch, around transformers' layers of SigLIP and its language models."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder

PATCH, SCALE, QUERIES, MOST = 4, 24, 6, 9
VISION: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28,
    "patch_size": PATCH,
}  # fmt: skip
WIDTH = 256
TEXT: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "tie_word_embeddings": False, "hidden_act": "silu",
    "rms_norm_eps": 1e-6, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip


class Resampler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(QUERIES, WIDTH))
        self.kv_proj = nn.Linear(VISION["hidden_size"], WIDTH, bias=False)
        self.attn = nn.MultiheadAttention(WIDTH, WIDTH // 128)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(3))
        self.proj = nn.Parameter(torch.zeros(WIDTH, WIDTH))

    def forward(self, rows: Tensor, lines: int, columns: int) -> Tensor:
        """[queries, WIDTH] of the rows of one slice."""
        kv = self.ln_kv(self.kv_proj(rows))
        keys = kv + sines(lines, columns).reshape(lines * columns, WIDTH)
        found, _ = self.attn(self.ln_q(self.query)[:, None], keys[:, None], kv[:, None])
        return self.ln_post(found[:, 0]) @ self.proj


class TinyMiniCPMV:
    """Saved to `directory`. Of 2.5 the tower was saved without its last layer."""

    def __init__(self, directory: Path, version: str) -> None:
        torch.manual_seed(4)
        is_old = version == "2.5"
        self.text = (LlamaForCausalLM(LlamaConfig(**TEXT)) if is_old else Qwen2ForCausalLM(Qwen2Config(**TEXT))).eval()
        config = SiglipVisionConfig(**VISION, attn_implementation="eager")
        self.encoder = SiglipEncoder(config).eval()
        if is_old:
            self.encoder.layers = self.encoder.layers[:-1]
        hidden = VISION["hidden_size"]
        self.patches = nn.Conv2d(3, hidden, PATCH, PATCH)
        self.positions = nn.Embedding((VISION["image_size"] // PATCH) ** 2, hidden)
        self.norm, self.resampler = nn.LayerNorm(hidden, eps=1e-6), Resampler()
        modules = {
            "llm.": self.text, "vpm.encoder.": self.encoder, "vpm.embeddings.patch_embedding.": self.patches,
            "vpm.embeddings.position_embedding.": self.positions, "vpm.post_layernorm.": self.norm,
            "resampler.": self.resampler,
        }  # fmt: skip
        for module in modules.values():
            for parameter in module.parameters():  # wide, so that a wrong row shows
                parameter.data = torch.randn_like(parameter) * (0.2 if parameter.dim() > 1 else 0.15)
        tensors = {
            f"{name}{key}": each for name, module in modules.items() for key, each in module.state_dict().items()
        }
        save_file(tensors, directory / "model.safetensors")
        written = {
            **TEXT, "architectures": ["MiniCPMV"], "model_type": "minicpmv", "query_num": QUERIES,
            "vision_config": {**VISION, "model_type": "idefics2" if is_old else "siglip_vision_model"},
            "drop_vision_last_layer": is_old, **({} if is_old else {"version": 2.6}),
        }  # fmt: skip
        (directory / "config.json").write_text(json.dumps(written))

    def logits(self, ids: Sequence[int], image_id: int, images: Sequence[np.ndarray]) -> Tensor:
        """[T, V]."""
        given = torch.tensor([list(ids)])
        with torch.no_grad():
            rows = self.text.get_input_embeddings()(given)
            found = [self.features(piece) for image in images for piece in slices(Image.fromarray(image))]
            rows[given == image_id] = torch.cat(found)
            return self.text(inputs_embeds=rows).logits[0]

    def features(self, piece: Image.Image) -> Tensor:
        values = torch.from_numpy(np.array(piece)).permute(2, 0, 1).float() / 255
        rows = self.patches(((values - 0.5) / 0.5)[None])
        lines, columns = rows.shape[2:]
        side = VISION["image_size"] // PATCH
        bounds = torch.arange(1 / side, 1.0, 1 / side)
        line, column = (
            torch.bucketize(torch.arange(0, 1 - 1e-6, 1 / count), bounds, right=True) for count in (lines, columns)
        )
        rows = rows.flatten(2).transpose(1, 2) + self.positions((line[:, None] * side + column).flatten())
        seen = self.norm(self.encoder(inputs_embeds=rows).last_hidden_state)
        made: Tensor = self.resampler(seen[0], lines, columns)
        return made


def slices(image: Image.Image) -> list[Image.Image]:
    """The whole and its slices."""
    width, height = image.size
    ratio, multiple = math.log(width / height), min(math.ceil(width * height / SCALE**2), MOST)
    if multiple <= 1:
        return [image.resize(fitted(width, height, True), Image.Resampling.BICUBIC)]
    grids = [
        (columns, number // columns)
        for number in (multiple - 1, multiple, multiple + 1)
        if 1 < number <= MOST
        for columns in range(1, number + 1)
        if number % columns == 0
    ]
    columns, lines = min(grids, key=lambda grid: abs(ratio - math.log(grid[0] / grid[1])))
    whole = image.resize(fitted(width, height, False), Image.Resampling.BICUBIC)
    wide, high = fitted(nearest(width, columns) / columns, nearest(height, lines) / lines, True)
    refined = image.resize((wide * columns, high * lines), Image.Resampling.BICUBIC)
    boxes = [(x * wide, y * high, (x + 1) * wide, (y + 1) * high) for y in range(lines) for x in range(columns)]
    return [whole, *(refined.crop(box) for box in boxes)]


def fitted(width: float, height: float, grows: bool) -> tuple[int, int]:
    if width * height > SCALE * SCALE or grows:
        ratio = width / height
        height = int(SCALE / math.sqrt(ratio))
        width = int(height * ratio)
    return nearest(width, PATCH), nearest(height, PATCH)


def nearest(length: float, step: int) -> int:
    return max(round(length / step) * step, step)


def sines(lines: int, columns: int) -> Tensor:
    """[lines, columns, WIDTH]: columns in the first half, lines in the second."""
    omega = 1.0 / 10000 ** (np.arange(WIDTH // 4, dtype=np.float32) / (WIDTH / 4.0))

    def of(count: int) -> np.ndarray:
        angles = np.einsum("p,d->pd", np.arange(count, dtype=np.float32), omega)
        return np.concatenate([np.sin(angles), np.cos(angles)], -1)

    halves = (
        np.broadcast_arrays(of(columns)[None], np.zeros((lines, 1, 1)))[0],
        np.broadcast_to(of(lines)[:, None], (lines, columns, WIDTH // 2)),
    )
    return torch.from_numpy(np.concatenate(halves, -1)).float()
