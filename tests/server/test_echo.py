"""Prompts in the reply: echo and prompt_logprobs (S16, S19, S20, E53, E72, E74, T9)."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.base.params import GenerateRequest
from octavo.client.generation import GenerationDelta
from octavo.wire.messages import TokenLogprobs
from support.server_fakes import Server, answer, make_server, with_logprobs

BYTE = 97


def scored(request: GenerateRequest) -> list[GenerationDelta]:
    """ "Hi", and scores when the request asks for them: the i-th entry has -i; the most likely tokens are a, b, c."""
    params, num_prompt = request.params, len(request.prompt_token_ids)
    deltas = answer("Hi", n=params.n, num_prompt=num_prompt, reason="length")
    if params.logprobs is not None:
        entries = [TokenLogprobs(-0.5, 1, [97, 98, 99][: params.logprobs], [-0.5, -1, -2][: params.logprobs])] * 2
        deltas = with_logprobs(deltas, entries)
    if params.prompt_logprobs is not None:
        k = params.prompt_logprobs
        deltas[0].prompt_logprobs = [
            TokenLogprobs(-float(i), 7, [97, 98, 99][:k], [-0.25, -0.5, -0.75][:k]) for i in range(1, num_prompt)
        ]
    return deltas


def server() -> Server:
    return make_server(scored)


@pytest.mark.parametrize(("prompt", "echoed"), [("Hey", "Hey"), ([72, 256, 101], "He")])
def test_s20_the_prompt_comes_before_the_completion(prompt: Any, echoed: str) -> None:
    assert server().complete(prompt, echo=True).json()["choices"][0]["text"] == echoed + "Hi"
    assert server().complete(prompt, echo=False).json()["choices"][0]["text"] == "Hi"


def test_s20_each_choice_of_each_prompt_has_its_own_echo() -> None:
    choices = server().complete(["ab", "cd"], echo=True, n=2).json()["choices"]
    assert [choice["text"] for choice in choices] == ["abHi", "abHi", "cdHi", "cdHi"]


def test_s26_a_cut_prompt_is_echoed_as_it_was_cut() -> None:
    assert server().complete("Hello", echo=True, truncate_prompt_tokens=2).json()["choices"][0]["text"] == "loHi"


def test_e74_the_first_chunk_is_the_prompt_and_the_first_token() -> None:
    events = server().complete(["ab", "cd"], echo=True, stream=True).events()
    texts: dict[int, list[str]] = {}
    for choice in (event["choices"][0] for event in events):
        texts.setdefault(choice["index"], []).append(choice["text"])
    assert texts == {0: ["abH", "i"], 1: ["cdH", "i"]}


@pytest.mark.parametrize("stream", [False, True])
def test_e72_echo_with_logprobs_scores_the_prompt_too(stream: bool) -> None:
    reply = server().complete("xyz", echo=True, logprobs=1, stream=stream)
    if stream:
        parts = [event["choices"][0]["logprobs"] for event in reply.events()]
        logprobs = {name: [item for part in parts for item in part[name]] for name in parts[0]}
    else:
        logprobs = reply.json()["choices"][0]["logprobs"]
    assert logprobs == {
        "text_offset": [0, 1, 2, 3, 4],
        "tokens": ["x", "y", "z", "H", "i"],
        "token_logprobs": [None, -1.0, -2.0, -0.5, -0.5],
        "top_logprobs": [
            None, {"y": -1.0, "a": -0.25}, {"z": -2.0, "a": -0.25}, {"H": -0.5, "a": -0.5}, {"i": -0.5, "a": -0.5},
        ],
    }  # fmt: skip


def test_e72_a_special_token_in_front_takes_no_characters() -> None:
    app = server()
    inner = app.renderer.render_text
    app.renderer.render_text = lambda text, special=True: [256, *inner(text)]  # type: ignore[method-assign]
    logprobs = app.complete("xy", echo=True, logprobs=0).json()["choices"][0]["logprobs"]
    assert logprobs["text_offset"] == [0, 0, 1, 2, 3]
    assert logprobs["tokens"][0] == "<end>"


@pytest.mark.parametrize("prompt", ["Sea 🦄 two é", list("Sea 🦄 two é".encode())])
def test_e72_offsets_in_an_echo_are_places_in_its_text(prompt: Any) -> None:
    choice = server().complete(prompt, echo=True, logprobs=0).json()["choices"][0]
    text, logprobs = choice["text"], choice["logprobs"]
    assert text == "Sea 🦄 two éHi"
    expected = [i for i, char in enumerate(text) for _ in char.encode()]
    assert logprobs["text_offset"] == expected


@pytest.mark.parametrize("stream", [False, True])
def test_s16_max_tokens_0_with_echo_scores_the_prompt_only(stream: bool) -> None:
    app = server()
    options = {"include_usage": True} if stream else None
    reply = app.complete("xyz", echo=True, max_tokens=0, logprobs=0, stream=stream, stream_options=options)
    assert app.engine.requests[0].params.max_tokens == 1
    if stream:
        choices = [event["choices"][0] for event in reply.events() if event["choices"]]
        usage = reply.events()[-1]["usage"]
        assert "".join(choice["text"] for choice in choices) == "xyz"
        assert choices[-1]["finish_reason"] == "length"
        logprobs = choices[0]["logprobs"]
    else:
        (choice,), usage = reply.json()["choices"], reply.json()["usage"]
        assert (choice["text"], choice["finish_reason"]) == ("xyz", "length")
        logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["x", "y", "z"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 0, 3)


def test_s19_prompt_logprobs_of_completions() -> None:
    choices = server().complete(["xy", "z"], prompt_logprobs=2).json()["choices"]
    assert choices[0]["prompt_logprobs"] == [
        None,
        {
            "97": {"logprob": -0.25, "rank": 1, "decoded_token": "a"},
            "98": {"logprob": -0.5, "rank": 2, "decoded_token": "b"},
            "121": {"logprob": -1.0, "rank": 7, "decoded_token": "y"},
        },
    ]
    assert choices[1]["prompt_logprobs"] == [None]


def test_s19_the_token_itself_is_named_once() -> None:
    told = server().complete("xa", prompt_logprobs=1).json()["choices"][0]["prompt_logprobs"][1]
    assert list(told) == ["97"]


def test_s19_prompt_logprobs_and_echoed_logprobs_may_differ_in_number() -> None:
    app = server()
    choice = app.complete("xy", echo=True, logprobs=1, prompt_logprobs=3).json()["choices"][0]
    assert app.engine.requests[0].params.prompt_logprobs == 3
    assert len(choice["prompt_logprobs"][1]) == 4
    assert len(choice["logprobs"]["top_logprobs"][1]) == 2


def test_s19_prompt_logprobs_of_chat() -> None:
    reply = server().chat("x", prompt_logprobs=0).json()
    scores = reply["prompt_logprobs"]
    assert len(scores) == len("user:x") and scores[0] is None
    assert scores[-1] == {"120": {"logprob": -5.0, "rank": 7, "decoded_token": "x"}}


PREFILLED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "So, "}]}]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"echo": True, "continue_final_message": True}, "So, Hi"),
        ({"echo": True, "add_generation_prompt": False}, "So, Hi"),
        ({"echo": True}, "So, Hi"),
        ({"echo": False, "continue_final_message": True}, "Hi"),
        ({"echo": True, "messages": PREFILLED[:1]}, "Hi"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_e53_t9_echo_in_chat_is_the_last_message_of_the_same_role(
    fields: dict[str, Any], expected: str, stream: bool
) -> None:
    reply = server().post("/v1/chat/completions", {"messages": PREFILLED, "stream": stream, **fields})
    if stream:
        deltas = [event["choices"][0]["delta"] for event in reply.events()]
        assert deltas[0] == {"role": "assistant", "content": ""}
        text = "".join(delta.get("content", "") for delta in deltas)
    else:
        text = reply.json()["choices"][0]["message"]["content"]
    assert text == expected
