"""The fields that change the prompt or the text of the reply (S14, S24 to S28)."""

from __future__ import annotations

from typing import Any

import pytest

from support.server_fakes import CONTEXT, make_server


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"truncate_prompt_tokens": 3}, "llo"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "left"}, "llo"),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, "Hel"),
        ({"truncate_prompt_tokens": 5}, "Hello"),
        ({"truncate_prompt_tokens": 100}, "Hello"),
        ({"truncate_prompt_tokens": None, "truncation_side": "right"}, "Hello"),
        ({"truncation_side": "right"}, "Hello"),
    ],
)
@pytest.mark.parametrize("as_ids", [False, True])
def test_s26_the_last_tokens_of_the_prompt_are_kept(fields: dict[str, Any], expected: str, as_ids: bool) -> None:
    server = make_server()
    assert server.complete(list(b"Hello") if as_ids else "Hello", **fields).status == 200
    assert bytes(server.engine.requests[0].prompt_token_ids).decode() == expected


def test_s26_minus_one_cuts_to_what_the_context_leaves_beside_the_reply() -> None:
    server = make_server()
    for fields in ({"max_tokens": 12}, {"max_tokens": None}, {"max_tokens": None, "min_tokens": 20}):
        assert server.complete("x" * 600, truncate_prompt_tokens=-1, **fields).status == 200
    lengths = [len(request.prompt_token_ids) for request in server.engine.requests]
    assert lengths == [CONTEXT - 12, CONTEXT - 16, CONTEXT - 20]


def test_s26_in_chat_the_rendered_prompt_is_cut() -> None:
    server = make_server()
    server.chat("Hello", truncate_prompt_tokens=4)
    assert bytes(server.engine.requests[0].prompt_token_ids) == b"ello"


def test_s26_a_cut_prompt_that_still_does_not_fit_is_refused() -> None:
    error = make_server().complete("x" * 600, truncate_prompt_tokens=CONTEXT, max_tokens=1).error
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(("given", "text", "chat"), [(None, True, False), (True, True, True), (False, False, False)])
def test_s28_special_tokens_are_added_to_texts_and_not_to_chats(given: bool | None, text: bool, chat: bool) -> None:
    server = make_server()
    seen: list[bool] = []
    inner = server.renderer.render_text

    def render(value: str, add_special_tokens: bool = True) -> list[int]:
        seen.append(add_special_tokens)
        return inner(value, add_special_tokens)

    server.renderer.render_text = render  # type: ignore[method-assign]
    server.complete(add_special_tokens=given)
    server.chat(add_special_tokens=given)
    assert seen == [text, chat]


def test_s14_s24_s25_fields_of_the_text() -> None:
    server = make_server()
    server.complete()
    server.complete(skip_special_tokens=False, include_stop_str_in_output=True, spaces_between_special_tokens=False)
    first, second = (request.params for request in server.engine.requests)
    assert (first.skip_special_tokens, first.include_stop_str_in_output) == (True, False)
    assert (second.skip_special_tokens, second.include_stop_str_in_output) == (False, True)
