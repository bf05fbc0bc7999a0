"""Chat templates of strangers are tried out and rendered in a helper process that is killed when its time is up."""

from __future__ import annotations

import contextlib
import logging
import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Final

from octavo.base.config import ContentFormatOption
from octavo.base.errors import InvalidRequest, ServerError
from octavo.base.frames import read_frame, write_frame
from octavo.text.templates.chat_template import MAX_SECONDS, Message, TemplateSyntaxError

logger = logging.getLogger(__name__)

#: Seconds that a new helper gets to start, on a machine that is busy with other things.
START_SECONDS: Final = 30.0


class TemplateWorker:
    """One helper, started when it is needed, for one template at a time. Its methods block, and may be called from
    any thread; a crash or a hang costs the template in hand an error and the helper its life."""

    def __init__(
        self,
        *,
        seconds: float = MAX_SECONDS + 1,  # after the bound from within, whose message says more
        command: tuple[str, ...] = (sys.executable, "-m", "octavo.text.templates.helper"),
    ) -> None:
        self._seconds = seconds
        self._command = command
        self._helper: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()

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
        if (helper := self._helper) is not None:
            helper.kill()  # before the turn: the thread that has it waits for the helper
        with self._turn:
            self._kill()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._turn:
            reply = self._answer(request | {"seconds": self._seconds})
        if "broken" in reply:
            raise TemplateSyntaxError(reply["broken"])
        if "refused" in reply:
            raise InvalidRequest(reply["refused"], reply["param"])
        return reply

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        helper = self._started()
        is_done = False
        try:
            write_frame(_stream(helper.stdin), request)
            reply = _reply(helper, self._seconds)
            is_done = True
            return reply
        except TimeoutError:
            message = f"The chat template was stopped: it needs more than {self._seconds:g} s."
            raise InvalidRequest(message, "chat_template") from None
        except (OSError, EOFError):
            raise InvalidRequest(
                "The chat template was stopped: it needs too much memory, or is too complex.", "chat_template"
            ) from None
        except (TypeError, ValueError) as exc:  # a program's own objects, which JSON cannot hold
            raise InvalidRequest(f"A chat template of a request takes only JSON values: {exc}", "messages") from None
        finally:
            if not is_done:
                self._kill()

    def _started(self) -> subprocess.Popen[bytes]:
        helper = self._helper
        if helper is not None and helper.poll() is None:
            return helper
        self._kill()
        try:
            helper = self._helper = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            _reply(helper, START_SECONDS)
        except (TimeoutError, OSError, EOFError) as exc:
            self._kill()
            logger.error("the process that renders chat templates did not start: %r", exc)
            raise ServerError("Chat templates cannot be rendered at the moment.") from exc
        return helper

    def _kill(self) -> None:
        helper, self._helper = self._helper, None
        if helper is None:
            return
        helper.kill()
        with contextlib.suppress(OSError):  # what was not sent yet
            _stream(helper.stdin).close()
        _stream(helper.stdout).close()
        helper.wait()


def _stream(pipe: Any) -> BinaryIO:
    assert pipe is not None
    stream: BinaryIO = pipe
    return stream


def _reply(helper: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    """The helper's next frame. Raises `TimeoutError`, or `EOFError` when the helper has ended."""
    stdout = _stream(helper.stdout)
    poll = select.poll()  # `select.select` cannot take the numbers of a server with many connections
    poll.register(stdout, select.POLLIN)
    if not poll.poll(seconds * 1000):
        raise TimeoutError
    try:
        reply: dict[str, Any] | None = read_frame(stdout)
    except ValueError:  # it was killed while it wrote
        reply = None
    if reply is None:
        raise EOFError
    return reply
