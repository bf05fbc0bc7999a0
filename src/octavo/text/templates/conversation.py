"""The messages of a request as a chat template expects them.

What no template of a text model can take (images, sound) is refused with its place, and so is what is no message at
all: programs come here without the server's checks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from octavo.base.config import ContentFormatOption
from octavo.base.errors import InvalidRequest
from octavo.text.templates import simpler
from octavo.text.templates.call_arguments import template_arguments
from octavo.text.templates.chat_template import ChatTemplate, Message, TemplateRefusal

#: Kinds of content parts that are text -> the field that holds it.
_TEXT_PARTS: Final = {
    "text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking",
}  # fmt: skip
#: Names under which callers send the reasoning of earlier turns and templates read it, best first.
_REASONING: Final = ("reasoning_content", "reasoning", "thinking")


def render_conversation(
    template: ChatTemplate,
    messages: Sequence[Message],
    content_format: ContentFormatOption,
    *,
    simplify: bool = False,
    **options: Any,
) -> str:
    """The prompt's text. `options` are those of `ChatTemplate.render`. Raises `InvalidRequest`.

    `simplify`: where the template refuses the messages, it is given ever simpler ones that say the same.
    """
    as_parts = (template.content_format if content_format == "auto" else content_format) == "openai"

    def rendered(messages: Sequence[Message]) -> str:
        shown = [_shown(message, f"messages[{i}]", template, as_parts) for i, message in enumerate(messages)]
        return template.render(shown, **options)

    try:
        return rendered(messages)
    except TemplateRefusal:
        if not simplify:
            raise
        for simpler_messages in simpler.steps(messages):
            with contextlib.suppress(TemplateRefusal):
                return rendered(simpler_messages)
        raise


def _shown(message: Message, path: str, template: ChatTemplate, as_parts: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest("A message must be an object.", path)
    new = dict(message)  # in its order, which templates that print a message whole would show
    parts = _text_parts(message.get("content"), f"{path}.content")
    if not as_parts:
        new["content"] = "\n".join(parts)
    elif isinstance(message.get("content"), list) or (not template.accepts_strings and parts):
        new["content"] = [{"type": "text", "text": part} for part in parts]
    else:
        new["content"] = "".join(parts)
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


def _text_parts(content: object, path: str) -> list[str]:
    """The texts of a message's content. Raises `InvalidRequest` naming the part that is not text."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise InvalidRequest("`content` must be a string, a list of parts or null.", path)
    return [_text_part(part, f"{path}[{j}]") for j, part in enumerate(content)]


def _text_part(part: object, path: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise InvalidRequest("A content part must be an object with a `type`.", path)
    kind = part.get("type", "text")
    name = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if name is None:
        raise InvalidRequest(f"This model takes text only; a part of type {str(kind)[:40]!r} cannot be read.", path)
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
