"""llama.cpp's native API: what a body becomes, and how news are spelled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from octavo.client.generation import GenerationDelta, PromptProgress
from octavo.client.observer import RequestTimes
from octavo.wire.messages import TokenLogprobs
from support.server_fakes import MODEL, Reply, Server, answer, drive, make_server, with_logprobs


def saying(text: str, **fields: Any) -> Server:
    def script(request: Any) -> Sequence[GenerationDelta]:
        deltas = answer(text, num_cached=2, **fields)
        deltas[-1].times = RequestTimes(10.0, 10.5, 11.5, 13.5, 13.75)
        return deltas

    return make_server(script)


def complete(server: Server, prompt: Any = "Hello", **fields: Any) -> Reply:
    return server.post("/completion", {"prompt": prompt, **fields})


def events_of(reply: Reply) -> list[dict[str, Any]]:
    assert reply.status == 200 and reply.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in reply.body.decode().split("\n\n") if line]
    assert all(line.startswith("data: {") for line in lines), "no [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_stream_folds_to_the_whole_reply() -> None:
    whole = complete(saying("Hi\nall"), return_tokens=True).json()
    *pieces, last = events_of(complete(saying("Hi\nall"), stream=True))
    assert "".join(piece["content"] for piece in pieces) == whole["content"] == "Hi\nall"
    assert [i for piece in pieces for i in piece["tokens"]] == whole["tokens"] == [ord(c) for c in "Hi\nall"]
    assert all(piece["stop"] is False for piece in pieces) and last["stop"] is True
    assert {n: v for n, v in last.items() if n not in ("content", "tokens")} == {
        n: v for n, v in whole.items() if n not in ("content", "tokens")
    }
    assert (whole["stop_type"], whole["has_new_line"], whole["prompt"], whole["model"]) == ("eos", True, "Hello", MODEL)
    assert (whole["tokens_evaluated"], whole["tokens_predicted"], whole["tokens_cached"]) == (5, 6, 11)


def test_timings_are_of_what_was_computed() -> None:
    timings = complete(saying("abcde")).json()["timings"]
    assert (timings["cache_n"], timings["prompt_n"], timings["prompt_ms"]) == (2, 3, 1000.0)
    assert (timings["prompt_per_second"], timings["predicted_n"], timings["predicted_ms"]) == (3.0, 5, 2000.0)
    assert (timings["predicted_per_token_ms"], timings["predicted_per_second"]) == (500.0, 2.0)


@pytest.mark.parametrize(
    ("reason", "stop", "kind", "word"),
    [("length", None, "limit", ""), ("stop", "END", "word", "END"), ("stop", None, "eos", ""), ("stop", 7, "eos", ""),
     ("repetition", None, "repetition", "")],
)  # fmt: skip
def test_why_a_reply_ended(reason: str, stop: Any, kind: str, word: str) -> None:
    whole = complete(saying("ab", reason=reason, stop=stop)).json()
    assert (whole["stop_type"], whole["stopping_word"]) == (kind, word)


def test_fields_reach_the_engine_under_their_names() -> None:
    server = saying("a")
    complete(
        server, n_predict=7, repeat_penalty=1.2, repeat_last_n=64, typical_p=0.9, mirostat=2, mirostat_tau=4.0,
        dry_multiplier=0.8, dry_sequence_breakers=["a"], xtc_probability=0.4, logit_bias=[[5, 1.5], [6, False]],
        stop=["x"], ignore_eos=True, temperature=0.7, seed=3,
    )  # fmt: skip
    params = server.engine.requests[-1].params
    assert (params.max_tokens, params.repetition_penalty, params.repeat_last_n, params.typical_p) == (7, 1.2, 64, 0.9)
    assert (params.mirostat, params.mirostat_tau, params.dry_multiplier, params.xtc_probability) == (2, 4.0, 0.8, 0.4)
    assert (params.logit_bias, params.stop, params.ignore_eos) == ({5: 1.5, 6: -100.0}, ("x",), True)
    assert params.dry_breaker_token_ids and all(params.dry_breaker_token_ids)


def test_without_the_cache_a_prompt_shares_nothing() -> None:
    server = saying("a")
    for value in (None, True, False, False):
        complete(server, cache_prompt=value)
    salts = [request.cache_salt for request in server.engine.requests]
    assert salts[:2] == ["", ""] and "" not in salts[2:] and salts[2] != salts[3]


def test_prompts_of_all_shapes() -> None:
    server = saying("a")
    assert complete(server, [1, 2, 3]).json()["content"] == "a"
    assert server.engine.requests[-1].prompt_token_ids == [1, 2, 3]
    complete(server, [1, "ab", 2])
    ids = server.engine.requests[-1].prompt_token_ids
    assert (ids[0], ids[-1]) == (1, 2) and len(ids) > 3
    replies = complete(server, ["a", [4, 5]]).json()
    assert [reply["index"] for reply in replies] == [0, 1]


def test_probabilities_name_tokens_by_id_text_and_bytes() -> None:
    def script(request: Any) -> Any:
        return with_logprobs(answer("H"), [TokenLogprobs(-0.5, 1, [72, 73], [-0.5, -2.0])])

    [one] = complete(make_server(script), n_probs=2).json()["completion_probabilities"]
    assert (one["id"], one["token"], one["bytes"], one["logprob"]) == (72, "H", [72], -0.5)
    assert [(top["id"], top["logprob"]) for top in one["top_logprobs"]] == [(72, -0.5), (73, -2.0)]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, None]}, "prompt"),
        ({"prompt": "a", "n_predict": 0}, "n_predict"),
        ({"prompt": "a", "repeat_penalty": 0.0}, "repeat_penalty"),
        ({"prompt": "a", "mirostat": 3}, "mirostat"),
        ({"prompt": "a", "samplers": ["top_k"]}, "samplers"),
        ({"prompt": "a", "return_progress": True}, "return_progress"),
        ({"prompt": "a", "id_slot": 1}, "id_slot"),
        ({"prompt": "a", "json_schema": {}, "grammar": "a"}, "json_schema"),
        ({"prompt": "a", "logit_bias": [[1, True]]}, "logit_bias.0"),
        ({"prompt": "a", "n_probs": 1000}, "n_probs"),
    ],
)
def test_errors_name_the_field(fields: dict[str, Any], param: str) -> None:
    reply = saying("a").post("/completion", fields)
    assert (reply.status, reply.error["param"]) == (400, param), reply.body


def test_infill_without_tokens_for_it_is_refused() -> None:
    reply = saying("a").post("/infill", {"input_prefix": "a", "input_suffix": "b"})
    assert reply.status == 400 and "fill in the middle" in reply.error["message"]


def test_props() -> None:
    props = saying("a").get("/props").json()
    assert props["model_path"] == MODEL and props["modalities"] == {"vision": False, "audio": False}
    assert props["default_generation_settings"]["params"]["temperature"] == 1.0
    assert props["default_generation_settings"]["n_ctx"] > 0 and props["total_slots"] > 0


def test_tokens_in_llama_cpp_s_names() -> None:
    server = saying("a")
    ids = server.post("/tokenize", {"content": "ab"}).json()["tokens"]
    assert ids == server.post("/tokenize", {"prompt": "ab", "add_special_tokens": False}).json()["tokens"]
    pieces = server.post("/tokenize", {"content": "ab", "with_pieces": True}).json()["tokens"]
    assert [piece["id"] for piece in pieces] == ids and "".join(piece["piece"] for piece in pieces) == "ab"
    text = server.post("/detokenize", {"tokens": ids}).json()
    assert text["content"] == text["prompt"] == "ab"
    assert server.post("/tokenize", {"content": "a", "prompt": "b"}).status == 400


def test_the_progress_of_a_prompt_comes_before_its_first_token() -> None:
    def script(request: Any) -> Sequence[GenerationDelta]:
        assert request.params.return_progress
        on_the_way = GenerationDelta([], 5, 1, 0, False, progress=PromptProgress(3, 1, 0.25))
        deltas = answer("Hi")
        deltas[0].progress = PromptProgress(5, 1, 0.5)
        return [on_the_way, *deltas]

    progress = [{"total": 5, "cache": 1, "processed": 3, "time_ms": 250.0}]
    progress.append({"total": 5, "cache": 1, "processed": 5, "time_ms": 500.0})
    server = make_server(script)
    events = events_of(complete(server, stream=True, return_progress=True))
    assert [event["prompt_progress"] for event in events if "prompt_progress" in event] == progress
    assert "prompt_progress" in events[0] and "".join(event["content"] for event in events) == "Hi"
    for reply in (server.chat(stream=True, return_progress=True), server.complete(stream=True, return_progress=True)):
        found = [event["prompt_progress"] for event in reply.events() if "prompt_progress" in event]
        assert found == progress
    reply = complete(server, return_progress=True)
    assert (reply.status, reply.error["param"]) == (400, "return_progress")


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/json"])
def test_the_content_type_does_not_count_here_but_for_pages(content_type: str) -> None:
    server, headers = saying("Hi"), {"content-type": content_type}
    for path, body in (("/completion", {"prompt": "a"}), ("/infill", {"input_prefix": "a"})):
        server.renderer.can_infill = True
        assert server.post(path, body, headers).status == 200
        of_page = server.post(path, body, headers | {"origin": "http://example.org"})
        assert of_page.status == (200 if content_type == "application/json" else 400)
        assert server.post(path, body, headers | {"content-encoding": "gzip"}).status == 415
    other = server.post("/tokenize", {"content": "a"}, headers)
    assert other.status == (200 if content_type == "application/json" else 400)


def test_the_slots_tell_what_runs() -> None:
    async def work() -> None:
        gate = asyncio.Event()
        server = make_server(lambda request: [gate, *answer("Hi")], slots=True, api_key=["key"])
        key = {"authorization": "Bearer key"}
        assert (await drive(server.app, "GET", "/slots")).status == 401
        idle = (await drive(server.app, "GET", "/slots", headers=key)).json()
        assert idle == [{"id": i, "n_ctx": 512, "speculative": False, "is_processing": False} for i in range(8)]
        running = [
            asyncio.create_task(drive(server.app, "POST", "/completion", {"prompt": "abc", "n_predict": 9}, key))
            for _ in range(8)
        ]
        while server.engine.num_open < 8:  # noqa: ASYNC110
            await asyncio.sleep(0)
        slots = (await drive(server.app, "GET", "/slots?fail_on_no_slot=0", headers=key)).json()
        assert all(slot["is_processing"] for slot in slots) and len(slots) == 8
        first = slots[0]
        assert (first["id"], first["id_task"], first["n_prompt_tokens"], first["n_prompt_tokens_cache"]) == (0, 7, 3, 1)
        assert first["next_token"] == [{"has_next_token": True, "n_remain": 7, "n_decoded": 2}]
        assert first["params"]["n_predict"] == 9 and "prompt" not in first
        full = await drive(server.app, "GET", "/slots?fail_on_no_slot=1", headers=key)
        assert (full.status, full.error["message"]) == (503, "no slot available")
        gate.set()
        assert {(await reply).status for reply in running} == {200}

    asyncio.run(asyncio.wait_for(work(), 20))
    assert make_server().get("/slots").status == 404
