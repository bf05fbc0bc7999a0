"""Keys, ids, cross-origin rules, prefixes, headers: what surrounds every request."""

from __future__ import annotations

import asyncio
import hmac
from typing import Any

import pytest

from octavo.server.app import routes
from octavo.server.http.errors import ErrorBody
from octavo.server.http.middleware import MAX_HEADER_BYTES, MAX_HEADERS
from support.server_fakes import call, make_server

KEYS = {"api_key": ["first-key", "second-kéy"]}


# ---------------------------------------------------------------- authentication
@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health_and_ready_answer_without_a_key(path: str) -> None:
    assert make_server(**KEYS).get(path).status == 200


def test_e2_d12_every_other_route_needs_a_key() -> None:
    server = make_server(**KEYS)
    for route in routes(server.state):
        if route.path not in ("/", "/health", "/ready"):
            reply = call(server.app, route.method, route.path.replace("{model}", "tiny"), {})
            assert (route.path, reply.status) == (route.path, 401)
            assert reply.headers["www-authenticate"] == "Bearer"
            if route.error is ErrorBody:
                assert (reply.error["type"], reply.error["code"]) == ("AuthenticationError", "invalid_api_key")


@pytest.mark.parametrize(
    "path",
    ["/nowhere", "//v1/models", "/health/../v1/models", "/Health", "/health/x", "/v1/models?/health", "/metrics/"],
)
def test_unknown_and_strange_paths_need_a_key_too(path: str) -> None:
    assert make_server(**KEYS).get(path).status == 401


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer first-key", 200),
        ("Bearer second-kéy".encode().decode("latin-1"), 200),
        ("bearer first-key", 200),
        ("BEARER   first-key ", 200),
        ("Bearer first-ke", 401),
        ("Bearer first-key2", 401),
        ("Bearer FIRST-KEY", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("first-key", 401),
        ("Basic first-key", 401),
        ("Bearer\tfirst-key", 401),
        ("Bearer first-key, Bearer x", 401),
        ("Bearer ÿþ", 401),
    ],
)
def test_e2_e3_the_key_must_be_exact_and_the_scheme_may_have_any_case(header: str, status: int) -> None:
    assert make_server(**KEYS).get("/v1/models", {"authorization": header}).status == status


def test_a_wrong_key_is_not_repeated_to_the_caller() -> None:
    assert b"guess" not in make_server(**KEYS).get("/v1/models", {"authorization": "Bearer guess"}).body


