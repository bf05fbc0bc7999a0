"""The page at `/`: a chat and a view of the engine, in one file that asks this server and no other.

`ui.html` is built from `ui/` by `make ui`. It holds no secret: it is served without a key, and what it asks of the
server carries the key that its user gives it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from octavo.server.http.exchange import Exchange

PAGE = Path(__file__).with_name("ui.html")


class PageHandler:
    """The page is read when the server starts, so that one that is missing is an error of the start."""

    def __init__(self) -> None:
        self._page = PAGE.read_bytes()
        self._headers = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-security-policy", content_security_policy(self._page)),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cache-control", b"no-cache"),  # a server that was updated brings its own page
        ]

    async def page(self, exchange: Exchange) -> None:
        await exchange.send_bytes(self._page, 200, self._headers)


def content_security_policy(page: bytes) -> bytes:
    """A policy under which only the script and the style that stand in `page` count, and only this server is asked.

    What a model writes cannot become markup in the page; if it did, this would keep it from doing anything. Images
    come as data only: the address of one that is loaded can carry a conversation away.
    """
    directives = [
        "default-src 'none'",
        f"script-src {_hashes(page, b'script')}",
        f"style-src {_hashes(page, b'style')}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    return "; ".join(directives).encode()


def _hashes(page: bytes, element: bytes) -> str:
    contents = re.findall(rb"<%b>(.*?)</%b>" % (element, element), page, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(content).digest()).decode() for content in contents)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
