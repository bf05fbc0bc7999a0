"""What is fetched, from where, and what is not: hosts on loopback stand for those of the internet."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import ssl
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidRequest
from octavo.media.addresses import Address
from octavo.media.fetcher import Fetcher
from support.media_fakes import data_url, host, redirect, response

#: Stands for a public address here; 127.0.0.1 for one that is not.
PUBLIC = "127.0.0.2"


def permits(address: Address) -> bool:
    return str(address) == PUBLIC


class Names:
    """A resolver that answers with one list of addresses after the other, and the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def __call__(self, name: str, port: int) -> list[str]:
        self.asked.append(name)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def fetcher(names: Names, **config: Any) -> Fetcher:
    return Fetcher(ServerConfig(**config), resolver=names, permits=permits)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


async def refused(fetch: Fetcher, url: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        await fetch.bytes_of(url, "messages.0.content.0.image_url.url")
    assert caught.value.param == "messages.0.content.0.image_url.url"
    return caught.value.message


def test_a_host_is_resolved_once_and_its_name_is_kept() -> None:
    async def main() -> None:
        names = Names([PUBLIC], ["127.0.0.1"])  # a name that changes its mind after the check
        async with host(PUBLIC, a=response(b"picture")) as there, host("127.0.0.1") as hidden:
            assert await fetcher(names).bytes_of(f"http://pictures.example:{there.port}/a", "p") == b"picture"
            assert names.asked == ["pictures.example"]
            assert f"Host: pictures.example:{there.port}" in there.requests[0]
            assert hidden.num_connections == 0

    run(main)


@pytest.mark.parametrize("answer", [["127.0.0.1"], [PUBLIC, "127.0.0.1"], ["::1"], ["::ffff:127.0.0.1"], []])
def test_a_host_with_an_address_that_is_not_public_gets_nothing(answer: list[str]) -> None:
    async def main() -> None:
        async with host("127.0.0.1", a=response(b"secret")) as hidden:
            message = await refused(fetcher(Names(answer)), f"http://pictures.example:{hidden.port}/a")
            assert "not on the public internet" in message
            assert hidden.num_connections == 0

    run(main)


@pytest.mark.parametrize("url", ["http://localhost:{}/a", "http://127.0.0.1:{}/a", "http://[::ffff:127.0.0.1]:{}/a"])
def test_without_a_test_in_between_loopback_is_never_asked(url: str) -> None:
    async def main() -> None:
        async with host("127.0.0.1", a=response(b"secret")) as hidden:
            assert "not on the public" in await refused(Fetcher(ServerConfig()), url.format(hidden.port))
            assert hidden.num_connections == 0

    run(main)


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://127.0.0.1:{hidden}/a", "not on the public internet"),
        ("http://hidden.example:{hidden}/a", "not on the public internet"),
        ("http://2130706433:{hidden}/a", "that this one redirects to cannot be fetched"),
        ("http://x@127.0.0.1:{hidden}/a", "user name"),
        ("file:///etc/passwd", "no http or https"),
        ("gopher://127.0.0.1:{hidden}/_", "no http or https"),
        ("//127.0.0.1:{hidden}/a", "not on the public internet"),
        ("/loop", "more than 3 times"),
        ("http://[", "no URL"),
    ],
)
def test_a_redirect_is_a_url_like_any_other(location: str, words: str) -> None:
    async def main() -> None:
        class Hosts(Names):
            async def __call__(self, name: str, port: int) -> list[str]:
                return [PUBLIC] if name == "pictures.example" else ["127.0.0.1"]

        async with host("127.0.0.1", a=response(b"secret")) as hidden, host(PUBLIC) as there:
            there.answers |= {"/a": redirect(location.format(hidden=hidden.port)), "/loop": redirect("/loop")}
            assert words in await refused(fetcher(Hosts([])), f"http://pictures.example:{there.port}/a")
            assert hidden.num_connections == 0

    run(main)


def test_a_redirect_within_the_public_is_followed() -> None:
    async def main() -> None:
        async with host(PUBLIC, a=redirect("/b"), b=redirect("c", "307 x"), c=response(b"picture")) as there:
            assert await fetcher(Names([PUBLIC])).bytes_of(f"http://pictures.example:{there.port}/a", "p") == b"picture"

    run(main)


def test_only_allowed_hosts_are_asked_behind_redirects_too() -> None:
    async def main() -> None:
        async with host(PUBLIC, a=redirect("http://other.example/")) as there:
            names = Names([PUBLIC])
            fetch = fetcher(names, allowed_media_domains=["pictures.example"])
            assert "--allowed-media-domains" in await refused(fetch, f"http://other.example:{there.port}/a")
            assert "--allowed-media-domains" in await refused(fetch, f"http://pictures.example:{there.port}/a")
            assert names.asked == ["pictures.example"]

    run(main)


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (HEAD + b"Content-Length: 5000\r\n\r\n<open>", "more than 100 bytes"),  # refused before it is read
        (HEAD + b"\r\n" + b"x" * 5000 + b"<open>", "more than 100 bytes"),  # no length, and no end
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n200\r\n" + b"x" * 512 + b"\r\n<open>", "more than 100 bytes"),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", "packed data"),
        (HEAD + b"Content-Length: 50\r\n\r\nabc", "cannot be fetched"),  # ends before its end
        (HEAD + b"Content-Length: 50\r\n\r\nabc<open>", "not fetched within 0.5 s"),  # one that drips
        (b"<open>", "not fetched within 0.5 s"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not answer as a web server"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000 + b"\r\n\r\n", "cannot be fetched"),
        (response(b"", "401 Unauthorized"), "answers 401"),
        (response(b"", "500 No"), "answers 500"),
        (response(b"", "304 Not Modified"), "answers 304"),
    ],
    ids=["length", "endless", "chunks", "gzip", "cut", "drips", "silent", "ssh", "headers", "401", "500", "304"],
)  # fmt: skip
def test_a_host_that_answers_badly_costs_a_bounded_time_and_memory(answer: bytes, words: str) -> None:
    async def main() -> None:
        async with host(PUBLIC, a=answer) as there:
            fetch = fetcher(Names([PUBLIC]), max_media_bytes=100, media_fetch_timeout=0.5)
            assert words in await refused(fetch, f"http://pictures.example:{there.port}/a")

    run(main)


