"""Where the placeholders of media stand in a prompt: as the template shows parts, else before the text."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.base.errors import InvalidRequest
from octavo.text.templates.chat_template import ChatTemplate
from octavo.text.templates.conversation import render_conversation

MEDIA = {"image": "<image>", "audio": "<sound>"}
#: Reads strings only.
STRINGS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
#: Reads parts, and images among them.
PARTS = (
    "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{% if p.type == 'image' %}<start><image>"
    "{% elif p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{{ '\\n' }}{% endfor %}"
)
#: Reads both, and images first, as LLaVA's does.
FIRST = (
    "{% for m in messages %}{{ m.role }}: {% for p in m.content if p.type == 'image' %}<image>\n{% endfor %}"
    "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{{ '\\n' }}{% endfor %}"
)
#: Reads parts, and none but texts.
TEXTS = "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{{ p.text }}{% endfor %}{{ '\\n' }}{% endfor %}"
#: Refuses what is no text.
STRICT = (
    "{% for m in messages %}{% for p in m.content %}{% if p.type != 'text' %}{{ raise_exception('Text only!') }}"
    "{% endif %}{{ p.text }}{% endfor %}{% endfor %}"
)
IMAGE, SOUND = {"type": "image"}, {"type": "audio"}


def say(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def rendered(template: str, *parts: Any, media: Any = MEDIA, **options: Any) -> str:
    messages = [{"role": "user", "content": list(parts)}]
    return render_conversation(ChatTemplate(template, {}), messages, "auto", media=media, **options)


@pytest.mark.parametrize(
    ("template", "parts", "expected"),
    [
        (STRINGS, [say("a"), IMAGE], "user: <image>\na\n"),
        (STRINGS, [IMAGE, say("a"), IMAGE, say("b")], "user: <image>\n<image>\na\nb\n"),
        (STRINGS, [IMAGE], "user: <image>\n"),
        (STRINGS, [IMAGE, SOUND, say("a")], "user: <image>\n<sound>\na\n"),
        (STRINGS, [IMAGE, IMAGE, say("a <image> b <image>")], "user: a <image> b <image>\n"),  # places of its own
        (STRINGS, [IMAGE, IMAGE, say("a <image> b")], "user: <image>\na <image> b\n"),
        (STRINGS, [say("a")], "user: a\n"),
        (PARTS, [say("a"), IMAGE, say("b")], "user: a<start><image>b\n"),
        (PARTS, [IMAGE, SOUND, say("b")], "user: <image>\n<sound>\nb\n"),  # it knows no sounds
        (FIRST, [say("a"), IMAGE], "user: <image>\na\n"),
        (TEXTS, [say("a"), IMAGE, IMAGE], "user: <image>\n<image>\na\n"),
        (STRICT, [say("a"), IMAGE], "<image>\na"),
    ],
)
def test_each_medium_has_one_placeholder_in_the_prompt(template: str, parts: list[Any], expected: str) -> None:
    assert rendered(template, *parts) == expected


MARKED = {"image": "<start><image><end>"}


@pytest.mark.parametrize(
    ("template", "parts", "expected"),
    [
        (STRINGS, [IMAGE, say("a")], "user: <start><image><end>\na\n"),
        (TEXTS, [IMAGE, IMAGE, say("a")], "user: <start><image><end>\n<start><image><end>\na\n"),
        (STRINGS, [IMAGE, SOUND, say("a")], "user: <start><image><end>\n<sound>\na\n"),
        (
            STRINGS,
            [IMAGE, IMAGE, say("a <image> b")],
            "user: <start><image><end>\na <image> b\n",
        ),
        (STRINGS, [IMAGE, say("a <start><image><end>")], "user: a <start><image><end>\n"),
        (PARTS, [say("a"), IMAGE], "user: a<start><image>\n"),  # as the template has it
    ],
)
def test_what_a_model_has_around_its_placeholder_is_written_with_it(
    template: str, parts: list[Any], expected: str
) -> None:
    assert rendered(template, *parts, shown_media=MARKED) == expected


def test_the_server_may_say_how_its_template_sees_contents() -> None:
    messages = [{"role": "user", "content": [say("a"), IMAGE]}]
    text = render_conversation(
        ChatTemplate(PARTS.replace("m.content", "m['content']"), {}), messages, "openai", media=MEDIA
    )
    assert text == "user: a<start><image>\n"
    text = render_conversation(ChatTemplate(STRINGS, {}), messages, "string", media=MEDIA)
    assert text == "user: <image>\na\n"


def test_simpler_messages_keep_their_media() -> None:
    template = (
        "{% for m in messages %}{% if loop.index0 % 2 != (m.role == 'assistant')|int %}{{ raise_exception('Turns!') }}"
        "{% endif %}{{ m.role }}: {% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}{{ p.text }}"
        "{% endif %}{% endfor %}{{ '\\n' }}{% endfor %}"
    )
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [say("a"), IMAGE]},
        {"role": "user", "content": [IMAGE, say("b")]},
    ]
    text = render_conversation(ChatTemplate(template, {}), messages, "auto", media=MEDIA, simplify=True)
    assert text == "user: sa<image><image>b\n"


@pytest.mark.parametrize(
    ("part", "media", "words"),
    [
        (IMAGE, None, "takes text only; a part of type 'image'"),
        ({"type": "image", "image": "x"}, MEDIA, "A part of type 'image' cannot be read"),
        (SOUND, {"image": "<image>"}, "A part of type 'audio' cannot be read"),
        ({"image_url": "x"}, None, "takes text only; a part of type 'image_url'"),
        ({"type": "video"}, MEDIA, "A part of type 'video' cannot be read"),
    ],
)
def test_what_stands_for_no_medium_is_refused(part: Any, media: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        rendered(STRINGS, part, media=media)
    assert caught.value.param == "messages[0].content[0]"
