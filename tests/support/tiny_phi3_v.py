"""Tiny random models of Phi-3-V, for which transformers has no class: what its description says, in plain torch, around
transformers' CLIP and Phi-3."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, Phi3Config, Phi3ForCausalLM

SIDE, PATCH = 16, 4
CLIP: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": SIDE,
    "patch_size": PATCH,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None, "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
PARTS: dict[str, Any] = {
    "img_processor": {
        "image_dim_out": 1024, "model_name": "openai/clip-vit-large-patch14-336", "name": "clip_vision_model",
        "num_img_tokens": 144,
    },
    "embd_layer": {
        "embedding_cls": "image", "hd_transform_order": "sub_glb", "projection_cls": "mlp", "use_hd_transform": True,
        "with_learnable_separator": True,
    },
}  # fmt: skip
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class TinyPhi3V:
    """Saved to `directory`."""

    def __init__(self, directory: Path) -> None:
        torch.manual_seed(3)
        self.text = Phi3ForCausalLM(Phi3Config(**TEXT)).eval()
        self.clip = CLIPVisionModel(CLIPVisionConfig(**CLIP)).eval()
        wide = 4 * CLIP["hidden_size"]
        self.up, self.down = torch.nn.Linear(wide, 64), torch.nn.Linear(64, 64)
        for module in (self.text, self.clip, self.up, self.down):
            for parameter in module.parameters():  # wide, so that a wrong row shows
                parameter.data = torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.15)
        self.line_end, self.between = torch.randn(1, 1, 1, wide), torch.randn(1, 1, wide)
        place = "model.vision_embed_tokens"
        tensors = dict(self.text.state_dict())
        tensors |= {
            f"{place}.img_processor.vision_model.{name.removeprefix('vision_model.')}": tensor
            for name, tensor in self.clip.state_dict().items()
        }
        for number, linear in ((0, self.up), (2, self.down)):
            tensors |= {
                f"{place}.img_projection.{number}.{name}": tensor for name, tensor in linear.state_dict().items()
            }
        tensors |= {f"{place}.sub_GN": self.line_end, f"{place}.glb_GN": self.between}
        tensors[f"{place}.wte.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, directory / "model.safetensors")
        config = {**TEXT, **PARTS, "architectures": ["Phi3VForCausalLM"], "model_type": "phi3_v"}
        (directory / "config.json").write_text(json.dumps(config))

    def logits(self, ids: Sequence[int], image_id: int, images: Sequence[np.ndarray], num_crops: int) -> Tensor:
        """[T, V]."""
        given = torch.tensor([list(ids)])
        with torch.no_grad():
            rows = self.text.get_input_embeddings()(given)
            rows[given == image_id] = torch.cat([self.features(image, num_crops) for image in images])
            return self.text(inputs_embeds=rows).logits[0]

    def features(self, image: np.ndarray, num_crops: int) -> Tensor:
        """Of a picture, [rows, 64]."""
        shown = normalized(hd_transform(Image.fromarray(image), num_crops))
        whole = F.interpolate(shown[None], size=(SIDE, SIDE), mode="bicubic")
        lines, columns = shown.shape[1] // SIDE, shown.shape[2] // SIDE
        tiles = shown.reshape(3, lines, SIDE, columns, SIDE).permute(1, 3, 0, 2, 4).reshape(-1, 3, SIDE, SIDE)
        seen = self.clip(torch.cat((whole, tiles)), output_hidden_states=True).hidden_states[-2][:, 1:]
        rows = torch.cat((self.lines(seen[1:], lines, columns), self.between[0], self.lines(seen[:1], 1, 1)))
        return self.down(F.gelu(self.up(rows)))

    def lines(self, seen: Tensor, lines: int, columns: int) -> Tensor:
        """Squares of 2 x 2 as rows, tiles beside each other, each line with its end."""
        count, half = SIDE // PATCH, SIDE // PATCH // 2
        squares = seen.reshape(-1, half, 2, half, 2, seen.shape[-1]).permute(0, 1, 3, 2, 4, 5)
        assert squares.shape[1] * 2 == count
        grid = squares.reshape(lines, columns, half, half, -1).permute(0, 2, 1, 3, 4)
        grid = grid.reshape(lines * half, columns * half, -1)
        return torch.cat((grid, self.line_end[0].expand(lines * half, 1, -1)), 1).flatten(0, 1)


def hd_transform(image: Image.Image, num_crops: int) -> Image.Image:
    is_high = image.width < image.height
    if is_high:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    ratio, scale = image.width / image.height, 1
    while scale * math.ceil(scale / ratio) <= num_crops:
        scale += 1
    width = (scale - 1) * SIDE
    image = image.resize((width, int(width / ratio)), Image.Resampling.BILINEAR)
    height = math.ceil(image.height / SIDE) * SIDE
    padded = Image.new("RGB", (width, height), (255, 255, 255))
    padded.paste(image, (0, int((height - image.height) / 2)))
    return padded.transpose(Image.Transpose.TRANSPOSE) if is_high else padded


def normalized(image: Image.Image) -> Tensor:
    """[3, H, W]."""
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (values - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]
