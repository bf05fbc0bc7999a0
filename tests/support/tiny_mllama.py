"""A tiny random Llama 3.2 with vision, and what transformers makes of a prompt with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from octavo.base.media import place_media
from octavo.base.params import SamplingParams
from octavo.text.media.table import media_processor
from octavo.wire.messages import AddRequest

#: The token of a picture, the first behind the vocabulary.
IMAGE: Final = 96
SETTINGS: Final[dict[str, Any]] = {"size": {"height": 16, "width": 16}, "max_image_tiles": 4}
VISION: Final[dict[str, Any]] = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_global_layers": 2, "attention_heads": 4,
    "image_size": 16, "patch_size": 4, "intermediate_layers_indices": [0, 2], "vision_output_dim": 144,
    "max_num_tiles": 4,
}  # fmt: skip
TEXT: Final[dict[str, Any]] = {
    "vocab_size": IMAGE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "cross_attention_layers": [1, 3], "bos_token_id": 1,
    "eos_token_id": None, "pad_token_id": 2,
}  # fmt: skip


def make_mllama(path: Path, vision: dict[str, Any] | None = None, **text: Any) -> Any:
    """Saved there, and as transformers' model. `vision`, `text`: in place of `VISION` and `TEXT`."""
    import transformers

    torch.manual_seed(0)
    config = transformers.MllamaConfig(
        text_config=TEXT | text, vision_config=VISION | (vision or {}), image_token_index=IMAGE
    )
    model = transformers.MllamaForConditionalGeneration(config).eval().float()
    for parameter in model.parameters():  # wide, so that a wrong row shows
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.15)
        if parameter.numel() == 1:
            parameter.data = torch.full_like(parameter, 0.7)
    model.save_pretrained(path)
    return model


def asking(number: int, ids: Sequence[int], images: Sequence[np.ndarray], **params: Any) -> AddRequest:
    """`ids` has an `IMAGE` for each of `images`."""
    config = {"architectures": ["MllamaForConditionalGeneration"], "vision_config": VISION, "image_token_index": IMAGE}
    processor = media_processor(config, SETTINGS, lambda text: None)
    assert processor is not None
    sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": 6, "logprobs": 0, **params})
    media = place_media(ids, IMAGE, [processor.image(image, {}) for image in images])
    return AddRequest(number, list(ids), sampling, media=media)


def logprobs_of(model: Any, ids: Sequence[int], images: Sequence[np.ndarray]) -> torch.Tensor:
    """float32 [T, vocabulary]: transformers' of all tokens, with its own processor and mask."""
    from transformers.models.mllama import processing_mllama as processing
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    inputs: dict[str, Any] = {}
    if images:
        inputs = dict(MllamaImageProcessorPil(**SETTINGS)([list(images)], return_tensors="pt"))
        seen = [processing.get_cross_attention_token_mask(list(ids), IMAGE)]
        mask = processing.convert_sparse_cross_attention_mask_to_dense(seen, inputs.pop("num_tiles"), 4, len(ids))
        inputs["cross_attention_mask"] = torch.tensor(mask)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)]), **inputs).logits[0]
    result: torch.Tensor = logits.float().log_softmax(-1)
    return result
