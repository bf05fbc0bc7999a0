"""Keys: from a file, in either header, for some paths only, and the administrators'."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.base.config import ServerConfig, check
from octavo.base.errors import InvalidConfig
from octavo.server.app import routes
from octavo.server.keys import OPEN_PATHS, read_keys, with_key_file
from support.server_fakes import call, make_server

KEYS = {"api_key": ["first-key", "second-kéy"]}


# ---------------------------------------------------------------- the header of Anthropic's clients
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": "first-key"}, 200),
        ({"x-api-key": " first-key "}, 200),
        ({"x-api-key": "second-kéy".encode().decode("latin-1")}, 200),
        ({"x-api-key": "Bearer first-key"}, 401),
        ({"x-api-key": "other"}, 401),
        ({"x-api-key": "other", "authorization": "Bearer first-key"}, 200),
        ({"x-api-key": "first-key", "authorization": "Bearer EMPTY"}, 200),
        ({"x-api-key": "first-key", "authorization": "Basic dTpw"}, 200),
        ({"x-api-key": "other", "authorization": "Bearer EMPTY"}, 401),
    ],
)
def test_x_api_key_counts_beside_authorization(headers: dict[str, str], status: int) -> None:
    assert make_server(**KEYS).get("/v1/models", headers).status == status


def test_the_error_says_how_a_key_is_sent() -> None:
    message = make_server(**KEYS).get("/v1/models").error["message"]
    assert "`Authorization: Bearer <key>`" in message and "`x-api-key: <key>`" in message


# ---------------------------------------------------------------- a file of keys
def test_a_file_has_a_key_a_line_and_comments(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# clients\nalpha   # the web shop\n\n  beta\r\nga#mma\n#delta\n", encoding="utf-8")
    assert read_keys(str(file)) == ["alpha", "beta", "ga#mma"]
    config = with_key_file(ServerConfig(api_key=["own"], api_key_file=str(file)))
    assert config.api_key == ["own", "alpha", "beta", "ga#mma"]
    assert with_key_file(ServerConfig(api_key=["own"])) == ServerConfig(api_key=["own"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no key, and would leave the server open"),
        (b"# none\n\n", "holds no key"),
        (b"a b\n", "line 1: more than a key and a comment"),
        (b"a\nb c # d\n", "line 2"),
        (b"\xff\n", "not UTF-8"),
        (None, "cannot be read: No such file"),
        (b"boss\n", "holds the key of --admin-api-key"),
    ],
)
def test_a_bad_file_ends_the_start_and_shows_no_key(tmp_path: Path, content: bytes | None, told: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidConfig) as caught:
        with_key_file(ServerConfig(api_key_file=str(file), admin_api_key="boss"))
    assert told in caught.value.message and "boss" not in caught.value.message


# ---------------------------------------------------------------- public paths
def test_public_paths_answer_without_a_key_and_no_others_do() -> None:
    server = make_server(public_paths=["/metrics", "/version"], **KEYS)
    for route in routes(server.state):
        status = call(server.app, route.method, route.path.replace("{model}", "tiny"), {}).status
        assert (status == 401) == (route.path not in {"/metrics", "/version", *OPEN_PATHS}), route.path
    assert server.get("/metrics/").status == 401, "the exact path is public"


def test_paths_that_can_be_public_are_routes_that_only_tell() -> None:
    (field,) = (f for f in ServerConfig.__dataclass_fields__.values() if f.name == "public_paths")
    server = make_server(enable_tokenizer_info_endpoint=True, admin_api_key="a")
    gets = {route.path for route in routes(server.state) if route.method == "GET" and not route.for_admins}
    assert set(field.metadata["choices"]) <= gets
    with pytest.raises(InvalidConfig, match="--public-paths must be one of .*/metrics"):
        check(ServerConfig(public_paths=["/metric"]))
    with pytest.raises(InvalidConfig, match="--public-paths"):
        check(ServerConfig(public_paths=["/v1/chat/completions"]))


def test_the_document_says_what_needs_a_key() -> None:
    paths = make_server(public_paths=["/metrics", "/openapi.json"], admin_api_key="a", **KEYS)
    document = paths.get("/openapi.json").json()["paths"]
    assert "security" not in document["/metrics"]["get"] and "security" in document["/version"]["get"]
    assert "403" in document["/abort_requests"]["post"]["responses"]
    assert "410" in document["/v1/completions"]["post"]["responses"]
    assert "410" not in make_server().get("/openapi.json").json()["paths"]["/v1/completions"]["post"]["responses"]
    open_one = make_server(admin_api_key="a").get("/openapi.json").json()["paths"]
    assert "security" not in open_one["/version"]["get"] and "security" in open_one["/abort_requests"]["post"]


# ---------------------------------------------------------------- the administrators' key
ADMIN = ("/reset_prefix_cache", "/abort_requests", "/server_info")


@pytest.mark.parametrize("path", [*ADMIN, "/reset_prefix_cache/", "//abort_requests"])
@pytest.mark.parametrize("keys", [{}, KEYS])
def test_routes_for_administrators_take_their_key_alone(path: str, keys: dict[str, list[str]]) -> None:
    server = make_server(admin_api_key="boss", **keys)
    method, body = ("GET", None) if "info" in path else ("POST", {"all": True})
    for headers, status, code in (
        ({}, 401, "invalid_api_key"),
        ({"authorization": "Bearer first-key"}, 403, "admin_key_required"),
        ({"authorization": "Bearer boss"}, 200, None),
        ({"x-api-key": "boss"}, 200, None),
    ):
        reply = call(server.app, method, path, body, headers)
        assert reply.status == status
        assert code is None or reply.error["code"] == code
    assert server.engine.num_resets == (2 if "reset" in path else 0)


def test_the_administrators_key_opens_all_other_paths_too() -> None:
    assert make_server(admin_api_key="boss", **KEYS).get("/v1/models", {"x-api-key": "boss"}).status == 200
    assert make_server(admin_api_key="boss").get("/v1/models").status == 200, "no other key was asked for"


@pytest.mark.parametrize("path", ADMIN)
def test_without_an_admin_key_there_are_no_such_routes(path: str) -> None:
    reply = make_server().post(path, {})
    assert reply.status == 404 and "--admin-api-key" in reply.error["message"]


@pytest.mark.parametrize("path", ["/sleep", "/wake_up", "/is_sleeping"])
def test_sleep_mode_is_asked_for_by_its_flag_and_by_the_key(path: str) -> None:
    for server in (make_server(), make_server(admin_api_key="boss"), make_server(enable_sleep_mode=True)):
        reply = server.post(path, {})
        assert (reply.status, reply.error["code"]) == (404, "route_not_served")
        assert "--enable-sleep-mode" in reply.error["message"] and "--admin-api-key" in reply.error["message"]
    server = make_server(admin_api_key="boss", enable_sleep_mode=True, **KEYS)
    method = "GET" if path == "/is_sleeping" else "POST"
    assert call(server.app, method, path, None, {"authorization": "Bearer first-key"}).status == 403
    assert call(server.app, method, path, None, {"authorization": "Bearer boss"}).status == 200


def test_keys_that_would_be_one_are_refused() -> None:
    for wrong in ({"admin_api_key": ""}, {"admin_api_key": "k", "api_key": ["k"]}):
        with pytest.raises(InvalidConfig, match="--admin-api-key"):
            check(ServerConfig(**wrong))