def test_w17_keys_are_compared_as_digests_of_one_length(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def spy(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    server = make_server(**KEYS)
    for guess in ("f", "first-key", "x" * 1000):
        server.get("/v1/models", {"authorization": f"Bearer {guess}"})
    assert len(compared) == 6  # all keys each time: the first match does not end it
    assert {len(part) for pair in compared for part in pair} == {32}


def test_without_keys_everything_is_open() -> None:
    assert make_server().get("/v1/models").status == 200


# ---------------------------------------------------------------- request ids
def test_e16_a_sane_request_id_is_echoed() -> None:
    assert make_server().get("/version", {"x-request-id": "abc-123"}).headers["x-request-id"] == "abc-123"


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\x01b", "é", "a\r\nb"])
def test_any_other_gets_a_new_one(given: str) -> None:
    request_id = make_server().get("/version", {"x-request-id": given}).headers["x-request-id"]
    assert len(request_id) == 32 and request_id != given


@pytest.mark.parametrize("path", ["/nowhere", "/v1/models/none", "/v1/chat/completions"])
def test_errors_have_an_id_too(path: str) -> None:
    reply = make_server().post(path, b"{", {"x-request-id": "mine"})
    assert reply.status >= 400 and reply.headers["x-request-id"] == "mine"


def test_a_stream_has_an_id() -> None:
    assert "x-request-id" in make_server().chat(stream=True).headers


# ---------------------------------------------------------------- cross-origin requests
ORIGIN = {"origin": "https://page.example"}
PREFLIGHT = {**ORIGIN, "access-control-request-method": "POST", "access-control-request-headers": "content-type"}


def test_e4_no_cross_origin_headers_unless_configured() -> None:
    reply = make_server().get("/v1/models", ORIGIN)
    assert not [name for name in reply.headers if name.startswith("access-control")]
    assert call(make_server().app, "OPTIONS", "/v1/models", headers=PREFLIGHT).status == 405


def test_e4_a_configured_origin_is_allowed_on_success_and_error_and_preflight_needs_no_key() -> None:
    server = make_server(allowed_origins=["https://page.example"], **KEYS)
    assert call(server.app, "OPTIONS", "/v1/chat/completions", headers=PREFLIGHT).status == 200
    reply = server.get("/v1/models", ORIGIN)
    assert reply.status == 401
    assert reply.headers["access-control-allow-origin"] == "https://page.example"
    other = server.get("/v1/models", {"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_every_origin_never_goes_with_credentials(caplog: pytest.LogCaptureFixture) -> None:
    reply = make_server(allowed_origins=["*"], allow_credentials=True).get("/v1/models", ORIGIN)
    assert reply.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in reply.headers
    assert "credentials" in caplog.text


# ---------------------------------------------------------------- paths and headers
@pytest.mark.parametrize("path", ["/api/v1/models", "/api/api/v1/models", "/v1/models"])
def test_e19_root_path_is_taken_off_however_often_it_was_added(path: str) -> None:
    assert make_server(root_path="/api").get(path).status == 200


def test_root_path_is_a_whole_part_of_the_path() -> None:
    assert make_server(root_path="api/").get("/apiv1/models").status == 404
    assert make_server(root_path="/api", **KEYS).get("/api/health").status == 200
    assert make_server(root_path="/api", **KEYS).get("/api").body == make_server().get("/").body
    assert make_server(root_path="/api", **KEYS).get("/api/metrics").status == 401


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/v1/models/", "/health/"])
def test_a_trailing_slash_makes_no_difference(path: str) -> None:
    assert make_server().get(path).status == 200


def test_e12_405_names_what_is_allowed() -> None:
    reply = make_server().get("/v1/chat/completions")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert reply.error["code"] == "method_not_allowed"
    assert reply.error["message"] == "GET is not allowed on /v1/chat/completions; use POST."
    assert make_server().post("/v1/models", {}).headers["allow"] == "GET, HEAD"
    assert call(make_server().app, "DELETE", "/ping").headers["allow"] == "GET, HEAD, POST"


def test_e17_trace_headers_change_nothing_and_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    server = make_server()
    server.get("/version")
    assert "trace" not in caplog.text
    for name in ("traceparent", "tracestate", "traceparent"):
        assert server.get("/version", {name: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}).status == 200
    assert caplog.text.count("trace headers") == 1


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({f"x-{i}": "y" for i in range(MAX_HEADERS - 2)}, 200),  # two more are always sent
        ({f"x-{i}": "y" for i in range(MAX_HEADERS - 1)}, 431),
        ({f"x-{i}": "y" for i in range(5000)}, 431),
        ({"x": "y" * (MAX_HEADER_BYTES - 100)}, 200),
        ({"x": "y" * MAX_HEADER_BYTES}, 431),
        ({"x" * MAX_HEADER_BYTES: "y"}, 431),
        ({f"x-{i}": "y" * 1000 for i in range(70)}, 431),
        ({f"{'x' * 1000}-{i}": "y" for i in range(70)}, 431),
        ({"cookie": "y" * 100_000}, 431),
        ({"authorization": "Bearer " + "y" * 100_000}, 431),
        ({"accept": "*/*", "user-agent": "a\x7f\x80"}, 200),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("path", ["/version", "/v1/models", "/nowhere"])
def test_headers_are_bounded_in_number_and_size_on_every_path(headers: Any, status: int, path: str) -> None:
    reply = make_server().get(path, headers)
    assert reply.status == (404 if path == "/nowhere" and status == 200 else status)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize("length", ["1001", "", "10", "99999999999999999999"])
def test_a_body_is_bounded_on_every_route(path: str, length: str) -> None:
    server = make_server(max_body_bytes=1000)
    reply = call(server.app, "POST", path, None, {"content-length": length}, chunks=[b" " * 501] * 2)
    assert (reply.status, reply.headers["connection"]) == (413, "close")


def test_e22_every_route_is_told_in_the_log_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="octavo"):
        server = make_server()
    told = {record.getMessage() for record in caplog.records}
    assert {f"route {route.method} {route.path}" for route in routes(server.state)} <= told


def test_too_many_headers_are_refused() -> None:
    many = {f"x-{i}": "y" for i in range(MAX_HEADERS + 1)}
    assert make_server().get("/version", many).status == 431
    assert make_server().get("/version", {"x-long": "y" * 70_000}).status == 431


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"]
)
def test_e6_only_json_is_accepted(content_type: str) -> None:
    reply = make_server().post("/v1/completions", {"prompt": "a"}, {"content-type": content_type})
    assert reply.status == 400
    got = f"'{content_type.partition(';')[0]}'" if content_type else "no Content-Type"
    assert reply.error["message"] == f"Unsupported Media Type: Only 'application/json' is allowed; got {got}"


@pytest.mark.parametrize(
    "parameters", ["", ";charset=utf-8", "; Charset=UTF-8", '; charset="utf8"', ";v=1; charset=ASCII"]
)
def test_the_charset_of_json_may_be_said(parameters: str) -> None:
    headers = {"content-type": f"Application/JSON{parameters}"}
    assert make_server().post("/v1/completions", {"prompt": "a"}, headers).status == 200


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"content-type": "application/json; charset=latin-1"}, "latin-1"),
        ({"content-type": 'application/json;charset="UTF-16"'}, "UTF-16"),
        ({"content-encoding": "gzip"}, "gzip"),
        ({"content-encoding": "br, identity"}, "br, identity"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
def test_a_body_in_another_coding_is_refused_by_its_name_before_it_is_read(
    headers: dict[str, str], named: str, path: str
) -> None:
    reply = make_server().post(path, b"\x1f\x8b", headers)
    assert (reply.status, reply.error["code"]) == (415, "unsupported_media_type")
    assert f"'{named}'" in reply.error["message"] and reply.headers["accept-encoding"] == "identity"


# ---------------------------------------------------------------- paths that lead nowhere
NEAR_PATHS = [
    ("/chat/completions", "/v1/chat/completions"),
    ("/v1/v1/chat/completions", "/v1/chat/completions"),
    ("/api/v1/chat/completions", "/v1/chat/completions"),
    ("/openai/deployments/gpt/chat/completions", "/v1/chat/completions"),
    ("/v1/chat/completion", "/v1/chat/completions"),
    ("/v1/chat/completions/x", "/v1/chat/completions"),
    ("/V1/Chat/Completions", "/v1/chat/completions"),
    ("/v1/chat", "/v1/chat/completions"),
    ("/completions", "/v1/completions"),
    ("/models", "/v1/models"),
    ("/models/org/tiny", "/v1/models/org/tiny"),
    ("/v1/tokenize", "/tokenize"),
    ("/v1/health", "/health"),
    ("/healthz", "/health"),
    ("/v1/metric", "/metrics"),
]


@pytest.mark.parametrize(("path", "meant"), NEAR_PATHS)
def test_a_path_beside_a_route_is_answered_with_the_route(path: str, meant: str) -> None:
    for method in ("GET", "POST"):
        reply = call(make_server().app, method, path, {})
        assert (reply.status, reply.error["code"]) == (404, "route_not_found")
        assert reply.error["message"] == f"There is no route {path}; did you mean {meant}?"


@pytest.mark.parametrize(
    ("path", "what", "instead"),
    [
        ("/v1/audio/speech", "audio", None),
        ("/v1/images/generations", "images", None),
        ("/v1/moderations", "moderations", None),
        ("/v1/files", "files", None),
        ("/v1/batches", "batches", "`octavo run-batch` for a file of requests"),
        ("/v1/fine_tuning/jobs", "fine-tuning", None),
        ("/v1/assistants", "the Assistants API", "/v1/chat/completions"),
        ("/slots", "llama.cpp's slots here", "/metrics, or --slots for GET /slots"),
    ],
)
def test_what_octavo_does_not_serve_is_said_by_its_name(path: str, what: str, instead: str | None) -> None:
    """As a 404: OpenAI's clients send again what got a 501."""
    reply = make_server().post(path, {"model": "m", "input": "x"})
    assert (reply.status, reply.error["code"]) == (404, "route_not_served")
    hint = f"; use {instead}" if instead else ""
    assert reply.error["message"] == f"octavo does not serve {what}: there is no route {path}{hint}."


@pytest.mark.parametrize("path", ["/v1", "/favicon.ico", "/livez", "/x" * 90, "/session"])
def test_any_other_path_is_repeated_and_the_documentation_named(path: str) -> None:
    assert make_server().get(path).error["message"] == f"There is no route {path}; see /docs."
    bare = make_server(disable_fastapi_docs=True).get(path)
    assert bare.error["message"] == f"There is no route {path}."


def test_a_path_of_any_length_costs_nothing_and_is_clipped() -> None:
    reply = make_server().get("/v1" + "/chat" * 10_000)
    assert reply.status == 404 and len(reply.body) < 400


@pytest.mark.parametrize("path", ["//v1/models", "/v1//models", "//v1///models//", "/v1/models/"])
def test_slashes_may_be_doubled(path: str) -> None:
    assert make_server().get(path).status == 200
    assert make_server(root_path="/api").get("/api/" + path).status == 200


# ---------------------------------------------------------------- other kinds of scopes
def run_scope(scope: dict[str, Any], *received: str, **config: Any) -> list[str]:
    sent: list[str] = []

    async def run() -> None:
        messages = [{"type": kind} for kind in received]

        async def receive() -> dict[str, Any]:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await make_server(**config).app(scope, receive, send)

    asyncio.run(run())
    return sent


@pytest.mark.parametrize("disable_log_stats", [False, True])
def test_lifespan_starts_and_ends(disable_log_stats: bool) -> None:
    assert run_scope(
        {"type": "lifespan"}, "lifespan.startup", "lifespan.shutdown", disable_log_stats=disable_log_stats
    ) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_websockets_are_refused() -> None:
    assert run_scope({"type": "websocket"}, "websocket.connect") == ["websocket.close"]
