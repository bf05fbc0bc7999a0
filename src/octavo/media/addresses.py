"""Which addresses of the network a URL of a stranger may lead to: public ones, and no other."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

MAX_URL_CHARS: Final = 8192
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
#: What `is_global` holds for public, in some versions of Python at least: assignments of protocols, where a cloud has
#: its service for machines, relays, and another cloud's address of such a service.
_CLOSED: Final = tuple(
    map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "fec0::/10", "64:ff9b:1::/48"))
)
_URL: Final = re.compile(r"(https?)://([^/?#]*)([^#]*)(#.*)?", re.IGNORECASE | re.DOTALL)
_NAME: Final = re.compile(r"([A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?)(?::([0-9]{1,5}))?")
_LITERAL: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class BadURL(Exception):
    """The URL is not one that is fetched; the text says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, taken apart once: what is checked is what is connected to. `host`: lower case, no brackets or last dot."""

    scheme: str
    host: str
    port: int
    path: str  # with the query, percent-encoded

    @property
    def authority(self) -> str:
        """What the Host header says."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return shown if self.port == _PORTS[self.scheme] else f"{shown}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


_PORTS: Final = {"http": 80, "https": 443}


def parse_target(url: str) -> Target:
    """Raises `BadURL` for anything that two readers could read in two ways."""
    if len(url) > MAX_URL_CHARS:
        raise BadURL(f"it has more than {MAX_URL_CHARS} characters")
    if any(char <= " " or char in "\\\x7f" for char in url):
        raise BadURL("it has spaces, control characters or backslashes")
    found = _URL.fullmatch(url)
    if found is None:
        raise BadURL("it is no http or https URL")
    scheme, authority, path = found[1].lower(), found[2], found[3]
    if "@" in authority:
        raise BadURL("it has a user name or password")
    place = _LITERAL.fullmatch(authority) or _NAME.fullmatch(authority)
    if place is None:
        raise BadURL("its host is no name of letters, digits, dots and hyphens (other scripts in Punycode), or address")
    host = place[1].lower().removesuffix(".")
    if len(host) > 253 or ".." in host:
        raise BadURL("its host is no name")
    _check_literal(host)
    port = int(place[2]) if place[2] else _PORTS[scheme]
    if not 0 < port < 65536:
        raise BadURL("its port is not in 1..65535")
    path = quote(path if path.startswith("/") else f"/{path}", safe="/?%:@!$&'()*+,;=~-._[]|")
    return Target(scheme, host, port, path)


def _check_literal(host: str) -> None:
    """A host whose last part is a number is an IPv4 address, and has to be written as one: 127.1, 0x7f.1 and
    2130706433 are addresses to some readers and names to others."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        last = host.rpartition(".")[2]
        if ":" in host or last.isdigit() or re.fullmatch(r"0x[0-9a-f]*", last):
            raise BadURL("its host is no address in the usual form") from None


def is_public(address: Address) -> bool:
    """Whether anybody on the internet could reach it; addresses within others count as both."""
    inner = _embedded(address)
    if inner is not None and not is_public(inner):
        return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not address.is_loopback
        and not address.is_unspecified
        and not any(address in network for network in _CLOSED)
    ) or inner is not None


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address to which packets for an IPv6 address go in the end."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or int(address) >> 32 == 0:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def is_allowed_host(host: str, domains: list[str]) -> bool:
    """Whether `--allowed-media-domains` lets a host be asked; an empty list lets all."""
    if not domains:
        return True
    for domain in domains:
        known = domain.lower().removesuffix(".")
        if host == known or (known.startswith(".") and (host.endswith(known) or host == known[1:])):
            return True
    return False
