"""Texts in which media stand in front by themselves, and what ends them."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.base.errors import InvalidRequest
from octavo.base.media import PreparedMedia
from octavo.served.media_text import Mark, MediaText
from octavo.text.media.table import media_processor

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


def test_fuyu_shows_lines_of_whole_patches_and_begins_answers_behind_a_token() -> None:
    config = {"architectures": ["FuyuForCausalLM"], "patch_size": 30}
    processor = media_processor(config, {}, TOKENS.get)
    assert processor is not None and processor.placeholder_id == 71011
    media = processor.image(np.zeros((31, 80, 3), np.uint8), {})
    assert media.text == f"{'|SPEAKER|' * 3}|NEWLINE|" * 2 + "<s>" and media.rows == 6
    assert processor.image(np.zeros((2160, 1000, 3), np.uint8), {}).rows == 36 * 17
    assert processor.end_ids == (12,)  # type: ignore[attr-defined]