def test_nobody_there_is_an_error_of_the_url() -> None:
    async def main() -> None:
        async with host(PUBLIC) as there:
            port = there.port
        assert "cannot be reached" in await refused(fetcher(Names([PUBLIC])), f"http://pictures.example:{port}/a")

    run(main)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_the_certificate_must_be_of_the_name_and_https_stays_https(tmp_path: Path) -> None:
    tls_files = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-out", tls_files[0], "-keyout", tls_files[1]]
    subprocess.run(
        [*make, "-subj", "/CN=a", "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True
    )

    async def main() -> None:
        serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serving.load_cert_chain(*tls_files)
        trusting = ssl.create_default_context(cafile=tls_files[0])
        async with host(PUBLIC, serving, a=response(b"picture"), b=redirect("http://localhost/")) as there:
            fetch = Fetcher(ServerConfig(), resolver=Names([PUBLIC]), permits=permits, tls=trusting)
            assert await fetch.bytes_of(f"https://localhost:{there.port}/a", "p") == b"picture"
            assert "https to what is not" in await refused(fetch, f"https://localhost:{there.port}/b")
            assert "cannot be reached" in await refused(fetch, f"https://other.example:{there.port}/a")

    run(main)


# ---------------------------------------------------------------- data URLs and files
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (data_url(b"abc"), b"abc"),
        ("DATA:image/png;BASE64,YWJj", b"abc"),
        ("data:image/png;charset=x;base64,YW\n Jj", b"abc"),
        ("data:image/png,a%20b", b"a b"),
        ("data:image/png;base64", "comma"),
        ("data:image/png;base64,!!!!", "base64"),
        ("data:image/png;base64,YWJ", "base64"),
        ("data:image/png;base64,YWJjé", "base64"),
    ],
)
def test_a_data_url_holds_its_bytes(url: str, expected: bytes | str) -> None:
    async def main() -> None:
        fetch = Fetcher(ServerConfig())
        if isinstance(expected, bytes):
            assert await fetch.bytes_of(url, "p") == expected
        else:
            assert expected in await refused(fetch, url)

    run(main)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A directory that may be read, and what lies around it."""
    allowed = tmp_path / "shelf"
    (allowed / "deep").mkdir(parents=True)
    (allowed / "a.png").write_bytes(b"picture")
    (allowed / "ä b.png").write_bytes(b"other")
    (allowed / "large.png").write_bytes(b"x" * 200)
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "shelf-beside").write_bytes(b"secret")
    (allowed / "link.png").symlink_to(tmp_path / "secret")
    (allowed / "inner.png").symlink_to(allowed / "a.png")
    (allowed / "out").symlink_to(tmp_path)
    os.link(tmp_path / "secret", allowed / "hard.png")
    os.mkfifo(allowed / "pipe.png")
    return allowed


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.png", b"picture"),
        ("%C3%A4%20b.png", b"other"),
        ("deep/../a.png", b"picture"),
        ("inner.png", b"picture"),
        ("large.png", "more than 100 bytes"),
        ("link.png", "no such file"),
        ("out/secret", "no such file"),
        ("../secret", "no such file"),
        ("%2e%2e/secret", "no such file"),
        ("..%2fsecret", "no such file"),
        ("../shelf-beside", "no such file"),
        ("hard.png", "no such file"),
        ("pipe.png", "no such file"),
        ("deep", "no such file"),
        ("missing.png", "no such file"),
        ("a.png%00.txt", "no such file"),
        ("a.png?x", "absolute path"),
        ("..\\secret", "absolute path"),
    ],
)
def test_a_file_is_read_only_within_the_directory(shelf: Path, path: str, expected: bytes | str) -> None:
    async def main() -> None:
        fetch = Fetcher(ServerConfig(allowed_local_media_path=str(shelf), max_media_bytes=100))
        if isinstance(expected, bytes):
            assert await fetch.bytes_of(f"file://{shelf}/{path}", "p") == expected
        else:
            assert expected in await refused(fetch, f"file://{shelf}/{path}")

    run(main)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "file://host/etc/passwd", "file:etc/passwd", "file:///dev/zero"])
def test_no_file_is_read_without_a_directory_or_outside_it(url: str, tmp_path: Path) -> None:
    async def main() -> None:
        assert "no local files" in await refused(Fetcher(ServerConfig()), url)
        message = await refused(Fetcher(ServerConfig(allowed_local_media_path=str(tmp_path))), url)
        assert "no such file" in message or "absolute path" in message

    run(main)


def test_what_is_fetched_is_whole(tmp_path: Path) -> None:
    async def main() -> None:
        body = os.urandom(1 << 20)
        async with host(PUBLIC, a=response(body)) as there:
            assert await fetcher(Names([PUBLIC])).bytes_of(f"http://pictures.example:{there.port}/a", "p") == body
        assert await fetcher(Names([])).bytes_of(data_url(body), "p") == body
        assert base64.b64decode(data_url(body).partition(",")[2]) == body

    run(main)
