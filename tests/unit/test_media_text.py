"""Texts in which media stand in front by themselves, what stands around them, and what ends them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from octavo.base.config import ServerConfig
from octavo.base.errors import CheckpointError, InvalidRequest
from octavo.base.media import PreparedMedia
from octavo.served.media import MediaReader
from octavo.served.media_text import Mark, MediaText
from octavo.served.media_values import embeds
from octavo.text.media.table import media_processor
from octavo.text.templates.chat_template import ChatTemplate
from octavo.text.templates.conversation import render_conversation

TOKENS = {"|SPEAKER|": 71011, "<0x04>": 12}


def prepared(rows: int) -> Mark:
    return Mark("image", PreparedMedia("image", b"", {}, rows, "R" * rows + "<s>"))


def test_a_text_without_placeholders_has_its_media_in_front() -> None:
    text = MediaText({"image": ("<image>", 5)}, brings_bos=True)
    assert text.expanded("what?", [prepared(2), prepared(1)], "prompt") == "RR<s>R<s>what?"
    assert text.expanded("a <image> b", [prepared(2)], "prompt") == "a RR<s> b"
    with pytest.raises(InvalidRequest, match="1 times"):
        text.expanded("a <image> b", [prepared(2), prepared(1)], "prompt")
    with pytest.raises(InvalidRequest, match="0 times"):
        MediaText({"image": ("<image>", 5)}).expanded("what?", [prepared(2)], "prompt")


def test_chameleon_shows_codes_between_marks_and_begins_answers_behind_a_token() -> None:
    config = {"architectures": ["ChameleonForConditionalGeneration"], "vocabulary_map": {"<image>": 8711}}
    processor = media_processor(config, {}, {"<reserved08706>": 8710}.get)
    assert processor is not None and processor.placeholder_id == 8711
    media = processor.image(np.zeros((31, 80, 3), np.uint8), {})
    assert media.text == f"<racm3:break>{'<image>' * 1024}<eoss>" and media.rows == 1024
    assert processor.end_ids == (8710,)  # type: ignore[attr-defined]


def test_blip2_has_a_token_for_each_query_in_front_of_the_first_of_a_text() -> None:
    config = {"architectures": ["Blip2ForConditionalGeneration"], "image_token_index": 50265, "num_query_tokens": 8}
    processor = media_processor(config, {"size": {"height": 224, "width": 224}}, TOKENS.get)
    assert processor is not None and processor.brings_bos  # type: ignore[attr-defined]
    assert processor.image(np.zeros((31, 80, 3), np.uint8), {}).text == "<image>" * 8 + "</s>"
    with pytest.raises(CheckpointError, match="image_token_index"):
        media_processor({**config, "image_token_index": None}, {}, TOKENS.get)


def test_fuyu_shows_lines_of_whole_patches_and_begins_answers_behind_a_token() -> None:
    config = {"architectures": ["FuyuForCausalLM"], "patch_size": 30}
    processor = media_processor(config, {}, TOKENS.get)
    assert processor is not None and processor.placeholder_id == 71011
    media = processor.image(np.zeros((31, 80, 3), np.uint8), {})
    assert media.text == f"{'|SPEAKER|' * 3}|NEWLINE|" * 2 + "<s>" and media.rows == 6
    assert processor.image(np.zeros((2160, 1000, 3), np.uint8), {}).rows == 36 * 17
    assert processor.end_ids == (12,)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("family", "kind", "expected"),
    [
        ("Qwen2VL", "image", "<|vision_start|><|image_pad|><|vision_end|>"),
        ("Qwen2_5_VL", "video", "<|vision_start|><|video_pad|><|vision_end|>"),
        ("Qwen3VL", "video", "<|vision_start|><|video_pad|><|vision_end|>"),
        ("Glm4v", "image", "<|begin_of_image|><|image|><|end_of_image|>"),
    ],
)
def test_marks_stand_around_a_medium_before_a_template_that_knows_none(family: str, kind: str, expected: str) -> None:
    own = media_processor({"architectures": [f"{family}ForConditionalGeneration"]}, {}, {"<|video_pad|>": 9}.get)
    assert own is not None
    text = MediaReader(own, ServerConfig()).text
    messages = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": "What?"}]}]
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {})
    shown = render_conversation(template, messages, "auto", media=text.placeholders, shown_media=text.shown)
    assert shown == f"{expected}\nWhat?"


@pytest.mark.parametrize(
    ("family", "config", "expected"),
    [
        ("Llava", {"vision_config": {"model_type": "clip_vision_model"}}, "<image>" * 3),
        ("LlavaNext", {"vision_config": {"image_size": 336}}, "<image>" * 3),
        ("InternVL", {}, f"<img>{'<IMG_CONTEXT>' * 3}</img>"),
        ("PaliGemma", {}, f"{'<image>' * 3}<bos>"),
        ("Qwen2VL", {}, None),  # whose rows have places
    ],
)
def test_rows_that_are_ready_stand_where_those_of_a_picture_do(
    family: str, config: dict[str, Any], expected: str | None
) -> None:
    config = {"architectures": [f"{family}ForConditionalGeneration"], "image_token_index": 5, **config}
    own = media_processor(config, {}, {}.get)
    assert own is not None
    file = io.BytesIO()
    np.save(file, np.ones((3, 8), np.float32))
    if expected is None:
        with pytest.raises(InvalidRequest, match="takes no embeddings"):
            embeds(file.getvalue(), own, 8, "image")
        return
    assert embeds(file.getvalue(), own, 8, "image").text == expected
    for width, told in ((0, "takes no embeddings"), (16, r"\[rows, 16\]")):
        with pytest.raises(InvalidRequest, match=told):
            embeds(file.getvalue(), own, width, "image")
