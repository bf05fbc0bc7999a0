"""Ultravox as its authors publish it, which transformers has not: Whisper's encoder and Llama of transformers, with
what stands between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

CHANNELS = 8
ROWS = 50  # of the encoder in a piece of a sound
AUDIO: dict[str, Any] = {
    "model_type": "whisper", "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "num_mel_bins": CHANNELS, "max_source_positions": ROWS, "vocab_size": 64, "decoder_layers": 1,
    "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
    "decoder_start_token_id": 0,
}  # fmt: skip


class Projector(nn.Module):
    def __init__(self, size: int, width: int, *, stack: int, norm_inside: bool) -> None:
        super().__init__()
        self.stack = stack
        self.ln_pre = nn.RMSNorm(AUDIO["d_model"] * stack, eps=1e-6)
        self.linear_1 = nn.Linear(AUDIO["d_model"] * stack, size, bias=False)
        self.linear_2 = nn.Linear(size // 2, width, bias=False)
        if norm_inside:
            self.ln_mid = nn.RMSNorm(size // 2, eps=1e-6)
        else:
            self.ln_post = nn.RMSNorm(width, eps=1e-6)

    def forward(self, rows: Tensor) -> Tensor:
        """[rows, width], as many at a time as are stacked; zeros where there are no more."""
        stacked = nn.functional.pad(rows, (0, 0, 0, -len(rows) % self.stack)).view(-1, self.stack * rows.shape[1])
        value, gate = self.linear_1(self.ln_pre(stacked)).chunk(2, dim=-1)
        inner = nn.functional.silu(gate) * value
        if hasattr(self, "ln_mid"):
            return self.linear_2(self.ln_mid(inner))
        return self.ln_post(self.linear_2(inner))


class Ultravox(nn.Module):
    def __init__(self, text: dict[str, Any], *, size: int = 24, stack: int = 8, norm_inside: bool = True) -> None:
        super().__init__()
        audio = transformers.WhisperConfig(**AUDIO)
        audio._attn_implementation = "eager"
        self.audio_tower = WhisperEncoder(audio)
        self.multi_modal_projector = Projector(size, text["hidden_size"], stack=stack, norm_inside=norm_inside)
        self.language_model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**text))
        self.extractor = transformers.WhisperFeatureExtractor(feature_size=CHANNELS)
        self.config = {
            "architectures": ["UltravoxModel"], "model_type": "ultravox", "audio_model_id": None,
            "text_model_id": None, "audio_config": AUDIO, "text_config": text, "hidden_size": size,
            "stack_factor": stack, "projector_act": "swiglu", "projector_ln_mid": norm_inside, "norm_init": 0.4,
            "audio_model_lora_config": {"r": 0, "lora_alpha": 8}, "text_model_lora_config": {"r": 0, "lora_alpha": 8},
            "auto_map": {"AutoModel": "ultravox_model.UltravoxModel"}, "audio_latency_block_size": None,
        }  # fmt: skip

    def rows(self, samples: np.ndarray) -> Tensor:
        """What the language model reads of a sound at 16 kHz, [rows, width]."""
        padded = np.pad(samples, (0, max(0, 320 - len(samples))))
        padded = np.pad(padded, (0, -len(padded) % 160))
        [found] = self.extractor._np_extract_fbank_features(padded[None], "cpu")
        frames = torch.from_numpy(found.astype(np.float32))
        parts = []
        for first in range(0, frames.shape[1], 2 * ROWS):
            piece = frames[:, first : first + 2 * ROWS]
            length = piece.shape[1]
            if first:
                piece = nn.functional.pad(piece, (0, 2 * ROWS - length))
            made = self.multi_modal_projector(self.encoded(piece, -(-length // 2)))
            parts.append(made[: -(-length // (2 * self.multi_modal_projector.stack))])
        return torch.cat(parts)

    def encoded(self, frames: Tensor, length: int) -> Tensor:
        """Of frames [channels, T] the rows of the encoder, all of which see the first `length`."""
        tower = self.audio_tower
        rows = nn.functional.gelu(tower.conv2(nn.functional.gelu(tower.conv1(frames[None])))).transpose(1, 2)
        rows = rows + tower.embed_positions.weight[: rows.shape[1]]
        mask = torch.zeros(1, 1, rows.shape[1], rows.shape[1])
        mask[..., length:] = torch.finfo(torch.float32).min
        for layer in tower.layers:
            made = layer(rows, mask)
            rows = made[0] if isinstance(made, tuple) else made
        return tower.layer_norm(rows)[0]

    @torch.no_grad()
    def logits(self, ids: list[int], placeholder: int, sounds: list[np.ndarray]) -> Tensor:
        """[tokens, V] of a prompt that has a placeholder for each row of its sounds."""
        given = torch.tensor(ids)
        embedded = self.language_model.get_input_embeddings()(given)
        if sounds:
            embedded[given == placeholder] = torch.cat([self.rows(samples) for samples in sounds])
        return self.language_model(inputs_embeds=embedded[None]).logits[0]

    def save(self, path: Path) -> None:
        """In one directory, with all weights."""
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(self.config))

    def save_in_parts(self, path: Path, *, keeps_audio: bool) -> None:
        """As it is published: the projector, perhaps with the encoder, and the directories of the others beside it."""
        config, tensors = dict(self.config), self.state_dict()
        own = ("multi_modal_projector.", "audio_tower.") if keeps_audio else ("multi_modal_projector.",)
        self.language_model.save_pretrained(path / "some" / "llama")
        del config["text_config"]
        config["text_model_id"] = "some/llama"
        if not keeps_audio:
            whisper = transformers.WhisperForConditionalGeneration(self.audio_tower.config)
            whisper.model.encoder.load_state_dict(self.audio_tower.state_dict())
            whisper.save_pretrained(path / "whisper")
            del config["audio_config"]
            config["audio_model_id"] = str(path / "whisper")
        kept = {name: value.contiguous() for name, value in tensors.items() if name.startswith(own)}
        save_file(kept, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(config))


def widen(model: nn.Module) -> None:
    """Random weights, so large that a wrong row shows."""
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.15)
