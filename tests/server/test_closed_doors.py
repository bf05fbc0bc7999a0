"""What other servers have been entered by, and is not here: control routes, and tensors, code and files in requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo.server.app import routes
from support.server_fakes import CONTEXT, answer, call, drive, make_server

CONTROL = [
    "/pause", "/resume", "/sleep", "/wake_up", "/abort_requests", "/flush_cache", "/reset_prefix_cache",
    "/start_profile", "/stop_profile", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/update_weights",
    "/init_weights_update_group", "/release_memory_occupation", "/api/pull", "/api/delete", "/models/load", "/slots/0",
    "/server_info", "/collective_rpc", "/v1/files",
]  # fmt: skip


@pytest.mark.parametrize("path", CONTROL)
def test_there_are_no_control_routes_and_a_key_is_asked_for_first(path: str) -> None:
    for method in ("GET", "POST"):
        assert call(make_server().app, method, path, {}).status == 404
        assert call(make_server(api_key=["k"]).app, method, path, {}).status == 401


def test_the_routes_are_these_and_no_others() -> None:
    """A new one has to be looked at here: may it answer without a key, and what does it let a client do?"""
    for_admins = {("POST", "/reset_prefix_cache"), ("POST", "/abort_requests"), ("GET", "/server_info")}
    assert {(r.method, r.path) for r in routes(make_server(admin_api_key="a").state) if r.for_admins} == for_admins
    for_admins |= {("POST", "/sleep"), ("POST", "/wake_up"), ("GET", "/is_sleeping")}
    sleepy = make_server(admin_api_key="a", enable_sleep_mode=True)
    assert {(r.method, r.path) for r in routes(sleepy.state) if r.for_admins} == for_admins
    assert {(route.method, route.path) for route in routes(make_server().state)} == {
        ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions/input_tokens"),
        ("POST", "/v1/responses"), ("POST", "/v1/responses/input_tokens"), ("GET", "/v1/responses/{response_id}"),
        ("DELETE", "/v1/responses/{response_id}"), ("POST", "/v1/responses/{response_id}/cancel"),
        ("GET", "/v1/responses/{response_id}/input_items"), ("POST", "/v1/conversations"),
        ("GET", "/v1/conversations/{conversation_id}"), ("POST", "/v1/conversations/{conversation_id}"),
        ("DELETE", "/v1/conversations/{conversation_id}"), ("GET", "/v1/conversations/{conversation_id}/items"),
        ("POST", "/v1/conversations/{conversation_id}/items"),
        ("GET", "/v1/conversations/{conversation_id}/items/{item_id}"),
        ("DELETE", "/v1/conversations/{conversation_id}/items/{item_id}"),
        ("GET", "/v1/models/{model}"), ("POST", "/tokenize"), ("POST", "/detokenize"), ("GET", "/health"),
        ("GET", "/ready"), ("GET", "/load"), ("GET", "/ping"), ("POST", "/ping"), ("GET", "/version"),
        ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/redoc"),
        ("GET", "/"), ("POST", "/v1/messages"), ("POST", "/v1/messages/count_tokens"),
        ("POST", "/api/chat"), ("POST", "/api/generate"), ("POST", "/api/show"), ("GET", "/api/tags"),
        ("GET", "/api/ps"), ("GET", "/api/version"), ("POST", "/invocations"), ("POST", "/v1/chat/completions/batch"),
        ("POST", "/apply-template"), ("POST", "/completion"), ("POST", "/infill"), ("GET", "/props"),
        ("POST", "/inference/v1/generate"),
        ("POST", "/v1/audio/transcriptions"), ("POST", "/v1/audio/translations"),
        ("POST", "/v1/embeddings"), ("POST", "/pooling"), ("POST", "/classify"), ("POST", "/score"),
        ("POST", "/v1/score"), ("POST", "/rerank"), ("POST", "/v1/rerank"), ("POST", "/v2/rerank"),
        ("POST", "/api/embed"), ("POST", "/api/embeddings"),
    }  # fmt: skip


#: Fields by which tensors, code or files have come into servers.
PAYLOADS: list[tuple[str, Any]] = [
    ("prompt_embeds", "gASVAAAA"),
    ("custom_logit_processor", '{"callable": "80049500"}'),
    ("logits_processors", ["os.system"]),
    ("lora_path", "/etc/passwd"),
    ("kv_transfer_params", {"remote_host": "10.0.0.1", "remote_port": 1}),
    ("mm_processor_kwargs", {"max_frames": 10**9}),
    ("media_io_kwargs", {"video": {"fps": 10**9}}),
    ("vllm_xargs", {"code": "__import__('os')"}),
    ("input_embeds", [[0.0] * 8]),
    ("image_data", "file:///etc/passwd"),
    ("guided_decoding_backend", "os:system"),
    ("chat_template", "{{ cycler.__init__.__globals__ }}"),
]


@pytest.mark.parametrize("row", PAYLOADS, ids=lambda row: row[0])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_payload_is_refused_or_named_as_ignored_and_goes_nowhere(row: Any, path: str) -> None:
    name, value = row
    server = make_server()
    body = {"prompt": "a"} if path.endswith("/v1/completions") else {"messages": [{"role": "user", "content": "a"}]}
    reply = server.post(path, {**body, name: value})
    if reply.status == 400:
        assert reply.error["param"] == name
        return
    assert name in reply.headers["x-octavo-ignored-fields"]
    (request,) = server.engine.requests
    assert request.params == make_and_take(path, body)


def make_and_take(path: str, body: dict[str, Any]) -> Any:
    """The parameters of the same request without the payload."""
    server = make_server()
    server.post(path, body)
    return server.engine.requests[0].params


# ---------------------------------------------------------------- ids that a client chooses
SAME = ["a", "A", "1", "0", "-1", "r", "chatcmpl-1", "x" * 128, "..", "a/b", "%00", "id;drop"]


@pytest.mark.parametrize("request_id", SAME)
def test_two_requests_of_one_id_do_not_touch_each_other(request_id: str) -> None:
    """E16: the id is echoed and logged, and no key of anything; one that leaves does not end the other."""

    async def main() -> None:
        gate = asyncio.Event()
        server = make_server(lambda r: [*answer("Hi!")[:1], gate, *answer("Hi!")[1:]])
        gone, begun = asyncio.Event(), [asyncio.Event(), asyncio.Event()]
        body, headers = {"prompt": "a", "stream": True}, {"x-request-id": request_id}
        leaving, staying = (
            asyncio.create_task(
                drive(
                    server.app, "POST", "/v1/completions", body, headers,
                    disconnect=disconnect, on_write=lambda _, event=event: event.set(),  # type: ignore[misc]
                )
            )
            for event, disconnect in zip(begun, (gone, None), strict=True)
        )  # fmt: skip
        await asyncio.gather(*(event.wait() for event in begun))
        gone.set()
        await leaving
        assert server.engine.num_open == 1
        gate.set()
        reply = await staying
        assert reply.headers["x-request-id"] == request_id
        assert "".join(event["choices"][0]["text"] for event in reply.events()) == "Hi!"
        assert server.engine.num_open == 0

    asyncio.run(asyncio.wait_for(main(), 20))


# ---------------------------------------------------------------- the cost of a tokenizer
@pytest.mark.parametrize("char", ["a", " ", "\n", "\u00e9", "\u4f60", "\U0001f642", "\x00", "<", "0", "\u0e33"])
def test_what_cannot_fit_is_refused_before_it_is_tokenized(char: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_server()
    monkeypatch.setattr(server.renderer, "render_text", None)  # calling it would fail
    monkeypatch.setattr(server.renderer, "chat_text", None)
    text = char * (CONTEXT * 256 + 1)
    for reply in (server.complete(text), server.complete(["a" * 3, text][1:]), server.chat(text)):
        assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert server.post("/tokenize", {"prompt": text}).status == 400
    assert server.engine.requests == []
