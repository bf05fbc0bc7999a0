"""The messages of a request as a chat template expects them.

What no template of a text model can take (images, sound) is refused with its place, and so is what is no message at
all: programs come here without the server's checks. Where the model takes media, each stands in a message as a mark,
{"type": "image"}: a template that reads parts shows it with the family's placeholder; for any other, the placeholders
of a message come before its text, but for those that the text has itself.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from octavo.base.config import ContentFormatOption
from octavo.base.errors import InvalidRequest
from octavo.base.media import placeholder_pattern
from octavo.media.part import part_type, text_only
from octavo.text.templates import simpler
from octavo.text.templates.call_arguments import template_arguments
from octavo.text.templates.chat_template import ChatTemplate, Message, TemplateRefusal

#: Kinds of content parts that are text -> the field that holds it.
_TEXT_PARTS: Final = {
    "text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking",
}  # fmt: skip
#: Kinds of marks.
_MARKS: Final = ("image", "audio", "video")
#: Names under which callers send the reasoning of earlier turns and templates read it, best first.
_REASONING: Final = ("reasoning_content", "reasoning", "thinking")


def render_conversation(
    template: ChatTemplate,
    messages: Sequence[Message],
    content_format: ContentFormatOption,
    *,
    simplify: bool = False,
    media: Mapping[str, str] | None = None,
    shown_media: Mapping[str, str] | None = None,
    **options: Any,
) -> str:
    """The prompt's text. `options` are those of `ChatTemplate.render`. Raises `InvalidRequest`.

    `simplify`: where the template refuses the messages, it is given ever simpler ones that say the same. `media`: kind
    of mark -> its placeholder; None: the model takes text only. `shown_media`: with what the model's templates
    write around it.
    """
    as_parts = (template.content_format if content_format == "auto" else content_format) == "openai"
    marked = bool(media) and any(map(_has_marks, messages))

    def shown(messages: Sequence[Message], with_marks: bool) -> str:
        form = _Form(template, as_parts, media, {**(media or {}), **(shown_media or {})}, with_marks)
        return template.render([_shown(m, f"messages[{i}]", form) for i, m in enumerate(messages)], **options)

    def rendered(messages: Sequence[Message]) -> str:
        if not (marked and as_parts):
            return shown(messages, False)
        try:
            text = shown(messages, True)
        except TemplateRefusal:
            text = ""
        # A template that reads parts may know texts alone.
        return text if _shows_all(text, messages, media or {}) else shown(messages, False)

    try:
        return rendered(messages)
    except TemplateRefusal:
        if not simplify:
            raise
        for simpler_messages in simpler.steps(messages):
            with contextlib.suppress(TemplateRefusal):
                return rendered(simpler_messages)
        raise


@dataclass(frozen=True, slots=True)
class _Form:
    """How a template sees contents. `with_marks`: media are parts of their own; else text, as `shown` has it."""

    template: ChatTemplate
    as_parts: bool
    media: Mapping[str, str] | None
    shown: Mapping[str, str]
    with_marks: bool


@dataclass(frozen=True, slots=True)
class _Mark:
    kind: str


def _shown(message: Message, path: str, form: _Form) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest("A message must be an object.", path)
    template = form.template
    new = dict(message)  # in its order, which templates that print a message whole would show
    parts = _parts(message.get("content"), f"{path}.content", form.media)
    if not form.with_marks:
        parts = _with_placeholders(parts, form)
    if not form.as_parts:
        new["content"] = "\n".join(map(str, parts))
    elif isinstance(message.get("content"), list) or (not template.accepts_strings and parts):
        new["content"] = [
            {"type": part.kind} if isinstance(part, _Mark) else {"type": "text", "text": part} for part in parts
        ]
    else:
        new["content"] = "".join(map(str, parts))
    if message.get("role") == "developer" and not template.knows_developer:
        new["role"] = "system"
    if calls := _calls(message.get("tool_calls"), f"{path}.tool_calls"):
        new["tool_calls"] = calls
    else:
        new.pop("tool_calls", None)  # templates take even an empty list for a message that calls
    return new | _reasoning(message, path)


def _reasoning(message: Message, path: str) -> dict[str, str]:
    """T27: the reasoning under all its names; under each its own, where the caller sends several."""
    given = {name: message[name] for name in _REASONING if message.get(name) is not None}
    for name, text in given.items():
        if not isinstance(text, str):
            raise InvalidRequest(f"`{name}` must be a string.", f"{path}.{name}")
    return {name: given.get(name, next(iter(given.values()))) for name in _REASONING} if given else {}


def _has_marks(message: Message) -> bool:
    content = message.get("content") if isinstance(message, Mapping) else None
    return isinstance(content, list) and any(_is_mark(part) for part in content)


def _is_mark(part: object) -> bool:
    """What stands for a medium: its kind and nothing more. What callers send has a source."""
    return isinstance(part, Mapping) and len(part) == 1 and part.get("type") in _MARKS


def _with_placeholders(parts: Sequence[str | _Mark], form: _Form) -> list[str | _Mark]:
    """Texts alone: a medium stands on its own line, before the text, as the models were trained; but where the text
    has placeholders, its author has chosen their places."""
    texts = [part for part in parts if not isinstance(part, _Mark)]
    kinds = [part.kind for part in parts if isinstance(part, _Mark)]
    if not kinds:
        return list(texts)
    media = form.media or {}
    written = {kind: sum(_count(text, media[kind]) for text in texts) for kind in set(kinds)}
    missing = []
    for kind in kinds:
        if written[kind] > 0:
            written[kind] -= 1
        else:
            missing.append(form.shown[kind])
    return ["\n".join([*missing, *texts])]


def _shows_all(text: str, messages: Sequence[Message], media: Mapping[str, str]) -> bool:
    """Whether a prompt has a placeholder for each mark of its messages."""
    marks = Counter(
        part["type"] for message in messages if _has_marks(message) for part in message["content"] if _is_mark(part)
    )
    return all(_count(text, media[kind]) >= count for kind, count in marks.items())


def _count(text: str, placeholder: str) -> int:
    return len(re.findall(placeholder_pattern(placeholder), text))


def _parts(content: object, path: str, media: Mapping[str, str] | None) -> list[str | _Mark]:
    """The texts of a message's content, and marks. Raises `InvalidRequest` naming the part that is neither."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise InvalidRequest("`content` must be a string, a list of parts or null.", path)
    return [_part(part, f"{path}[{j}]", media) for j, part in enumerate(content)]


