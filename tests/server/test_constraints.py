"""A constraint reaches the engine with each sample of each prompt, or ends the request before anything starts."""

from __future__ import annotations

from support.server_fakes import make_server

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def test_g13_chat_and_completions_carry_the_grammar() -> None:
    server = make_server()
    assert server.chat(response_format={"type": "json_schema", "json_schema": {"schema": SCHEMA}}).status == 200
    assert server.complete(["a", "b"], guided_regex="a+", n=2).status == 200
    assert server.chat().status == 200
    grammars = [request.params.grammar for request in server.engine.requests]
    assert grammars == [f"json {SCHEMA}", "regex a+", "regex a+", None]


def test_the_constraint_fields_are_not_named_as_ignored() -> None:
    reply = make_server().chat(guided_choice=["a"], guided_decoding_backend="outlines", banana=1)
    assert reply.headers["x-octavo-ignored-fields"] == "banana"


def test_a_grammar_that_does_not_compile_is_a_400_and_nothing_starts() -> None:
    server = make_server()
    for reply in (server.chat(guided_grammar="refused"), server.chat(guided_grammar="refused", stream=True)):
        assert (reply.status, reply.error["param"]) == (400, "guided_grammar")
    assert server.engine.requests == []


def test_the_limits_are_flags() -> None:
    server = make_server(max_grammar_bytes=100, max_schema_depth=3)
    assert server.chat(guided_json={"enum": ["x" * 100]}).error["param"] == "guided_json"
    assert (
        server.chat(guided_json={"items": {"items": {"items": {}}}}).error["param"] == "guided_json.items.items.items"
    )
    assert server.chat(guided_json={"items": {"items": {}}}).status == 200
