"""The page at `/` as the server gives it: who may have it, and what a browser lets it do."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from octavo.server.ui import PAGE, content_security_policy
from support.server_fakes import call, make_server

SOURCES = Path(__file__).parents[2] / "ui"


class _Elements(HTMLParser):
    """Start tags with their attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text()


@pytest.fixture(scope="module")
def elements(text: str) -> list[tuple[str, dict[str, str | None]]]:
    return _Elements(text).found


# ---------------------------------------------------------------- the route
def test_the_page_is_served_to_anybody_and_what_it_asks_for_is_not() -> None:
    server = make_server(api_key=["k"])
    reply = server.get("/")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert reply.body == PAGE.read_bytes()
    for path in ("/v1/models", "/metrics", "/version"):
        assert server.get(path).status == 401
        assert server.get(path, {"authorization": "Bearer k"}).status == 200


@pytest.mark.parametrize("keys", [[], ["k"]])
def test_it_can_be_turned_off(keys: list[str]) -> None:
    reply = make_server(disable_ui=True, api_key=keys).get("/")
    assert (reply.status, reply.error["code"]) == (404, "route_not_found")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_errors_of_the_api(method: str) -> None:
    reply = call(make_server().app, method, "/")
    assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
    assert "GET" in reply.headers["allow"]


def test_it_is_served_below_a_proxys_prefix_with_and_without_a_slash() -> None:
    server = make_server(root_path="/llm")
    assert [server.get(path).status for path in ("/llm", "/llm/", "/")] == [200, 200, 200]


def test_a_page_of_another_name_does_not_get_it_from_a_server_on_loopback() -> None:
    server = make_server(host="127.0.0.1")
    assert server.get("/", {"host": "evil.example"}).status == 403
    assert server.get("/", {"host": "127.0.0.1:8000"}).status == 200


# ---------------------------------------------------------------- the policy
def test_only_the_pages_own_script_and_style_count(text: str) -> None:
    headers = make_server().get("/").headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    for directive, element in (("script-src", "script"), ("style-src", "style")):
        (content,) = re.findall(rf"<{element}>(.*?)</{element}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy.pop(directive) == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'", "connect-src": "'self'", "img-src": "data:", "base-uri": "'none'",
        "form-action": "'none'", "frame-ancestors": "'none'", "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }  # fmt: skip
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-cache"


def test_a_changed_script_has_another_hash() -> None:
    page = b"<style>a</style><script>b</script>"
    assert content_security_policy(page) != content_security_policy(page.replace(b"b<", b"c<"))


def test_nothing_in_the_page_needs_what_the_policy_forbids(elements: list[tuple[str, dict[str, str | None]]]) -> None:
    for tag, attributes in elements:
        assert tag not in ("img", "iframe", "object", "embed", "base"), tag
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset")], tag
        assert tag not in ("script", "style") or not attributes
        href = attributes.get("href")
        assert href is None or href.startswith(("#", "data:")), href


def test_the_script_makes_no_markup_of_text_and_asks_no_other_host(text: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    markup = r"\binnerHTML\b|\bouterHTML\b|insertAdjacentHTML|document\.write|\beval\(|new Function"
    assert not re.findall(markup, script)
    assert not re.findall("XMLHttpRequest|WebSocket|EventSource|sendBeacon", script)
    assert len(re.findall(r"\bfetch\(", script)) == 1  # of addresses below the page's own: `Api.send`


# ---------------------------------------------------------------- the file
def test_the_page_was_built_from_these_sources(text: str) -> None:
    """What build.mjs writes, without Node.js. It failed? `make ui`."""
    digest = hashlib.sha256()
    names = [f"src/{name}" for name in sorted(path.name for path in (SOURCES / "src").iterdir())]
    for name in [*names, "build.mjs", "package-lock.json"]:
        digest.update(name.encode() + b"\0" + (SOURCES / name).read_bytes() + b"\0")
    assert f"Sources: {digest.hexdigest()}" in text


def test_it_is_small() -> None:
    assert PAGE.stat().st_size < 200_000


def test_fields_and_buttons_have_names(text: str, elements: list[tuple[str, dict[str, str | None]]]) -> None:
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in elements:
        for name in ("for", "aria-controls", "aria-labelledby", "aria-describedby"):
            if (target := attributes.get(name)) is not None:
                assert target in ids
    labelled = {attributes.get("for") for tag, attributes in elements if tag == "label"}
    inside = "".join(re.findall(r"<label.*?</label>", text, re.DOTALL))
    for tag, attributes in elements:
        if tag in ("input", "textarea", "select"):
            own = attributes.get("id") or f'data-setting="{attributes["data-setting"]}"'
            assert own in labelled or own in inside, own
    for button in re.findall(r"<button.*?</button>", text.partition("<script>")[0], re.DOTALL):
        assert "aria-label" in button or re.sub(r"<[^>]*>", "", button).strip(), button