def _part(part: object, path: str, media: Mapping[str, str] | None) -> str | _Mark:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise InvalidRequest("A content part must be an object with a `type`.", path)
    kind = part_type(part)
    if media and _is_mark(part) and kind in media:
        return _Mark(str(kind))
    name = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if name is None and media:
        raise InvalidRequest(f"A part of type {str(kind)[:40]!r} cannot be read.", path)
    if name is None:
        raise InvalidRequest(text_only(kind), path)
    text = part.get(name)
    if not isinstance(text, str):
        raise InvalidRequest(f"A part of type {kind!r} needs a string `{name}`.", f"{path}.{name}")
    return text


def _calls(calls: object, path: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list | None):
        raise InvalidRequest("`tool_calls` must be a list.", path)
    return [_with_parsed_arguments(call, f"{path}[{i}]") for i, call in enumerate(calls or [])]


def _with_parsed_arguments(call: object, path: str) -> dict[str, Any]:
    """T13: a tool call whose `arguments` are an object, as `template_arguments` makes it."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise InvalidRequest("A tool call needs an object `function`.", f"{path}.function")
    try:
        arguments = template_arguments(function.get("arguments"))
    except ValueError as error:
        raise InvalidRequest(
            f"The arguments of a tool call must have a JSON form: {error}.", f"{path}.function.arguments"
        ) from None
    return {**call, "function": {**function, "arguments": arguments}}
