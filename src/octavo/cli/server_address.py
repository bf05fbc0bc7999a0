"""How a user names a running server, and the key that it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from octavo.base.errors import InvalidConfig
from octavo.cli.environment import api_key


def api_url(text: str) -> str:
    """The base URL that a user means by HOST:PORT or an address, with or without /v1. Raises `InvalidConfig`."""
    address = text.strip()
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        is_valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, half a pair of brackets
        is_valid = False
    if not is_valid or parts.query or parts.fragment or "@" in parts.netloc or not address.isprintable():
        raise InvalidConfig(f"--url must be HOST:PORT or an http or https address; got {text!r}")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def client_api_key(given: str | None, environ: Mapping[str, str]) -> str | None:
    """The key that a client sends: the flag's, else the environment's. Raises `InvalidConfig` for what is no key."""
    key = given or api_key(environ) or environ.get("OPENAI_API_KEY") or None
    if key is not None and not (key.isascii() and key.isprintable()):
        raise InvalidConfig("--api-key (or the variable that gives it) holds a character that no HTTP header may have")
    return key
