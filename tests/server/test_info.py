"""Models, health, version and metrics."""

from __future__ import annotations

import pytest

import octavo
from support.server_fakes import make_server


def test_e32_models_are_the_served_names_in_order() -> None:
    server = make_server()
    reply = server.get("/v1/models").json()
    assert reply["object"] == "list"
    assert [card["id"] for card in reply["data"]] == ["tiny", "alias"]
    card = reply["data"][0]
    (permission,) = card.pop("permission")
    assert card == {
        "id": "tiny",
        "object": "model",
        "created": server.model.created,
        "owned_by": "octavo",
        "root": "tiny",
        "parent": None,
        "max_model_len": 512,
    }
    assert permission.pop("id").startswith("modelperm-")
    assert permission == {
        "object": "model_permission",
        "created": server.model.created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }


@pytest.mark.parametrize(("name", "status"), [("tiny", 200), ("alias", 200), ("org/model", 404), ("..", 404)])
def test_n1_one_model(name: str, status: int) -> None:
    reply = make_server().get(f"/v1/models/{name}")
    assert reply.status == status
    if status == 404:
        assert reply.error["message"].startswith(f"The model `{name}` does not exist. ")
    else:
        assert reply.json()["id"] == name


def test_a_name_with_slashes_is_one_model() -> None:
    server = make_server(names=("org/model",))
    assert server.get("/v1/models/org/model").json()["id"] == "org/model"


@pytest.mark.parametrize("path", ["/health", "/ready", "/ping"])
def test_e36_healthy_is_200_and_empty(path: str) -> None:
    reply = make_server().get(path)
    assert (reply.status, reply.body) == (200, b"")


@pytest.mark.parametrize("path", ["/health", "/ready", "/ping"])
def test_a_dead_engine_is_503_everywhere(path: str) -> None:
    server = make_server()
    server.engine.is_healthy = server.engine.is_ready = False
    server.engine.dead_reason = "The engine process is dead: killed."
    assert (server.get(path).status, server.get(path).error["code"]) == (503, "engine_dead")
    assert server.chat().error["message"] == "The engine process is dead: killed."
    assert server.complete(stream=True).status == 503
    assert server.engine.requests == []


def test_a_draining_server_is_alive_but_not_ready() -> None:
    server = make_server()
    server.engine.is_ready = False
    assert server.get("/health").status == 200
    assert (server.get("/ready").status, server.get("/ready").error["code"]) == (503, "shutting_down")
    reply = server.chat()
    assert (reply.status, reply.headers["retry-after"]) == (503, "5")
    assert server.get("/v1/models").status == 200


def test_e37_version() -> None:
    assert make_server().get("/version").json() == {"version": octavo.__version__}


def test_the_tokenizer_is_told_of_only_where_that_is_switched_on() -> None:
    assert make_server().get("/tokenizer_info").status == 404
    server = make_server(enable_tokenizer_info_endpoint=True, api_key=["k"])
    object.__setattr__(server.model, "tokenizer_info", b'{"tokenizer_class": "X"}')
    assert server.get("/tokenizer_info").status == 401
    reply = server.get("/tokenizer_info", {"authorization": "Bearer k"})
    assert (reply.json(), reply.headers["content-type"]) == ({"tokenizer_class": "X"}, "application/json")
    document = server.get("/openapi.json", {"authorization": "Bearer k"}).json()
    assert "/tokenizer_info" in document["paths"]


def test_e38_metrics_count_requests_by_route_and_status() -> None:
    server = make_server()
    server.chat()
    server.chat(n=0)
    server.get("/secret-path")
    reply = server.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    text = reply.body.decode()
    assert 'http_requests_total{handler="/v1/chat/completions",method="POST",status="200"} 1.0' in text
    assert 'http_requests_total{handler="/v1/chat/completions",method="POST",status="400"} 1.0' in text
    assert 'http_requests_total{handler="none",method="GET",status="404"} 1.0' in text
    assert "secret-path" not in text


def test_w28_labels_do_not_grow_with_what_clients_send() -> None:
    server = make_server()
    server.chat()
    server.get("/v1/models/a")
    server.get("/nowhere")
    before = server.get("/metrics").body.count(b"\n")
    for i in range(50):
        server.chat(model=f"model-{i}", user=f"user-{i}")
        server.get(f"/v1/models/{i}")
        server.get(f"/path-{i}")
    after = server.get("/metrics").body.count(b"\n")
    assert after - before < 30


def test_head_is_answered_like_get() -> None:
    from support.server_fakes import call

    assert call(make_server().app, "HEAD", "/health").status == 200
