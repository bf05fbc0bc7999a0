"""Which URLs are fetched at all, and to which addresses a connection may go."""

from __future__ import annotations

import ipaddress

import pytest

from octavo.media.addresses import BadURL, is_allowed_host, is_public, parse_target

#: Of this machine, its network, its cloud, and of nobody.
HIDDEN = [
    "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "169.254.170.2", "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1", "203.0.113.9",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "168.63.129.16",
    "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:53aa:64c:0:fbff:80ff:fffe",
]  # fmt: skip


@pytest.mark.parametrize("address", HIDDEN)
def test_an_address_that_is_not_public_is_connected_to_by_no_spelling(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_a_public_address_is(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


BAD = [
    "ftp://example.org/a", "gopher://example.org:70/_x", "file:///etc/passwd", "javascript:alert(1)", "//example.org/a",
    "http:/example.org", "http:///a", "http://", "http://user@example.org/", "http://a:b@example.org/",
    "http://example.org@127.0.0.1/", "http://127.0.0.1\\@example.org/", "http://example.org\\.internal/",
    "http://exa mple.org/", "http://example.org/a b", "http://example.org/\nHost: x", "http://example.org\t/",
    "http://example.org\x00/", "http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://017700000001/",
    "http://0177.0.0.1/", "http://127.1/", "http://127.0.1/", "http://1.2.3.4.5/", "http://300.1.1.1/",
    "http://[::1%25lo]/", "http://[::1", "http://[v1.x]/", "http://[:::]/", "http://example.org:0/",
    "http://example.org:65536/", "http://example.org:-1/", "http://example.org:80:80/", "http://example.org:٨٠/",
    "http://ⓔxample.org/", "http://169。254。169。254/", "http://ex%61mple.org/", "http://127.0.0.1%2f@a/",
    "http://exa..mple/", "http://-/", "http://" + "a" * 9000,
]  # fmt: skip


@pytest.mark.parametrize("url", BAD)
def test_what_two_readers_could_read_in_two_ways_is_no_url(url: str) -> None:
    with pytest.raises(BadURL):
        parse_target(url)


def test_a_url_is_taken_apart_once() -> None:
    target = parse_target("HTTP://Example.ORG.:8080/ä b".replace(" ", "%20") + "?q=1#part")
    assert (target.scheme, target.host, target.port) == ("http", "example.org", 8080)
    assert target.path == "/%C3%A4%20b?q=1"
    assert target.authority == "example.org:8080"
    assert parse_target("https://[2606:4700::1]").url == "https://[2606:4700::1]/"
    assert parse_target("http://a.example?x").path == "/?x"


@pytest.mark.parametrize(
    ("host", "domains", "is_allowed"),
    [
        ("a.example", [], True),
        ("a.example", ["a.example"], True),
        ("a.example", ["A.Example."], True),
        ("b.a.example", ["a.example"], False),
        ("b.a.example", [".a.example"], True),
        ("a.example", [".a.example"], True),
        ("evila.example", [".a.example"], False),
        ("a.example.evil", ["a.example"], False),
    ],
)
def test_only_the_hosts_that_are_named_are_asked(host: str, domains: list[str], is_allowed: bool) -> None:
    assert is_allowed_host(host, domains) is is_allowed
