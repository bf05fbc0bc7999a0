"""What a request may ask of its reply: best_of, names and ids of tokens, the reply's own id (S10, E16, E73, E75)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from octavo.base.params import GenerateRequest
from octavo.client.generation import CompletionDelta, GenerationDelta
from octavo.wire.messages import TokenLogprobs
from support.server_fakes import Server, answer, drive, engine_info, make_server, with_logprobs

#: Sum of log probabilities of the samples "a", "b", ...
SUMS = [-3.0, -1.0, -2.0, -1.0, -9.0]


def ranked(request: GenerateRequest) -> list[GenerationDelta]:
    """Sample i is the i-th letter, twice; each half has half of its sum."""
    deltas = []
    for half in range(2):
        is_last = half == 1
        outputs = [
            CompletionDelta(
                i,
                chr(97 + i),
                [97 + i],
                [TokenLogprobs(SUMS[i] / 2, 1, [], [])] if request.params.logprobs is not None else None,
                "length" if is_last else None,
            )
            for i in range(request.params.n)
        ]
        deltas.append(GenerationDelta(outputs, 5, 0, request.params.n * (half + 1), is_last))
    return deltas


def texts(reply: Any) -> list[str]:
    return [choice["text"] for choice in reply["choices"]]


# ---------------------------------------------------------------- best_of
def test_s10_the_most_likely_samples_are_returned_best_first() -> None:
    server = make_server(ranked)
    reply = server.complete(n=2, best_of=4).json()
    assert texts(reply) == ["bb", "dd"]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    assert [choice["logprobs"] for choice in reply["choices"]] == [None, None]
    assert (server.engine.requests[0].params.n, server.engine.requests[0].params.logprobs) == (4, 0)
    # Only what is returned is counted.
    assert reply["usage"]["completion_tokens"] == 4


def test_s10_best_of_equal_to_n_ranks_nothing() -> None:
    server = make_server(ranked)
    assert texts(server.complete(n=3, best_of=3).json()) == ["aa", "bb", "cc"]
    assert server.engine.requests[0].params.logprobs is None


def test_s10_logprobs_stay_when_they_are_asked_for() -> None:
    choice = make_server(ranked).complete(best_of=3, logprobs=0).json()["choices"][0]
    assert (choice["text"], choice["logprobs"]["token_logprobs"]) == ("bb", [-0.5, -0.5])


def test_s10_each_prompt_has_its_own_best() -> None:
    assert texts(make_server(ranked).complete(["x", "y"], n=2, best_of=3).json()) == ["bb", "cc", "bb", "cc"]


def test_s10_in_chat() -> None:
    reply = make_server(ranked).chat(n=2, best_of=5).json()
    assert [choice["message"]["content"] for choice in reply["choices"]] == ["bb", "dd"]
    assert reply["usage"]["completion_tokens"] == 4


def test_e75_a_stream_with_best_of_is_the_whole_reply_in_one_event() -> None:
    server = make_server(ranked)
    (event,) = server.complete(["x", "y"], best_of=3, stream=True).events()
    assert (texts(event), event["object"]) == (["bb", "bb"], "text_completion")
    assert event["usage"]["completion_tokens"] == 4
    (event,) = server.chat(best_of=3, stream=True).events()
    assert (event["choices"][0]["message"]["content"], event["object"]) == ("bb", "chat.completion")


def test_e75_an_error_before_the_only_event_has_its_own_status() -> None:
    server = make_server(lambda request: [ranked(request)[0], KeyError("x")])
    assert server.complete(best_of=3, stream=True).status == 500
    assert server.engine.num_open == 0


def test_s10_the_samples_end_when_the_client_goes() -> None:
    hold = asyncio.Event()
    server = make_server(lambda request: [ranked(request)[0], hold])

    async def main() -> None:
        gone = asyncio.Event()
        body = {"prompt": ["a", "b"], "best_of": 3}
        request = asyncio.create_task(drive(server.app, "POST", "/v1/completions", body, disconnect=gone))
        for _ in range(50):  # everything that is ready runs
            await asyncio.sleep(0)
        assert server.engine.num_open == 2
        gone.set()
        await request

    asyncio.run(asyncio.wait_for(main(), 20))
    assert server.engine.num_open == 0


def test_s10_where_logits_stand_for_log_probabilities_there_is_no_ranking() -> None:
    server = make_server(ranked, logprobs_mode="raw_logits")
    error = server.complete(best_of=3).error
    assert error["param"] == "best_of" and "--logprobs-mode" in error["message"]
    assert server.complete(n=2, best_of=2).status == 200


# ---------------------------------------------------------------- log probabilities
def logprob_server(**config: Any) -> Server:
    entries = [TokenLogprobs(-1.0, 1, [72, 256], [-1.0, -2.0]), TokenLogprobs(-0.5, 1, [105], [-0.5])]
    return make_server(lambda _: with_logprobs(answer("Hi"), entries), **config)


@pytest.mark.parametrize(
    ("flag", "field", "as_ids"),
    [(False, None, False), (True, None, True), (False, True, True), (True, False, False)],
)
def test_e73_tokens_may_be_named_by_their_ids(flag: bool, field: bool | None, as_ids: bool) -> None:
    server = logprob_server(return_tokens_as_token_ids=flag)
    logprobs = server.complete(logprobs=2, return_tokens_as_token_ids=field).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == (["token_id:72", "token_id:105"] if as_ids else ["H", "i"])
    assert list(logprobs["top_logprobs"][0]) == (["token_id:72", "token_id:256"] if as_ids else ["H", "<end>"])
    assert logprobs["text_offset"] == [0, 1]  # of the text, whatever the tokens are called
    chat = server.chat(logprobs=True, top_logprobs=2, return_tokens_as_token_ids=field).json()
    first = chat["choices"][0]["logprobs"]["content"][0]
    assert first["token"] == ("token_id:72" if as_ids else "H")
    assert first["bytes"] == [72]
    assert first["top_logprobs"][1]["token"] == ("token_id:256" if as_ids else "<end>")


def test_minus_one_asks_for_the_whole_vocabulary_where_the_server_allows_it() -> None:
    server = make_server(max_logprobs=-1, info=engine_info(vocab_size=300))
    server.complete(logprobs=-1)
    server.complete(logprobs=5, echo=True, prompt_logprobs=-1)
    server.chat(logprobs=True, top_logprobs=300)
    numbers = [(r.params.logprobs, r.params.prompt_logprobs) for r in server.engine.requests]
    assert numbers == [(300, None), (5, 300), (300, None)]
    assert server.complete(logprobs=301).error["message"] == "Cannot request more than 300 logprobs."
    assert server.complete(logprobs=-2).error["param"] == "logprobs"


def test_no_more_log_probabilities_than_tokens_whatever_the_flag_says() -> None:
    assert make_server(max_logprobs=10**6).complete(logprobs=301).error["param"] == "logprobs"


# ---------------------------------------------------------------- ids of tokens
def test_return_token_ids_of_whole_replies() -> None:
    server = make_server(lambda r: answer("Hi", n=r.params.n))
    choices = server.complete([[97, 98], [99]], n=2, return_token_ids=True).json()["choices"]
    assert [choice["prompt_token_ids"] for choice in choices] == [[97, 98], [97, 98], [99], [99]]
    assert [choice["token_ids"] for choice in choices] == [[72, 105]] * 4
    chat = server.chat("x", return_token_ids=True).json()
    assert chat["prompt_token_ids"] == list(b"user:x")
    assert chat["choices"][0]["token_ids"] == [72, 105]


def test_token_ids_are_left_out_unless_asked_for() -> None:
    server = make_server()
    for reply in (server.complete(), server.chat(), server.complete(stream=True), server.chat(stream=True)):
        assert b"token_ids" not in reply.body


def test_return_token_ids_of_streams() -> None:
    held = [  # no text yet: the ids come all the same
        GenerationDelta([CompletionDelta(0, "", [0xC3])], 5, 0, 1, False),
        GenerationDelta([CompletionDelta(0, "\u00fc", [0xBC], None, "length")], 5, 0, 2, True),
    ]
    events = make_server(lambda _: held).complete(stream=True, return_token_ids=True).events()
    assert [event["choices"][0]["token_ids"] for event in events] == [[0xC3], [0xBC]]
    assert [event["choices"][0].get("prompt_token_ids") for event in events] == [list(b"Hello"), None]
    events = make_server(lambda _: held).chat("x", stream=True, return_token_ids=True).events()
    assert [event.get("prompt_token_ids") for event in events] == [list(b"user:x"), None, None]
    assert [event["choices"][0].get("token_ids") for event in events] == [None, [0xC3], [0xBC]]


# ---------------------------------------------------------------- the id of the reply
@pytest.mark.parametrize(
    ("header", "field", "expected"),
    [("from-header", None, "from-header"), (None, "from-body", "from-body"), ("from-header", "body", "from-header")],
)
def test_e16_the_id_of_the_reply_ends_in_that_of_the_request(
    header: str | None, field: str | None, expected: str
) -> None:
    server = make_server()
    headers = {"x-request-id": header} if header else {}
    for path, prefix, body in (
        ("/v1/completions", "cmpl", {"prompt": "a"}),
        ("/v1/chat/completions", "chatcmpl", {"messages": [{"role": "user", "content": "a"}]}),
    ):
        reply = server.post(path, {**body, "request_id": field}, headers)
        assert reply.json()["id"] == f"{prefix}-{expected}"
        assert reply.headers["x-request-id"] == expected
    assert server.engine.requests[0].external_id == f"cmpl-{expected}"


def test_e16_without_one_the_header_and_the_id_agree() -> None:
    reply = make_server().complete()
    assert reply.json()["id"] == f"cmpl-{reply.headers['x-request-id']}"


def test_e16_an_unfit_header_is_replaced() -> None:
    reply = make_server().post("/v1/completions", {"prompt": "a", "request_id": "mine"}, {"x-request-id": "a b"})
    assert reply.json()["id"] == "cmpl-mine"
