"""What `octavo chat` and `octavo complete` share: their settings, and a small streaming client.

The client is the standard library's: these commands start at once and need nothing of the server's packages.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from octavo.base.config import check, opt
from octavo.base.errors import OctavoError
from octavo.cli.flags import Flag, flags, part
from octavo.cli.parser import make_parser, read_words
from octavo.cli.server_address import api_url, client_api_key

CONNECT_SECONDS = 10.0
#: A reply may wait behind others, and a small machine may take its time between two tokens.
REPLY_SECONDS = 600.0
#: Characters of a server's error that are told, and bytes of it that are read.
_TOLD = 300
_READ = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """The settings of a command that talks to a running server."""

    url: str = opt(
        "http://localhost:8000/v1", "The server: HOST:PORT or an http or https address, with or without /v1."
    )
    model: str | None = opt(None, "Model to ask; default: the first that the server lists.", aliases=("model_name",))
    api_key: str | None = opt(None, "Key to send; default: OCTAVO_API_KEY, else OPENAI_API_KEY.")
    quick: str | None = opt(None, "Ask this, print the reply, and end (also -q).", short="-q")
    stats: bool = opt(False, "Print the tokens and times of each reply to stderr.")


@dataclass(frozen=True, kw_only=True)
class ChatConfig(ClientConfig):
    """`octavo chat` also takes a system prompt."""

    system_prompt: str | None = opt(None, "System prompt of the conversation.")
    image: list[str] = opt(list, "Image that the first message shows; several in turn.", one_word=True)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How replies are sampled; None leaves it to the server. The fields are those of a request."""

    temperature: float | None = opt(None, "Sampling temperature.", low=0.0, high=2.0)
    max_tokens: int | None = opt(None, "Maximum number of tokens in a reply.", low=1)
    top_p: float | None = opt(
        None, "Sample from the likeliest tokens whose probabilities add up to this.", low=0.0, high=1.0
    )
    top_k: int | None = opt(None, "Sample from this many of the likeliest tokens; 0: from all.", low=-1)
    min_p: float | None = opt(
        None, "Leave out tokens less likely than this share of the likeliest one.", low=0.0, high=1.0
    )
    seed: int | None = opt(None, "Seed; the same seed gives the same reply.", low=-(2**63), high=2**63 - 1)
    presence_penalty: float | None = opt(
        None, "Penalty for tokens that the reply already contains.", low=-2.0, high=2.0
    )
    frequency_penalty: float | None = opt(
        None, "Penalty for tokens by how often the reply contains them.", low=-2.0, high=2.0
    )
    repetition_penalty: float | None = opt(
        None, "Penalty for tokens of the prompt and the reply; 1: none.", low=1e-6, high=1e6
    )
    repeat_last_n: int | None = opt(None, "Tokens that the penalties look back at; -1: all.", low=-1, high=2**31 - 1)
    typical_p: float | None = opt(
        None, "Sample from the tokens of typical surprise that add up to this; 1: from all.", low=0.0, high=1.0
    )
    top_n_sigma: float | None = opt(
        None, "Leave out tokens so many standard deviations of the logits below the best; 0: none."
    )
    dynatemp_range: float | None = opt(
        None, "Temperature that may go so far up and down, by how sure the model is.", low=0.0, high=2.0
    )
    xtc_probability: float | None = opt(
        None, "How often all but the last of the likely tokens are left out.", low=0.0, high=1.0
    )
    xtc_threshold: float | None = opt(None, "From which probability on a token is likely.", low=0.0, high=1.0)
    dry_multiplier: float | None = opt(
        None, "Penalty for tokens that would go on with a repetition; 0: none.", low=0.0, high=1e6
    )
    dry_base: float | None = opt(None, "Its growth with each token of the repetition.", low=1.0, high=1e6)
    dry_allowed_length: int | None = opt(None, "Tokens of a repetition that cost nothing.", low=1, high=1 << 20)
    mirostat: int | None = opt(None, "Version of Mirostat, in place of filters; 0: none.", low=0, high=2)
    mirostat_tau: float | None = opt(None, "The surprise, in bits, that Mirostat aims at.", low=0.0, high=1e3)
    mirostat_eta: float | None = opt(None, "How fast Mirostat follows.", low=0.0, high=1.0)


def client_table(cls: type[ClientConfig]) -> dict[str, Flag]:
    """The flags of a command that talks to a running server."""
    return flags({"settings": cls, "sampling (default: the server's)": Sampling})


def client_config(
    command: str, cls: type[ClientConfig], description: str, epilog: str, argv: Sequence[str]
) -> tuple[Any, Sampling]:
    """Read the settings of `octavo COMMAND`. Raises `InvalidConfig`."""
    table = client_table(cls)
    parser = make_parser(f"octavo {command}", "[flags]", description, epilog, table)
    values = read_words(parser, argv, table)
    config, sampling = part(cls, values), part(Sampling, values)
    check(config)
    check(sampling)
    return config, sampling


