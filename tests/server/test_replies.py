"""Chat replies that are not streamed, and how fields reach the engine and the renderer."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from octavo.wire.messages import TokenLogprobs
from support.server_fakes import answer, call, engine_info, make_server, with_logprobs


def test_e30_whole_chat_reply() -> None:
    reply = make_server(lambda _: answer("Hi!", num_prompt=8, num_cached=3)).chat().json()
    assert reply.pop("id").startswith("chatcmpl-")
    assert reply.pop("created") > 1_700_000_000
    assert reply.pop("system_fingerprint").startswith("fp_")
    assert reply == {
        "object": "chat.completion",
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi!", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": 8,
            "completion_tokens": 3,
            "total_tokens": 11,
            "prompt_tokens_details": {"cached_tokens": 3},
        },
        "prompt_logprobs": None,
    }


def test_e76_usage_and_choices_of_n() -> None:
    reply = make_server(lambda r: answer("abc", n=r.params.n)).chat(n=3).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert reply["usage"]["completion_tokens"] == 9
    assert reply["usage"]["prompt_tokens"] == 5


def test_chat_logprobs_have_bytes_and_the_top() -> None:
    entries = [TokenLogprobs(-1.0, 1, [0xC3, 0xBC, 256], [-1.0, -2.0, -3.0]), TokenLogprobs(-0.5, 1, [33], [-0.5])]
    deltas = with_logprobs(answer("\xc3!"), entries)
    content = make_server(lambda _: deltas).chat(logprobs=True, top_logprobs=3).json()["choices"][0]["logprobs"]
    first = content["content"][0]
    assert (first["token"], first["bytes"]) == ("\ufffd", [0xC3])  # half a character
    assert [top["bytes"] for top in first["top_logprobs"]] == [[0xC3], [0xBC], list(b"<end>")]


def test_logprobs_true_without_top_has_empty_tops() -> None:
    entries = [TokenLogprobs(-1.0, 1, [1, 2], [-1.0, -2.0])]
    reply = make_server(lambda _: with_logprobs(answer("H"), entries)).chat(logprobs=True).json()
    assert reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_s1_to_s17_all_sampling_fields_reach_the_engine() -> None:
    server = make_server()
    fields: dict[str, Any] = {
        "n": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 7, "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "repetition_penalty": 1.1, "max_tokens": 9, "min_tokens": 2, "ignore_eos": True,
        "include_stop_str_in_output": True, "skip_special_tokens": False,
    }  # fmt: skip
    server.chat(
        **fields, stop="END", stop_token_ids=[1, 2], logit_bias={"3": 200}, logprobs=True, top_logprobs=4,
        priority=-3, cache_salt="salt",
    )  # fmt: skip
    request = server.engine.requests[0]
    params = request.params
    assert {name: getattr(params, name) for name in fields} == fields
    assert (params.stop, params.stop_token_ids, params.logit_bias, params.logprobs) == (("END",), (1, 2), {3: 100.0}, 4)
    assert (request.priority, request.cache_salt) == (-3, "salt")
    assert request.prompt_token_ids == list(b"user:Hello")
    assert request.external_id.startswith("chatcmpl-")


def test_s27_bad_words_and_allowed_ids_reach_the_engine() -> None:
    server = make_server()
    server.complete(allowed_token_ids=[5, 6], bad_words=["ab", " c"])
    server.chat(allowed_token_ids=[7], bad_words=[])
    first, second = (request.params for request in server.engine.requests)
    assert first.allowed_token_ids == (5, 6)
    assert first.bad_word_token_ids == ((97, 98), (32, 97, 98), (99,), (32, 99))
    assert (second.allowed_token_ids, second.bad_word_token_ids) == ((7,), ())


def test_defaults() -> None:
    server = make_server()
    server.chat()
    params = server.engine.requests[0].params
    assert (params.temperature, params.top_p, params.n, params.logprobs) == (1.0, 1.0, 1, None)
    assert params.max_tokens == 512 - len("user:Hello")


def test_max_completion_tokens_wins() -> None:
    server = make_server()
    server.chat(max_tokens=5, max_completion_tokens=7)
    assert server.engine.requests[0].params.max_tokens == 7


def test_a_small_kv_cache_bounds_the_request_too() -> None:
    server = make_server(info=engine_info(max_request_tokens=100))
    server.chat()
    assert server.engine.requests[0].params.max_tokens == 100 - len("user:Hello")
    error = server.complete([1] * 90, max_tokens=11).error
    assert error["code"] == "context_length_exceeded"
    assert "KV cache" in error["message"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (True, False)),
        ({"add_generation_prompt": False}, (False, False)),
        ({"continue_final_message": True}, (False, True)),
        ({"continue_final_message": True, "add_generation_prompt": False}, (False, True)),
        ({"continue_final_message": False, "add_generation_prompt": None}, (True, False)),
    ],
)
def test_t20_how_the_prompt_ends(fields: dict[str, Any], expected: tuple[bool, bool]) -> None:
    server = make_server()
    server.chat(**fields)
    options = server.renderer.options
    assert (options["add_generation_prompt"], options["continue_final_message"]) == expected


def test_t8_t14_without_a_generation_prompt_the_reply_has_the_last_role() -> None:
    server = make_server(response_role="bot")
    body = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["role"] == "bot"
    for field in ({"add_generation_prompt": False}, {"continue_final_message": True}):
        reply = server.post("/v1/chat/completions", {**body, **field})
        assert reply.json()["choices"][0]["message"]["role"] == "assistant"


def test_t7_t11_messages_reach_the_template_with_what_only_it_knows() -> None:
    server = make_server()
    sent = [
        {"role": "assistant", "content": None, "reasoning_content": "hm", "name": None},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
    ]
    documents, kwargs = [{"title": "t", "text": "x"}], {"enable_thinking": False}
    server.post("/v1/chat/completions", {"messages": sent, "documents": documents, "chat_template_kwargs": kwargs})
    assert server.renderer.messages == [
        {"role": "assistant", "content": None, "reasoning_content": "hm"},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
    ]
    assert server.renderer.options["documents"] == documents
    assert server.renderer.options["chat_template_kwargs"] == kwargs


def test_e34_e35_tokenize_and_detokenize() -> None:
    server = make_server()
    assert server.post("/tokenize", {"prompt": "Hé", "return_token_strs": True}).json() == {
        "count": 3,
        "max_model_len": 512,
        "tokens": [72, 0xC3, 0xA9],
        "token_strs": ["H", "\ufffd", "\ufffd"],
    }
    text = server.post("/detokenize", {"tokens": [72, 0xC3, 0xA9, 256]}).json()
    assert text == {"prompt": "Hé<end>", "content": "Hé<end>"}
    reply = server.post("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]}).json()
    assert reply == {"count": 7, "max_model_len": 512, "tokens": list(b"user:Hi")}


def test_a_long_prompt_is_tokenized_off_the_loop() -> None:
    server = make_server(info=engine_info(max_model_len=100_000, max_request_tokens=100_000))
    names = []
    inner = server.renderer.render_text

    def render(text: str, add_special_tokens: bool = True) -> list[int]:
        names.append(threading.current_thread().name)
        return inner(text, add_special_tokens)

    server.renderer.render_text = render  # type: ignore[method-assign]
    assert server.complete("x" * 10_000).status == 200
    assert server.complete("x" * 10).status == 200
    assert server.complete(["x" * 50] * 50).status == 200
    assert names[0].startswith("tokenize") and names[1] == threading.main_thread().name
    assert all(name.startswith("tokenize") for name in names[2:])  # together they are long


def test_requests_are_logged_only_when_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    make_server().chat()
    assert "prompt tokens" not in caplog.text
    make_server(disable_log_requests=False, max_log_len=2).chat(stop="a\nb")
    line = next(r.getMessage() for r in caplog.records if "prompt tokens" in r.getMessage())
    assert "ids [117, 115]" in line and "\n" not in line


def test_every_body_of_json_is_accepted_with_a_charset() -> None:
    server = make_server()
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert call(server.app, "POST", "/tokenize", {"prompt": "a"}, headers).status == 200
