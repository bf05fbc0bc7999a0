"""What stands for media in a prompt's text: placeholders and texts with a number too."""

from __future__ import annotations

import pytest

from octavo.base.errors import InvalidRequest
from octavo.base.media import PreparedMedia
from octavo.served.media_text import Mark, MediaText
from octavo.text.templates.chat_template import ChatTemplate
from octavo.text.templates.conversation import render_conversation

#: A template that knows strings alone, as Phi-3-V's.
STRINGS = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
NUMBERED = "<|image_{n}|>"


def mark(text: str) -> Mark:
    return Mark("image", PreparedMedia("image", b"", {}, 1, text))


def test_numbered_placeholders_are_those_of_the_media_in_order() -> None:
    text = MediaText({"image": (NUMBERED, 5)})
    marks = [mark("one"), mark("two")]
    assert text.expanded("<|image_1|>\n<|image_2|>\nWhat?", marks, "prompt") == "one\ntwo\nWhat?"
    assert text.expanded("<|image_{n}|> and <|image_2|>", marks, "prompt") == "one and two"
    with pytest.raises(InvalidRequest, match=r"`<\|image_2\|>` where `<\|image_1\|>` comes next"):
        text.expanded("<|image_2|><|image_1|>", marks, "prompt")
    with pytest.raises(InvalidRequest, match="3 times"):
        text.expanded("<|image_1|><|image_2|><|image_3|>", marks, "prompt")


def test_a_number_in_what_stands_for_a_medium_is_counted_from_0() -> None:
    text = MediaText({"image": ("<image>", 5)})
    marks = [mark("<id>{n}</id>a"), mark("<id>{n}</id>b")]
    assert text.expanded("x<image>y<image>{n}", marks, "prompt") == "x<id>0</id>ay<id>1</id>b{n}"
    assert text.expanded_ids([1, 2, 1], marks, lambda word: [1] if word == "<image>" else [len(word)]) == [11, 2, 11]


def test_a_conversation_numbers_its_media_over_all_of_its_turns() -> None:
    image = {"type": "image"}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, image]},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [image, {"type": "text", "text": "<|image_2|>\nc"}]},
    ]
    text = render_conversation(ChatTemplate(STRINGS, {}), messages, "auto", media={"image": NUMBERED})
    assert text.count("<|image_") == 2
    found = MediaText({"image": (NUMBERED, 5)}).expanded(text, [mark("ONE"), mark("TWO")], "messages")
    assert found == "<|user|>\nONE\na<|end|>\n<|assistant|>\nb<|end|>\n<|user|>\nTWO\nc<|end|>\n"