class Client:
    """One server. Raises `OctavoError` when it cannot be reached, refuses, or is not OpenAI-compatible."""

    def __init__(self, config: ClientConfig, sampling: Sampling) -> None:
        self.url = api_url(config.url)
        self.sampling = sampling
        self._model = config.model
        key = client_api_key(config.api_key, os.environ)
        self._has_key = key is not None
        self._headers = {"Authorization": f"Bearer {key or 'EMPTY'}", "Content-Type": "application/json"}

    @property
    def model(self) -> str:
        """The model that is asked: the named one, or the first that the server lists."""
        return self._model or self.look_up()

    def look_up(self) -> str:
        """`model`. Always asks the server for its models, to find out whether the server is there."""
        models = self._models()
        if not (self._model or models):
            raise OctavoError(f"{self.url} lists no model: name one with --model")
        self._model = self._model or models[0]
        return self._model

    def _models(self) -> list[str]:
        with self._open("GET", "/models", None) as reply:
            kind, body = reply.headers.get_content_type(), reply.read()
        try:
            return [str(model["id"]) for model in json.loads(body)["data"]]
        except (ValueError, LookupError, TypeError):
            raise OctavoError(f"{self.url} is not an OpenAI-compatible server: /models gives {kind}") from None

    def stream(self, path: str, body: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The events of a streamed reply. Closing the generator closes the connection and so stops the server."""
        sampling = {name: value for name, value in asdict(self.sampling).items() if value is not None}
        options = {"stream": True, "stream_options": {"include_usage": True}}
        request = {"model": self.model, **options, **sampling, **body}
        with self._open("POST", path, json.dumps(request).encode()) as reply:
            for line in reply:
                data = line.strip().removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
                if data == b"[DONE]":
                    return
                if data:
                    yield _event(data)
        raise OctavoError("the server ended the reply early")

    @contextlib.contextmanager
    def _open(self, method: str, path: str, body: bytes | None) -> Iterator[http.client.HTTPResponse]:
        """A reply of status 200; its connection is closed at the end of the block."""
        parts = urlsplit(self.url)
        connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        reply = None
        connection = connect(parts.hostname or "", parts.port, timeout=CONNECT_SECONDS)
        try:
            connection.connect()
            connection.sock.settimeout(REPLY_SECONDS)
            connection.request(method, parts.path + path, body, self._headers)
            reply = connection.getresponse()
            if reply.status != 200:
                raise OctavoError(self._refusal(path, reply))
            yield reply
        except (OSError, http.client.HTTPException, UnicodeError) as e:
            where = f"{parts.scheme}://{parts.netloc}"
            raise OctavoError(_broken(where, e) if reply is not None else _unreachable(where, e)) from e
        finally:
            # The response holds a file of its own on the socket: both must go for the server to notice.
            if reply is not None:
                reply.close()
            connection.close()

    def _refusal(self, path: str, reply: http.client.HTTPResponse) -> str:
        """One line on a status that is not 200, and what to do about it."""
        status, body = reply.status, reply.read(_READ)
        known = _error_message(body)
        said = _one_line(known or body.decode(errors="replace"))
        if status in (401, 403):
            if self._has_key:
                return f"the server does not take this API key ({status}): {said}"
            return f"the server wants an API key ({status}): give --api-key, or set OCTAVO_API_KEY or OPENAI_API_KEY"
        if status == 503:
            return f"the server is not ready (503): {said}"
        if 300 <= status < 400:
            return f"{self.url} has moved ({status}): give --url {_one_line(reply.headers.get('Location', ''))}"
        if status == 404 and (known is None or path == "/models"):
            return f"{self.url} is not an OpenAI-compatible API (404): --url must be the address that has /models"
        return f"the server refused ({status}): {said}"


def _event(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise OctavoError(f"the server sent an unreadable event: {_one_line(data.decode(errors='replace'))}")
    if event.get("error"):
        raise OctavoError(_one_line(_error_message(data) or str(event["error"])))
    return event


def _error_message(body: bytes) -> str | None:
    """What the body of an OpenAI-compatible server's error says; None for any other body."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        return None


def _unreachable(where: str, error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {where} is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"{where} does not speak TLS: is it an http:// address?"
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, OSError):
        return f"what listens at {where} does not speak HTTP"
    why = "it took too long" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or error
    return f"no answer from {where}: {why}. Is `octavo serve` running there?"


def _broken(where: str, error: Exception) -> str:
    why = "nothing came for too long" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or error
    return f"the connection to {where} broke: {why}"


def _one_line(text: str) -> str:
    text = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(text.split())[:_TOLD]
