"""Middleware of the user's: around everything, found at start or refused there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from octavo.base.config import ServeConfig, ServerConfig
from octavo.base.errors import InvalidConfig
from octavo.launch import server as launch
from octavo.server.plugins import load_middleware
from support.server_fakes import make_server

SOURCE = '''
from octavo.server.http.exchange import Exchange

class Stamp:
    """Adds a header to every reply."""
    def __init__(self, app):
        self.app = app
    async def __call__(self, scope, receive, send):
        async def stamped(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-stamp", b"1")]
            await send(message)
        await self.app(scope, receive, stamped)

class Fails:
    def __init__(self, app):
        self.app = app
    async def __call__(self, scope, receive, send):
        raise ValueError("a secret of the middleware")

async def teapot(request, call_next):
    from starlette.responses import PlainTextResponse
    if request.url.path == "/tea":
        return PlainTextResponse("short and stout", 418)
    reply = await call_next(request)
    reply.headers["x-tea"] = "no"
    return reply

def no_coroutine(request, call_next): ...
number = 3
'''


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_middleware.py").write_text(SOURCE)
    (tmp_path / "broken_middleware.py").write_text("import no_such_module_anywhere\n")
    (tmp_path / "raising_middleware.py").write_text("raise RuntimeError('at import')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_middleware", "broken_middleware", "raising_middleware"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize(("path", "status"), [("/version", 200), ("/nowhere", 404)])
def test_a_class_sees_every_reply(path: str, status: int) -> None:
    reply = make_server(middleware=["my_middleware.Stamp"]).get(path)
    assert (reply.status, reply.headers["x-stamp"]) == (status, "1")


def test_it_sees_requests_without_a_key_and_their_refusals() -> None:
    server = make_server(middleware=["my_middleware.Stamp", "my_middleware.teapot"], api_key=["k"])
    assert server.get("/tea").status == 418
    reply = server.get("/version")
    assert (reply.status, reply.headers["x-stamp"], reply.headers["x-tea"]) == (401, "1", "no")


def test_a_stream_passes_through_both_kinds() -> None:
    server = make_server(middleware=["my_middleware.Stamp", "my_middleware.teapot"])
    reply = server.complete(stream=True)
    assert "".join(event["choices"][0]["text"] for event in reply.events()) == "Hi!"
    assert reply.headers["x-stamp"] == "1"


def test_middleware_that_fails_is_a_500_that_says_nothing_of_it(caplog: pytest.LogCaptureFixture) -> None:
    reply = make_server(middleware=["my_middleware.Fails"]).get("/version")
    assert (reply.status, reply.error["type"]) == (500, "InternalServerError")
    assert b"secret" not in reply.body and "a secret of the middleware" in caplog.text


def test_middleware_that_fails_is_told_as_the_path_s_api_tells_errors() -> None:
    server = make_server(middleware=["my_middleware.Fails"])
    told = server.post("/v1/messages", {})
    assert (told.status, told.json()["type"], told.json()["error"]["type"]) == (500, "error", "api_error")
    assert server.post("/api/chat", {}).json() == {"error": "Internal server error."}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Stamp", "write module.name"),
        ("no_middleware_here.Stamp", "there is no module no_middleware_here; is it on PYTHONPATH?"),
        ("my_middleware.Stemp", "AttributeError"),
        ("my_middleware.number", "neither a class nor an async function"),
        ("my_middleware.no_coroutine", "neither a class nor an async function"),
        ("broken_middleware.X", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("raising_middleware.X", "RuntimeError: at import"),
        (".X", "write module.name"),
    ],
)
def test_what_cannot_be_middleware_ends_the_start(name: str, told: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load_middleware([name])
    assert caught.value.message.startswith(f"--middleware {name}") and told in caught.value.message
    with pytest.raises(InvalidConfig, match="--middleware"):
        launch.serve(ServeConfig(server=ServerConfig(middleware=[name])))
