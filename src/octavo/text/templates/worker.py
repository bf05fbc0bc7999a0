"""Chat templates of strangers are tried out and rendered in a helper process that is killed when its time is up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from octavo.base.config import ContentFormatOption
from octavo.base.errors import InvalidRequest
from octavo.base.helper_process import HelperEnded, HelperProcess
from octavo.text.templates.chat_template import MAX_SECONDS, Message, TemplateSyntaxError

COMMAND: Final = HelperProcess.command("octavo.text.templates.helper")


class TemplateWorker:
    """One helper for one template at a time. Its methods block, and may be called from any thread."""

    def __init__(
        self,
        *,
        seconds: float = MAX_SECONDS + 1,  # after the bound from within, whose message says more
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        self._seconds = seconds
        self._helper = HelperProcess(command, "renders chat templates")

    def check(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """`ChatTemplate.check`, with what compiling raises."""
        self._ask({"source": source, "special_tokens": dict(special_tokens)})

    def render(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        messages: Sequence[Message],
        content_format: ContentFormatOption,
        options: Mapping[str, Any],
    ) -> str:
        """`render_conversation`, with what compiling raises."""
        reply = self._ask(
            {
                "source": source,
                "special_tokens": dict(special_tokens),
                "messages": list(messages),
                "content_format": content_format,
                "options": dict(options),
            }
        )
        return str(reply["text"])

    def close(self) -> None:
        """End the helper, in the middle of a template if need be. A later call starts a new one."""
        self._helper.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            reply = self._helper.ask(request | {"seconds": self._seconds}, self._seconds)
        except TimeoutError:
            message = f"The chat template was stopped: it needs more than {self._seconds:g} s."
            raise InvalidRequest(message, "chat_template") from None
        except HelperEnded:
            raise InvalidRequest(
                "The chat template was stopped: it needs too much memory, or is too complex.", "chat_template"
            ) from None
        except (TypeError, ValueError) as exc:  # a program's own objects, which JSON cannot hold
            raise InvalidRequest(f"A chat template of a request takes only JSON values: {exc}", "messages") from None
        if "broken" in reply:
            raise TemplateSyntaxError(reply["broken"])
        if "refused" in reply:
            raise InvalidRequest(reply["refused"], reply["param"])
        return reply
