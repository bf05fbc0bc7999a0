"""Beam search and `suffix`: from the fields of a request to what the engine's client is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.base.params import BeamParams, SamplingParams
from octavo.text.tokenizers.fim import InfillTokens, infill_tokens
from support.server_fakes import Server, answer, make_server

PATHS = ["/v1/chat/completions", "/v1/completions"]


def ask(server: Server, path: str, **fields: Any) -> Any:
    return server.complete(**fields) if path == PATHS[1] else server.chat(**fields)


BEAMS: list[tuple[dict[str, Any], BeamParams]] = [
    ({"best_of": 4}, BeamParams(width=4)),
    ({"n": 3}, BeamParams(width=3)),
    ({"n": 2, "best_of": 5}, BeamParams(width=5)),
    ({"best_of": 2, "length_penalty": 0.5}, BeamParams(width=2, length_penalty=0.5)),
    ({"best_of": 2, "early_stopping": True}, BeamParams(width=2, early_stopping=True)),
    ({"best_of": 2, "early_stopping": "never"}, BeamParams(width=2, early_stopping="never")),
    ({"best_of": 2, "temperature": 0, "length_penalty": None, "early_stopping": None}, BeamParams(width=2)),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("row", BEAMS, ids=str)
def test_s21_to_s23_beams_of_a_request(path: str, row: Any) -> None:
    fields, beams = row
    server = make_server(lambda request: answer("Hi", n=request.params.n))
    assert ask(server, path, use_beam_search=True, **fields).status == 200
    (request,) = server.engine.requests
    assert request.beams == beams
    assert request.params.temperature == 0.0 and request.params.n == fields.get("n", 1)


DEFAULTS = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1, "max_tokens": 7}


@pytest.mark.parametrize("path", PATHS)
def test_s21_defaults_of_the_server_are_set_aside_for_beams(path: str) -> None:
    """Only what the request itself says is refused. The bound on the reply's length is no matter of sampling."""
    server = make_server(lambda request: answer("Hi", n=request.params.n), default_sampling=DEFAULTS)
    assert ask(server, path, use_beam_search=True, best_of=2, max_tokens=None).status == 200
    (request,) = server.engine.requests
    assert request.params == SamplingParams(temperature=0.0, max_tokens=7 if path == "/v1/chat/completions" else 16)
    for name in ("temperature", "repetition_penalty"):
        refused = ask(server, path, use_beam_search=True, best_of=2, **{name: DEFAULTS[name]})
        assert refused.error["param"] == name


@pytest.mark.parametrize("fields", [{}, {"use_beam_search": False}, {"best_of": 1}, {"n": 2, "best_of": 2}])
def test_no_beams_unless_asked_for(fields: dict[str, Any]) -> None:
    server = make_server()
    assert server.chat(**fields).status == 200
    assert server.engine.requests[0].beams is None


@pytest.mark.parametrize("path", PATHS)
def test_s21_a_stream_of_beams_has_each_choice_once(path: str) -> None:
    server = make_server(lambda request: answer("H", n=request.params.n))
    events = ask(server, path, use_beam_search=True, n=2, best_of=3, stream=True).events()
    ends = [c["index"] for e in events for c in e["choices"] if c["finish_reason"]]
    assert ends == [0, 1]


# ---------------------------------------------------------------- suffix (C6)
def test_c6_suffix_without_tokens_for_it_is_refused_by_name() -> None:
    error = make_server().complete(suffix="x").error
    assert error["param"] == "suffix" and "fill in the middle" in error["message"]


def test_c6_suffix_makes_one_prompt_of_both_and_ends_where_the_middle_ends() -> None:
    server = make_server()
    server.renderer.can_infill = True
    assert server.complete("ab", suffix="cd", stop_token_ids=[9]).status == 200
    assert server.complete(["a", "b"], suffix="c", max_tokens=3).status == 200
    assert server.complete([1, 2], suffix="c").status == 200
    assert server.complete("", suffix="c").status == 200  # nothing before the hole
    prompts = [request.prompt_token_ids for request in server.engine.requests]
    assert prompts == [list(b"ab<cd>"), list(b"a<c>"), list(b"b<c>"), [1, 2, *b"<c>"], list(b"<c>")]
    assert [r.params.stop_token_ids for r in server.engine.requests] == [(9, 7), (7,), (7,), (7,), (7,)]


def test_c6_an_empty_suffix_is_none() -> None:
    server = make_server()
    assert server.complete("ab", suffix="").status == 200
    assert server.engine.requests[0].prompt_token_ids == list(b"ab")


def test_c6_ids_and_lengths_are_checked_as_without_it() -> None:
    server = make_server()
    server.renderer.can_infill = True
    assert server.complete([1, 300], suffix="c").error["param"] == "prompt"
    assert server.complete("a", suffix="c" * 600).error["code"] == "context_length_exceeded"
    assert server.engine.requests == []


@pytest.mark.parametrize("fields", [{"echo": True}, {"truncate_prompt_tokens": 3}])
def test_c6_what_would_cut_or_repeat_the_made_prompt_is_refused(fields: dict[str, Any]) -> None:
    server = make_server()
    server.renderer.can_infill = True
    assert server.complete("ab", suffix="cd", **fields).error["param"] == next(iter(fields))


class Vocabulary(dict[str, int]):
    def token_to_id(self, token: str) -> int | None:
        return self.get(token)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|endoftext|>"], InfillTokens(0, 1, 2, (3,))),
        (["<fim_prefix>", "<fim_suffix>", "<fim_middle>"], InfillTokens(0, 1, 2, ())),
        (["\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", "\u2581<EOT>"], InfillTokens(0, 1, 2, (3,))),
        (
            ["<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"],
            InfillTokens(0, 1, 2, ()),
        ),
        (["<|fim_prefix|>", "<|fim_suffix|>"], None),
        (["<|endoftext|>"], None),
    ],
)
def test_every_spelling_of_the_tokens_is_known(tokens: list[str], expected: Any) -> None:
    assert infill_tokens(Vocabulary({token: i for i, token in enumerate(tokens)})) == expected
