"""A video from end to end, with a tiny random Qwen3-VL: its frames are rows, and their times stand in the text."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from octavo import LLM, SamplingParams
from octavo.base.errors import InvalidRequest
from support.media_fakes import data_url, encoded, picture

pytestmark = pytest.mark.slow

SPECIAL = ["<unk>", "</s>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
WORDS = [*SPECIAL, *"abcdefghijklmnopqrstuvwxyzU:A\n ?<>.0123456789"]
PARTS = "".join(
    f"{{% if p.type == '{kind}' %}}<|vision_start|><|{kind}_pad|><|vision_end|>{{% endif %}}"
    for kind in ("image", "video")
)
TEMPLATE = (
    "{% for m in messages %}{% for p in m.content %}" + PARTS + "{% if p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endfor %}a:"
)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import tokenizers
    import torch
    import transformers

    path = tmp_path_factory.mktemp("qwen")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "eos_token_id": 1,
        "rope_parameters": rope,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 48, "intermediate_size": 64, "num_heads": 3, "patch_size": 4, "out_hidden_size": 64,
        "num_position_embeddings": 25, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    torch.manual_seed(0)
    ids = {"image_token_id": 2, "video_token_id": 3, "vision_start_token_id": 4, "vision_end_token_id": 5}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    model = transformers.Qwen3VLForConditionalGeneration(config).eval().float()
    for parameter in model.parameters():  # wide, so that a picture shows
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.15)
    model.save_pretrained(path)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.add_special_tokens(SPECIAL)
    backend.decoder = tokenizers.decoders.Fuse()
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": TEMPLATE}))
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (path / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 64, "max_pixels": 1024, **half}))
    video = {"size": {"shortest_edge": 256, "longest_edge": 4096}, **half}
    (path / "video_preprocessor_config.json").write_text(json.dumps(video))
    with LLM(str(path), num_threads=1) as made:
        yield made


FRAMES = [picture(16, 16, (60 * i, 255 - 60 * i, 9)) for i in range(4)]
SAMPLING = SamplingParams(temperature=0, max_tokens=8)


def film(seconds: float) -> dict[str, Any]:
    duration = int(seconds * 1000) // len(FRAMES)
    data = encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:], duration=duration)
    return {"type": "video_url", "video_url": {"url": data_url(data, "video/gif")}}


def asked(llm: LLM, *parts: Any, **options: Any) -> Any:
    [result] = llm.chat([{"role": "user", "content": list(parts)}], SAMPLING, use_tqdm=False, **options)
    return result


def test_a_video_is_read_with_its_times(llm: LLM) -> None:
    say = {"type": "text", "text": "what?"}
    result = asked(llm, film(4.0), say)
    frame = "<|vision_start|>" + "<|video_pad|>" * 4 + "<|vision_end|>"
    prompt = f"<0.5 seconds>{frame}<2.5 seconds>{frame}what?a:"
    tokens = llm.get_tokenizer().encode(prompt, add_special_tokens=False)
    assert list(result.prompt_token_ids) == list(tokens)
    slower = asked(llm, film(8.0), say)
    assert slower.outputs[0].token_ids and list(slower.prompt_token_ids) != list(tokens)
    arrays = [np.asarray(frame) for frame in FRAMES]
    given = {
        "prompt": prompt.replace(
            f"<0.5 seconds>{frame}<2.5 seconds>{frame}", "<|vision_start|><|video_pad|><|vision_end|>"
        )
    }
    [made] = llm.generate({**given, "multi_modal_data": {"video": [arrays]}}, SAMPLING, use_tqdm=False)
    assert len(made.prompt_token_ids) == len(tokens)
    with pytest.raises(InvalidRequest, match=r"`<\|vision_start\|><\|video_pad\|><\|vision_end\|>` 0 times"):
        llm.generate({"prompt": "what?", "multi_modal_data": {"video": [arrays]}}, SAMPLING, use_tqdm=False)
