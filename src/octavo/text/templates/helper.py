"""Tries out and renders chat templates, in a process of its own: `python -m octavo.text.templates.helper`.

Templates are programs of strangers. Their loops and their output are bounded from within (`sandbox`), but one
call into the interpreter, such as `tojson` of a list that holds itself many times over, cannot be interrupted. Whoever
started this process may kill it at any moment; nothing is lost but the rendering in hand.

Frames on stdin and stdout (`frames`). In: {source, special_tokens, seconds} to try a template out, and with messages,
content_format and options to render them. Out: {text}; {refused, param}, the caller's or the template's own error; or
{broken}, no template.
"""

from __future__ import annotations

from typing import Any, Final

from octavo.base.confined import confine, in_time
from octavo.base.errors import InvalidRequest
from octavo.base.frames import serve_frames
from octavo.text.templates.chat_template import ChatTemplate, TemplateSyntaxError
from octavo.text.templates.conversation import render_conversation

MAX_ADDRESS_SPACE: Final = 1 << 30


def handle(request: dict[str, Any]) -> dict[str, Any]:
    try:
        template = ChatTemplate(request["source"], request["special_tokens"])
        if "messages" not in request:
            template.check()
            return {"text": ""}
        text = render_conversation(template, request["messages"], request["content_format"], **request["options"])
        return {"text": text}
    except TemplateSyntaxError as error:
        return {"broken": str(error)}
    except InvalidRequest as error:
        return {"refused": error.message, "param": error.param}
    except (MemoryError, RecursionError) as error:
        return {"refused": f"The chat template failed: {type(error).__name__}", "param": "chat_template"}


def main() -> None:
    confine(MAX_ADDRESS_SPACE)
    serve_frames(in_time(handle))


if __name__ == "__main__":
    main()
