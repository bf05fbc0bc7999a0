"""Text completions, as a stream and whole."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.base.errors import ServerError
from octavo.base.params import GenerateRequest
from octavo.client.generation import CompletionDelta, GenerationDelta
from octavo.wire.messages import TokenLogprobs
from support.server_fakes import answer, make_server, with_logprobs


def by_prompt(request: GenerateRequest) -> list[GenerationDelta]:
    """The reply to a prompt is the prompt itself, in capitals."""
    text = bytes(request.prompt_token_ids).decode().upper()
    return answer(text, n=request.params.n, num_prompt=len(text))


def test_e74_framing_of_a_whole_stream_is_golden() -> None:
    reply = make_server(lambda _: answer("Hi", reason="length")).complete(stream=True)
    first = reply.events()[0]
    head = f'{{"id":"{first["id"]}","object":"text_completion","created":{first["created"]},"model":"tiny","choices":'
    tail = f',"system_fingerprint":"{first["system_fingerprint"]}"}}\n\n'
    assert reply.body.decode() == (
        f'data: {head}[{{"index":0,"text":"H","logprobs":null,"finish_reason":null,"stop_reason":null}}]{tail}'
        f'data: {head}[{{"index":0,"text":"i","logprobs":null,"finish_reason":"length","stop_reason":null}}]{tail}'
        "data: [DONE]\n\n"
    )
    assert first["id"].startswith("cmpl-") and len(first["id"]) == len("cmpl-") + 32


def test_e70_several_prompts_have_ids_with_their_place() -> None:
    server = make_server(by_prompt)
    reply_id = server.complete(["a", "b"]).json()["id"]
    assert sorted(r.external_id for r in server.engine.requests) == [f"{reply_id}-0", f"{reply_id}-1"]


@pytest.mark.parametrize("stream", [False, True])
def test_e71_index_is_prompt_times_n_plus_sample(stream: bool) -> None:
    reply = make_server(by_prompt).complete(["ab", "cd", "ef"], n=2, stream=stream)
    texts: dict[int, str] = {}
    if stream:
        for event in reply.events():
            for choice in event["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    else:
        texts = {choice["index"]: choice["text"] for choice in reply.json()["choices"]}
    assert texts == {0: "AB", 1: "AB", 2: "CD", 3: "CD", 4: "EF", 5: "EF"}


@pytest.mark.parametrize("stream", [False, True])
def test_e76_usage_sums_prompts_and_choices(stream: bool) -> None:
    options = {"include_usage": True} if stream else None
    reply = make_server(by_prompt).complete(["ab", "cdef"], n=2, stream=stream, stream_options=options)
    usage = reply.events()[-1]["usage"] if stream else reply.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (6, 12, 18)


def logprob_script(_: GenerateRequest) -> list[GenerationDelta]:
    entries = [
        TokenLogprobs(-0.5, 1, [72, 73], [-0.5, -2.0]),
        TokenLogprobs(-4.0, 3, [73, 72], [-0.1, -2.5]),
        TokenLogprobs(float("nan"), 1, [33, 34], [float("-inf"), float("-inf")]),
    ]
    return with_logprobs(answer("Hi!"), entries)


def test_e72_logprobs_are_four_lists_with_the_sampled_token_and_the_top() -> None:
    logprobs = make_server(logprob_script).complete(logprobs=2).json()["choices"][0]["logprobs"]
    assert logprobs == {
        "text_offset": [0, 1, 2],
        "tokens": ["H", "i", "!"],
        "token_logprobs": [-0.5, -4.0, -9999.0],
        "top_logprobs": [{"H": -0.5, "I": -2.0}, {"i": -4.0, "I": -0.1, "H": -2.5}, {"!": -9999.0, '"': -9999.0}],
    }


def test_e72_logprobs_of_zero_give_the_sampled_token_alone() -> None:
    logprobs = make_server(logprob_script).complete(logprobs=0).json()["choices"][0]["logprobs"]
    assert [list(top) for top in logprobs["top_logprobs"]] == [["H"], ["i"], ["!"]]


@pytest.mark.parametrize("stream", [False, True])
def test_e72_text_offset_counts_a_character_of_several_tokens_once(stream: bool) -> None:
    text = "é🦄!"
    raw = list(text.encode())
    texts = ["", "é", "", "", "", "🦄", "!"]

    def script(_: GenerateRequest) -> list[GenerationDelta]:
        deltas = answer("x" * len(raw))
        for delta, token_id, part in zip(deltas, raw, texts, strict=True):
            delta.outputs[0].token_ids, delta.outputs[0].text = [token_id], part
        return with_logprobs(deltas, [TokenLogprobs(-1.0, 1, [], [])] * len(raw))

    reply = make_server(script).complete("a é", logprobs=0, stream=stream, echo=False)
    parts = [e["choices"][0]["logprobs"] for e in (reply.events() if stream else [reply.json()])]
    tokens = [token for part in parts for token in part["tokens"]]
    assert tokens == ["\ufffd"] * 6 + ["!"]
    assert [offset for part in parts for offset in part["text_offset"]] == [0, 0, 1, 1, 1, 1, 2]


def test_e72_tokens_of_one_text_have_entries_of_their_own() -> None:
    def script(_: GenerateRequest) -> list[GenerationDelta]:
        values = [-0.1, -0.2, -0.3, -0.4, -0.5]
        entry = TokenLogprobs(-0.3, 3, [0xF0, 0x9F, 0x80, 299, 298], values)
        deltas = answer("x", reason="length")
        deltas[0].outputs[0].token_ids = [0x80]
        return with_logprobs(deltas, [entry])

    logprobs = make_server(script).complete(logprobs=5).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["\ufffd"]
    assert logprobs["top_logprobs"] == [
        {
            "\ufffd": -0.3,
            "bytes:\\xf0": -0.1,
            "bytes:\\x9f": -0.2,
            "<end>": -0.4,
            "bytes:\\x3c\\x65\\x6e\\x64\\x3e": -0.5,
        }
    ]


def test_e72_text_offset_goes_on_across_chunks() -> None:
    events = make_server(logprob_script).complete(logprobs=1, stream=True).events()
    assert [e["choices"][0]["logprobs"]["text_offset"] for e in events] == [[0], [1], [2]]


def test_e72_no_logprobs_unless_asked_for() -> None:
    assert make_server().complete().json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hey", [[104, 101, 121]]),
        (["a", "b"], [[97], [98]]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
    ],
)
def test_all_four_shapes_of_prompt(prompt: Any, expected: list[list[int]]) -> None:
    server = make_server()
    assert server.complete(prompt).status == 200
    assert sorted(r.prompt_token_ids for r in server.engine.requests) == sorted(expected)


@pytest.mark.parametrize(("fields", "expected"), [({}, 16), ({"max_tokens": None}, 16), ({"max_tokens": 3}, 3)])
def test_s16_max_tokens_is_16_unless_given_and_null_is_not_given(fields: dict[str, Any], expected: int) -> None:
    server = make_server()
    server.complete("Hello", **fields)
    assert server.engine.requests[0].params.max_tokens == expected


def test_e31_whole_reply_has_reason_stop_and_model() -> None:
    reply = make_server(lambda _: answer("Hi", stop="\n")).complete(model="alias", stop="\n").json()
    assert reply["object"] == "text_completion"
    assert reply["model"] == "alias"
    assert reply["choices"] == [
        {
            "index": 0, "text": "Hi", "logprobs": None, "finish_reason": "stop", "stop_reason": "\n",
            "prompt_logprobs": None,
        }
    ]  # fmt: skip


def test_one_failing_prompt_fails_the_reply_and_aborts_the_others() -> None:
    def script(request: GenerateRequest) -> list[Any]:
        return [ServerError("row 1 broke")] if request.prompt_token_ids == [98] else by_prompt(request) * 50

    server = make_server(script)
    reply = server.complete(["a", "b", "c"])
    assert (reply.status, reply.error["message"]) == (500, "row 1 broke")
    assert server.engine.num_open == 0


def test_a_prompt_that_does_not_fit_starts_none() -> None:
    server = make_server(by_prompt)
    reply = server.complete(["a", "b" * 600])
    assert (reply.status, reply.error["param"]) == (400, "prompt.1")
    assert server.engine.requests == []


def test_held_text_is_not_a_chunk() -> None:
    deltas = [
        GenerationDelta([CompletionDelta(0, "", [1])], 4, 0, 1, False),
        GenerationDelta([CompletionDelta(0, "ab", [2, 3], None, "length")], 4, 0, 3, True),
    ]
    events = make_server(lambda _: deltas).complete(stream=True).events()
    assert [e["choices"][0]["text"] for e in events] == ["ab"]
