"""/openapi.json describes what is there, and /docs shows it without anybody else's help."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest

from octavo.base.params import GenerateRequest
from octavo.client.generation import GenerationDelta
from octavo.server.app import routes
from octavo.wire.messages import TokenLogprobs
from support.server_fakes import answer, make_server, with_logprobs


@pytest.fixture(scope="module")
def document() -> Any:
    reply = make_server().get("/openapi.json")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    return reply.json()


def schema(document: Any, name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}", "components": document["components"]}


def test_every_route_is_described_and_nothing_else(document: Any) -> None:
    state = make_server(disable_fastapi_docs=True).state
    described = {(m.upper(), path) for path, methods in document["paths"].items() for m in methods}
    assert described == {(route.method, route.path) for route in routes(state)}
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


def test_references_lead_somewhere_and_schemas_are_valid(document: Any) -> None:
    names = set(document["components"]["schemas"])
    found = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert found <= names
    for each in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(each)


BODIES: list[tuple[str, dict[str, Any], bool]] = [
    ("ChatRequest", {"messages": [{"role": "user", "content": "a"}]}, True),
    ("ChatRequest", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, True),
    ("ChatRequest", {"messages": []}, False),
    ("ChatRequest", {}, False),
    ("ChatRequest", {"messages": [{"role": "user"}], "temperature": "hot"}, False),
    ("CompletionRequest", {"prompt": "a", "stop": "x", "logit_bias": {"5": 1}}, True),
    ("CompletionRequest", {"prompt": ["a"], "stop": ["x"], "stream_options": {"include_usage": True}}, True),
    ("CompletionRequest", {"prompt": [1, 2]}, True),
    ("CompletionRequest", {"prompt": [[1], [2]], "n": None}, True),
    ("CompletionRequest", {"prompt": 5}, False),
    ("CompletionRequest", {"prompt": "a", "stop": 5}, False),
    ("CompletionRequest", {"prompt": "a", "early_stopping": "never"}, True),
    ("CompletionRequest", {"prompt": "a", "max_tokens": 0, "echo": True}, True),
    ("ResponsesRequest", {"input": "a", "max_output_tokens": 5}, True),
    ("ResponsesRequest", {"input": [{"role": "user", "content": "a"}, {"id": "msg_1"}]}, True),
    ("ResponsesRequest", {"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}]}, True),
    ("ResponsesRequest", {"input": 5}, False),
    ("ResponsesRequest", {"input": "a", "max_output_tokens": 0}, False),
    ("ResponsesRequest", {"input": "a", "tools": [{"type": "function"}]}, False),
    ("TokenizeRequest", {"prompt": "a"}, True),
    ("DetokenizeRequest", {"tokens": [1]}, True),
    ("DetokenizeRequest", {"tokens": "a"}, False),
]


@pytest.mark.parametrize("row", BODIES, ids=str)
def test_bodies(document: Any, row: Any) -> None:
    name, body, is_valid = row
    assert jsonschema.Draft202012Validator(schema(document, name)).is_valid(body) == is_valid


# A value at each end of a range, and one beyond it: the schema and the server must agree on every one.
RANGES: list[tuple[str, list[Any], list[Any]]] = [
    ("n", [1, 128], [0, -1, 129]),
    ("best_of", [1, 128], [0, 129]),
    ("temperature", [0.01, 2], [-0.01, 2.01]),
    ("top_p", [0, 1], [-0.1, 1.001]),
    ("top_k", [-1, 0, 1, 2**63 - 1], [-2, 2**63]),
    ("min_p", [0, 1], [-0.1, 1.1]),
    ("seed", [-(2**63), 2**63 - 1], [2**63, -(2**63) - 1]),
    ("presence_penalty", [-2, 2], [-2.1, 2.1]),
    ("frequency_penalty", [-2, 2], [-2.1, 2.1]),
    ("repetition_penalty", [1e-6, 1e6], [0, -1, 1e-7, 1e7]),
    ("max_tokens", [1, 100], [-1]),
    ("max_completion_tokens", [1, 100], [0, -1]),
    ("min_tokens", [0, 5], [-1]),
    ("top_logprobs", [0, 20], [-1, 21]),
    ("prompt_logprobs", [0, 20], [-1, 21]),
    ("truncate_prompt_tokens", [-1, 1, 512], [-2, 513]),
    ("stop", ["x", ["x"] * 4, []], ["", [""], ["x"] * 5, "x" * 4097]),
    ("stop_token_ids", [[0, 299], []], [[-1], [300]]),
    ("allowed_token_ids", [[0, 299]], [[], [-1], [300]]),
    ("logit_bias", [{"0": 1, "299": -1}, {}], [{"x": 1}, {"-1": 1}, {str(i): 1 for i in range(1025)}]),
    ("bad_words", [["x"], []], [[""], ["x" * 513], ["x"] * 129]),
    ("cache_salt", ["", "x" * 256], ["x" * 257]),
    ("request_id", ["a", "x" * 128], ["", "x" * 129, "a b"]),
]


def scored(request: GenerateRequest) -> list[GenerationDelta]:
    deltas = answer("Hi", n=request.params.n)
    deltas[0].prompt_logprobs = [TokenLogprobs(-1.0, 1, [], [])] * (len(request.prompt_token_ids) - 1)
    return deltas


@pytest.mark.parametrize("row", RANGES, ids=lambda row: row[0])
def test_ranges_are_described_as_they_are_checked(document: Any, row: Any) -> None:
    """One declaration of a range feeds the check and the description."""
    name, inside, outside = row
    server = make_server(scored)
    validator = jsonschema.Draft202012Validator(schema(document, "ChatRequest"))
    for value in [*inside, *outside]:
        body = {"messages": [{"role": "user", "content": "a"}], "logprobs": name == "top_logprobs", name: value}
        reply = server.post("/v1/chat/completions", body)
        is_described = validator.is_valid(body)
        assert (reply.status == 200, is_described) == (value in inside, value in inside), (value, reply.body)
        if reply.status != 200:
            assert reply.error["param"].split(".")[0] == name
            assert reply.error["message"].count(";") == 0  # one complaint about one value


def test_ranges_follow_the_settings_of_the_server() -> None:
    server = make_server(max_n=4, max_logprobs=-1, max_stop_strings=1, max_logit_bias=2)
    found = server.get("/openapi.json").json()["components"]["schemas"]["CompletionRequest"]["properties"]
    assert found["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 4}
    assert found["logprobs"]["anyOf"][0] == {"type": "integer", "minimum": -1, "maximum": 300}
    assert found["stop"]["anyOf"][1]["maxItems"] == 1
    assert found["logit_bias"]["anyOf"][0]["maxProperties"] == 2
    assert all(branch.get("minItems", 1) == 1 for branch in found["prompt"]["anyOf"])


def test_replies_are_as_described(document: Any) -> None:
    entries = [TokenLogprobs(-1.0, 1, [72, 73], [-1.0, -2.0]), TokenLogprobs(-1.0, 1, [105], [-1.0])]
    server = make_server(lambda _: with_logprobs(answer("Hi"), entries))
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    replies = [
        ("ChatReply", [server.chat(logprobs=True, top_logprobs=2).json()]),
        ("CompletionReply", [server.complete(logprobs=2).json()]),
        ("ChatChunk", server.chat(logprobs=True, top_logprobs=2, **usage).events()),
        ("CompletionReply", server.complete(logprobs=2, **usage).events()),
        ("ModelList", [server.get("/v1/models").json()]),
        ("ModelCard", [server.get("/v1/models/tiny").json()]),
        ("VersionReply", [server.get("/version").json()]),
        ("TokenizeReply", [server.post("/tokenize", {"prompt": "a", "return_token_strs": True}).json()]),
        ("DetokenizeReply", [server.post("/detokenize", {"tokens": [97]}).json()]),
        ("ErrorBody", [server.get("/v1/models/none").json()]),
    ]
    for name, bodies in replies:
        for body in bodies:
            jsonschema.validate(body, schema(document, name), jsonschema.Draft202012Validator)


def test_the_page_holds_the_document_and_needs_nobody_else() -> None:
    server = make_server()
    reply = server.get("/docs")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    page = reply.body.decode()
    held = re.search(r'<script type="application/json" id="document">(.*?)</script>', page, re.DOTALL)
    assert held is not None
    assert json.loads(held[1]) == server.get("/openapi.json").json()
    assert not re.search(r"(src|href)=|https?://|@import|url\(", page.replace('href="openapi.json"', ""))
    assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_a_name_cannot_break_out_of_the_page() -> None:
    server = make_server(names=("</script><script>alert(1)</script>",))
    page = server.get("/docs").body.decode()
    assert "alert(1)" in page and "<script>alert" not in page


def test_e20_the_documents_can_be_turned_off() -> None:
    server = make_server(disable_fastapi_docs=True)
    assert [server.get(path).status for path in ("/openapi.json", "/docs", "/redoc")] == [404, 404, 404]


def test_e20_keys_guard_them_as_all_else() -> None:
    server = make_server(api_key=["k"])
    for path in ("/openapi.json", "/docs", "/redoc"):
        assert server.get(path).status == 401
        assert server.get(path, {"authorization": "Bearer k"}).status == 200
    document = server.get("/openapi.json", {"authorization": "Bearer k"}).json()
    assert document["components"]["securitySchemes"] == {
        "key": {"type": "http", "scheme": "bearer"},
        "plain_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    guarded = {path for path, methods in document["paths"].items() for o in methods.values() if "security" in o}
    assert guarded == set(document["paths"]) - {"/", "/health", "/ready"}


def test_e20_behind_a_proxy_the_document_names_its_prefix() -> None:
    assert make_server(root_path="/llm").get("/llm/openapi.json").json()["servers"] == [{"url": "/llm"}]


@pytest.mark.parametrize("fields", [{}, {"with_pieces": True}])
def test_both_replies_of_tokenize_are_described(document: Any, fields: dict[str, Any]) -> None:
    described = document["paths"]["/tokenize"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    reply = make_server().post("/tokenize", {"content": "ab", **fields}).json()
    jsonschema.validate(reply, {**described, "components": document["components"]})
