"""The state of `octavo chat`: the messages so far, and what the next request takes along."""

from __future__ import annotations

import base64
import json
import mimetypes
import os
from pathlib import Path
from typing import Any

from octavo.base.errors import OctavoError
from octavo.cli.client import Client
from octavo.cli.reply import Reply, Stats, receive
from octavo.cli.screen import Screen

MAX_FILE_BYTES = 64 << 20

Message = dict[str, Any]


class Conversation:
    """Messages with one server. `messages` alternate between user and assistant; `system` stands before them."""

    def __init__(self, client: Client, screen: Screen, system: str | None, *, tells_stats: bool) -> None:
        self.client, self.screen = client, screen
        self.system = system
        self.messages: list[Message] = []
        self._images: list[dict[str, Any]] = []  # for the next message
        self.stats = Stats()
        self._tells_stats = tells_stats
        self._files: set[Path] = set()  # this conversation's own, which /save may write again

    def ask(self, text: str) -> Reply:
        """Send a message and show the reply; both then belong to the conversation, a stopped reply as far as it came.

        Raises `OctavoError`; the conversation is then as it was before.
        """
        turn: Message = {"role": "user", "content": [*self._images, _text(text)] if self._images else text}
        reply = receive(self.client, self.screen, "/chat/completions", {"messages": [*self._all(), turn]})
        if reply.text or not reply.is_stopped:
            self.messages += [turn, {"role": "assistant", "content": reply.text}]
            self._images = []
        self.stats.add(reply)
        if self._tells_stats:
            self.screen.say(reply.figures(), dim=True)
        return reply

    def show(self, path: Path) -> None:
        """Send an image with the next message. Raises `OctavoError`."""
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise OctavoError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
            data = base64.b64encode(path.read_bytes()).decode()
        except OSError as e:
            raise OctavoError(f"cannot read {path}: {e.strerror or e}") from None
        kind = mimetypes.guess_type(path.name)[0] or "image/png"  # the server tells it from the data
        url = f"data:{kind if kind.startswith('image/') else 'image/png'};base64,{data}"
        self._images.append({"type": "image_url", "image_url": {"url": url}})

    def clear(self) -> None:
        """A new conversation with the same system prompt and settings."""
        self.messages = []
        self._images = []

    def save(self, path: Path) -> None:
        """Write the messages as JSON. Raises `OctavoError`, also for another's file."""
        text = json.dumps({"messages": self._all()}, indent=2, ensure_ascii=False) + "\n"
        try:
            if path.exists() and path.resolve() not in self._files:
                raise OctavoError(f"{path} is there already; name another file")
            partial = path.with_name(f".{path.name}.part")
            partial.write_text(text, encoding="utf-8", errors="replace")
            os.replace(partial, path)
            self._files.add(path.resolve())
        except (OSError, ValueError) as e:
            raise OctavoError(f"cannot write {path}: {getattr(e, 'strerror', None) or e}") from None

    def load(self, path: Path) -> None:
        """Replace the conversation by one that `save` wrote. Raises `OctavoError`; nothing has changed then."""
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise OctavoError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as e:
            raise OctavoError(f"cannot read {path}: {e.strerror or e}") from None
        except (ValueError, RecursionError):
            raise OctavoError(f"{path} is not a saved conversation: it is not JSON") from None
        messages = _messages(value)
        if messages is None:
            raise OctavoError(f"{path} is not a saved conversation: it holds no messages of system, user and assistant")
        has_system = bool(messages) and messages[0]["role"] == "system"
        self.system = messages[0]["content"] if has_system else None
        self.messages = messages[has_system:]
        self._files.add(path.resolve())

    def _all(self) -> list[Message]:
        system: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *self.messages]


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _messages(value: Any) -> list[Message] | None:
    """The messages of a saved conversation; None when the value is none."""
    found = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(found, list):
        return None
    messages: list[Message] = []
    for place, message in enumerate(found):
        if not isinstance(message, dict) or not _is_content(message.get("content"), message.get("role")):
            return None
        role = message.get("role")
        if role not in ("user", "assistant") and not (role == "system" and place == 0):
            return None
        messages.append({"role": role, "content": message["content"]})
    return messages


def _is_content(content: Any, role: Any) -> bool:
    """A text, or what a user shows with one."""
    return isinstance(content, str) or (
        role == "user" and isinstance(content, list) and all(isinstance(part, dict) for part in content)
    )
