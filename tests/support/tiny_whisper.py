"""Tiny random Whispers of transformers, and the real ones that packages carry as CTranslate2 containers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from octavo.base.media import MediaTensor

VOCAB = 128
CHANNELS = 8
ROWS = 24
#: Token ids of the tiny models: text below END, then what steers the decoder, then times.
END, START, FIRST_LANGUAGE, NUM_LANGUAGES = 50, 51, 52, 3
TRANSLATE, TRANSCRIBE, START_OF_LM, START_OF_PREVIOUS, NO_SPEECH, NO_TIMES, FIRST_TIME = 55, 56, 57, 58, 59, 60, 61


def make_whisper(directory: Path, **options: Any) -> Any:
    """A random model, saved to `directory`. Weights are large enough for differences to show."""
    config = transformers.WhisperConfig(
        **{
            "vocab_size": VOCAB, "num_mel_bins": CHANNELS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3,
            "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 64,
            "max_source_positions": ROWS, "max_target_positions": 2048, "decoder_start_token_id": START,
            "eos_token_id": END, "pad_token_id": END, "bos_token_id": END, "suppress_tokens": None,
            "begin_suppress_tokens": None, **options,
        }
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = transformers.WhisperForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name and name.endswith("weight")
            parameter.copy_(1.0 + 0.15 * noise if is_norm else 0.15 * noise)
    model.save_pretrained(directory)
    return model


def random_frames(seed: int, rows: int = ROWS, channels: int = CHANNELS) -> np.ndarray:
    """float32 [2 rows, channels]."""
    return np.random.default_rng(seed).standard_normal((2 * rows, channels)).astype(np.float32)


def tensor_of(frames: np.ndarray) -> MediaTensor:
    return MediaTensor("float32", frames.shape, frames.tobytes())


def logits_of(model: Any, frames: np.ndarray, decoder_ids: list[int]) -> torch.Tensor:
    """[decoder's tokens, V]."""
    with torch.no_grad():
        logits: torch.Tensor = model(
            input_features=torch.from_numpy(frames.T.copy())[None], decoder_input_ids=torch.tensor([decoder_ids])
        ).logits
    return logits[0]
