"""Chat as a stream: the events, byte for byte where it matters."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octavo.base.errors import EngineDead, Overloaded
from octavo.client.generation import CompletionDelta, GenerationDelta
from octavo.wire.messages import TokenLogprobs
from support.server_fakes import answer, make_server, with_logprobs


def choices(events: list[Any]) -> list[Any]:
    return [event["choices"][0] for event in events if event["choices"]]


def test_e50_framing_of_a_whole_stream_is_golden() -> None:
    server = make_server(lambda _: answer("Hi"))
    reply = server.chat(stream=True)
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    first = reply.events()[0]
    head = (
        f'{{"id":"{first["id"]}","object":"chat.completion.chunk","created":{first["created"]},"model":"tiny",'
        f'"system_fingerprint":"{first["system_fingerprint"]}","choices":[{{"index":0,"delta":'
    )
    assert reply.body.decode() == (
        f'data: {head}{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}]}}\n\n'
        f'data: {head}{{"content":"H"}},"logprobs":null,"finish_reason":null}}]}}\n\n'
        f'data: {head}{{"content":"i"}},"logprobs":null,"finish_reason":"stop","stop_reason":null}}]}}\n\n'
        "data: [DONE]\n\n"
    )


def test_e50_one_write_a_delta() -> None:
    server = make_server(lambda _: answer("abc"))
    reply = server.chat(stream=True)
    # The role travels with the first token; the end is one write of its own.
    assert [write.count(b"data: ") for write in reply.writes] == [2, 1, 1, 1]


def test_e50_text_with_newlines_stays_one_line() -> None:
    text = "a\n\nb\r\u2028"
    delta = GenerationDelta([CompletionDelta(0, text, [1], None, "stop")], 1, 0, 1, True)
    events = make_server(lambda _: [delta]).chat(stream=True).events()
    assert events[1]["choices"][0]["delta"]["content"] == text


def test_e51_id_created_model_and_fingerprint_are_the_same_in_all_chunks() -> None:
    events = make_server(lambda _: answer("Hello")).chat(stream=True, model="alias").events()
    assert len({(e["id"], e["created"], e["model"], e["system_fingerprint"], e["object"]) for e in events}) == 1
    assert events[0]["model"] == "alias"
    assert events[0]["id"].removeprefix("chatcmpl-").isalnum() and len(events[0]["id"]) == len("chatcmpl-") + 32
    assert all("usage" not in e for e in events)


def test_e52_first_chunk_has_the_role_and_empty_content_once_a_choice() -> None:
    events = choices(make_server().chat(stream=True, n=2, temperature=1).events())
    assert [(c["index"], c["delta"]) for c in events[:2]] == [
        (0, {"role": "assistant", "content": ""}),
        (1, {"role": "assistant", "content": ""}),
    ]
    assert all("role" not in c["delta"] for c in events[2:])


def test_e54_a_merged_delta_is_one_chunk_and_held_text_is_none() -> None:
    deltas = [
        GenerationDelta([CompletionDelta(0, "one two", [1, 2])], 4, 0, 2, False),
        GenerationDelta([CompletionDelta(0, "", [3])], 4, 0, 3, False),  # held back: could begin a stop string
        GenerationDelta([CompletionDelta(0, "", [4], None, "stop", "END")], 4, 0, 4, True),
    ]
    events = choices(make_server(lambda _: deltas).chat(stream=True).events())
    assert [c["delta"] for c in events] == [{"role": "assistant", "content": ""}, {"content": "one two"}, {}]
    assert events[-1]["stop_reason"] == "END"


def test_e55_exactly_one_finish_chunk_a_choice_and_it_carries_the_last_text() -> None:
    script = lambda request: answer("xyz", n=request.params.n, reason="length")  # noqa: E731
    events = choices(make_server(script).chat(stream=True, n=3, temperature=1).events())
    finishes = [c for c in events if c["finish_reason"] is not None]
    assert sorted(c["index"] for c in finishes) == [0, 1, 2]
    assert all(c["finish_reason"] == "length" and c["delta"] == {"content": "z"} for c in finishes)


def test_e56_usage_is_null_until_a_last_chunk_without_choices() -> None:
    server = make_server(lambda _: answer("Hi", num_prompt=7, num_cached=4))
    events = server.chat(stream=True, stream_options={"include_usage": True}).events()
    assert [e["usage"] for e in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_e56_continuous_usage_runs_along() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = make_server(lambda _: answer("abc")).chat(stream=True, stream_options=options).events()
    assert [e["usage"]["completion_tokens"] for e in events] == [1, 1, 2, 3, 3]


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"continuous_usage_stats": True}])
def test_d2_no_usage_unless_asked_for(options: dict[str, bool] | None) -> None:
    events = make_server().chat(stream=True, stream_options=options).events()
    assert all("usage" not in e and e["choices"] for e in events)


def test_d3_usage_sums_all_choices() -> None:
    server = make_server(lambda request: answer("Hi!", n=request.params.n))
    events = server.chat(stream=True, n=4, temperature=1, stream_options={"include_usage": True}).events()
    assert events[-1]["usage"]["completion_tokens"] == 12
    assert events[-1]["usage"]["prompt_tokens"] == 5


def test_e57_choices_are_interleaved_and_each_reads_whole() -> None:
    server = make_server(lambda request: answer("Hello", n=request.params.n))
    texts: dict[int, str] = {}
    order = []
    for choice in choices(server.chat(stream=True, n=2, temperature=1).events()):
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["delta"].get("content", "")
        order.append(choice["index"])
    assert texts == {0: "Hello", 1: "Hello"}
    assert order == [0, 1] * 6


def test_chat_logprobs_stream_with_their_tokens() -> None:
    entries = [
        TokenLogprobs(-0.5, 1, [72, 74], [-0.5, -1.5]),
        TokenLogprobs(float("-inf"), 9, [106, 105], [-0.1, -3.0]),
    ]
    server = make_server(lambda _: with_logprobs(answer("Hi"), entries))
    events = choices(server.chat(stream=True, logprobs=True, top_logprobs=1).events())
    assert events[0]["logprobs"] is None
    assert events[1]["logprobs"] == {
        "content": [
            {
                "token": "H",
                "logprob": -0.5,
                "bytes": [72],
                "top_logprobs": [{"token": "H", "logprob": -0.5, "bytes": [72]}],
            }
        ]
    }
    assert events[2]["logprobs"]["content"][0]["logprob"] == -9999.0


def test_logprobs_of_held_text_are_not_lost() -> None:
    entry = TokenLogprobs(-0.5, 1, [], [])
    deltas = [
        GenerationDelta([CompletionDelta(0, "", [72], [entry])], 1, 0, 1, False),
        GenerationDelta([CompletionDelta(0, "H", [73], [entry], "length")], 1, 0, 2, True),
    ]
    events = choices(make_server(lambda _: deltas).chat(stream=True, logprobs=True).events())
    assert [c["delta"].get("content") for c in events] == ["", "", "H"]
    assert sum(len(c["logprobs"]["content"]) for c in events if c["logprobs"]) == 2


def test_e14_an_error_after_the_first_byte_is_an_event_and_done() -> None:
    server = make_server(lambda _: [*answer("Hel")[:2], EngineDead("The engine is gone.")])
    reply = server.chat(stream=True)
    assert reply.status == 200
    events = reply.events()
    assert [e["choices"][0]["delta"].get("content") for e in events[:-1]] == ["", "H", "e"]
    assert events[-1] == {
        "error": {
            "message": "The engine is gone.",
            "type": "ServiceUnavailableError",
            "param": None,
            "code": "engine_dead",
        }
    }


def test_e14_a_bug_in_mid_stream_says_nothing_of_itself() -> None:
    server = make_server(lambda _: [*answer("Hel")[:2], RuntimeError("secret at 0x7f00")])
    reply = server.chat(stream=True)
    assert reply.events()[-1]["error"]["message"] == "Internal server error."
    assert b"secret" not in reply.body


@pytest.mark.parametrize("error", [EngineDead("gone"), Overloaded("busy", 7), RuntimeError("bug")])
@pytest.mark.parametrize("at_admission", [True, False])
def test_e50_an_error_before_the_first_token_has_its_own_status(error: Exception, at_admission: bool) -> None:
    server = make_server(lambda _: [error])
    if at_admission:
        server.engine.refusal = error
    reply = server.chat(stream=True)
    assert reply.status == getattr(error, "status", 500)
    assert reply.headers["content-type"] == "application/json"
    assert reply.error["message"] in (str(error), "Internal server error.")
    if isinstance(error, Overloaded):
        assert reply.headers["retry-after"] == "7"


def test_the_stream_folds_to_the_whole_reply() -> None:
    script = lambda request: answer("Grüße, 世界!", n=request.params.n, num_cached=3)  # noqa: E731
    fields: dict[str, Any] = {"n": 2, "temperature": 0.5, "seed": 1}
    whole = make_server(script).chat(**fields).json()
    events = make_server(script).chat(stream=True, stream_options={"include_usage": True}, **fields).events()
    texts = ["", ""]
    for choice in choices(events):
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert events[-1]["usage"] == whole["usage"]
    assert json.dumps(whole)  # plain JSON, no NaN
