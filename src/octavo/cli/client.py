"""What `octavo chat` and `octavo complete` share: their settings, and a small streaming client.

The client is the standard library's: these commands start at once and need nothing of the server's packages.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from octavo.cli.flags import Flag, flags
from octavo.cli.parser import make_parser, read_words
from octavo.config import check, opt
from octavo.errors import InvalidConfig, OctavoError

#: A reply may wait behind others, and a small machine may take its time between two tokens.
TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """The settings of a command that talks to a running server."""

    url: str = opt("http://localhost:8000/v1", "Base URL of the API.")
    model_name: str | None = opt(None, "Model to ask; default: the first that the server lists.")
    api_key: str | None = opt(None, "Key to send; default: OPENAI_API_KEY, else EMPTY.")
    max_tokens: int | None = opt(None, "Most tokens in a reply; default: the server's.", low=1)
    temperature: float | None = opt(None, "Sampling temperature; default: the server's.", low=0.0, high=2.0)
    quick: str | None = opt(None, "Ask this, print the reply, and end (also -q).")


@dataclass(frozen=True, kw_only=True)
class ChatConfig(ClientConfig):
    """`octavo chat` also takes a system prompt."""

    system_prompt: str | None = opt(None, "Instructions that stand before the conversation.")


def client_table(cls: type[ClientConfig]) -> dict[str, Flag]:
    """The flags of a command that talks to a running server."""
    return flags({"settings": cls})


def client_config(command: str, cls: type[ClientConfig], description: str, argv: Sequence[str]) -> Any:
    """Read the settings of `octavo COMMAND`. Raises `InvalidConfig`."""
    table = client_table(cls)
    parser = make_parser(f"octavo {command}", "[flags]", description, "Ctrl-D or Ctrl-C ends.", table)
    words = ["--quick" + w[2:] if w == "-q" or w.startswith("-q=") else w for w in argv]
    config = cls(**read_words(parser, words, table, {}))
    check(config)
    if urlsplit(config.url).scheme not in ("http", "https") or not urlsplit(config.url).hostname:
        raise InvalidConfig(f"--url must be an http or https address; got {config.url!r}")
    return config


class Client:
    """One server. Raises `OctavoError` when it cannot be reached or refuses."""

    def __init__(self, config: ClientConfig) -> None:
        self._parts = urlsplit(config.url)
        key = config.api_key or os.environ.get("OPENAI_API_KEY") or "EMPTY"
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        wishes = {"max_tokens": config.max_tokens, "temperature": config.temperature}
        self._options = {name: value for name, value in wishes.items() if value is not None}
        self._model = config.model_name

    @property
    def model(self) -> str:
        """The model that is asked; looked up once."""
        if self._model is None:
            with_models = json.loads(b"".join(self._send("GET", "/models", None)))
            self._model = str(with_models["data"][0]["id"])
        return self._model

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The choices of a streamed reply, one a piece."""
        request = {"model": self.model, "stream": True, **self._options, **body}
        for line in self._send("POST", path, json.dumps(request).encode()):
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if event.get("error"):
                    raise OctavoError(str(event["error"].get("message", event["error"])))
                yield from event["choices"]

    def _send(self, method: str, path: str, body: bytes | None) -> Iterator[bytes]:
        """The lines of the reply's body."""
        secure = self._parts.scheme == "https"
        connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = connect(self._parts.hostname or "", self._parts.port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request(method, self._parts.path.rstrip("/") + path, body, self._headers)
            reply = connection.getresponse()
            if reply.status != 200:
                raise OctavoError(_refusal(reply.status, reply.read()))
            yield from reply
        except (OSError, http.client.HTTPException) as e:
            where = f"{self._parts.scheme}://{self._parts.netloc}"
            raise OctavoError(f"no answer from {where}: {e}. Is `octavo serve` running there?") from e
        finally:
            connection.close()


def _refusal(status: int, body: bytes) -> str:
    try:
        return f"the server refused ({status}): {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"the server refused ({status}): {body[:300].decode(errors='replace')}"
