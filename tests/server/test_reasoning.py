"""What the model thinks, told apart from what it says (U4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from octavo.client.generation import GenerationDelta
from support.server_fakes import Server, answer, make_server
from support.tool_fakes import ONE, WEATHER, calls_of, message_of

THOUGHT = "<think>\nHm, rain? é\n</think>\n\nIt rains."


def thinking(text: str, *, reasoning: str = "qwen3", reason: str = "stop", **settings: Any) -> Server:
    def script(request: Any) -> Sequence[GenerationDelta]:
        return answer(text, n=request.params.n, reason=reason)

    return make_server(script, reasoning=reasoning, **settings)


def test_u19_reasoning_has_both_of_its_names_and_content_begins_after_it() -> None:
    message, reason = message_of(thinking(THOUGHT), tools=None)
    assert message["reasoning"] == message["reasoning_content"] == "Hm, rain? é"
    assert (message["content"], reason) == ("It rains.", "stop")


def test_a_server_without_a_reasoning_parser_leaves_thoughts_in_the_content() -> None:
    reply = make_server(lambda request: answer(THOUGHT)).chat().json()
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": THOUGHT, "refusal": None}
    assert "completion_tokens_details" not in reply["usage"]


def test_unfinished_reasoning_is_reasoning_only() -> None:
    message, reason = message_of(thinking("<think>Hm, ra", reason="length"), tools=None)
    assert (message["reasoning"], message["content"], reason) == ("Hm, ra", None, "length")


def test_a_reply_without_thoughts_is_content() -> None:
    message, _ = message_of(thinking("It rains."), tools=None)
    assert (message["reasoning"], message["content"]) == (None, "It rains.")


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        ("Say it. <think>\n", "Hm.</think>Rain.", ("Hm.", "Rain.")),  # the template opened it
        ("Say it. <think>\n\n</think>\n\n", "<think> is a tag.", (None, "<think> is a tag.")),  # and closed it
        ("<think> is a tag. Say it.", "Rain.", (None, "Rain.")),  # a caller's text is no template's
    ],
)
def test_the_prompt_tells_whether_the_model_is_thinking(
    prompt: str, text: str, expected: tuple[str | None, str]
) -> None:
    message = thinking(text).chat(prompt).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == expected


def test_implicit_thinking_needs_no_mark_at_its_begin() -> None:
    message, _ = message_of(thinking("Hm.</think>Rain.", reasoning="deepseek_r1"), tools=None)
    assert (message["reasoning"], message["content"]) == ("Hm.", "Rain.")


def test_calls_are_looked_for_after_the_thinking() -> None:
    text = f"<think>Shall I write {ONE}?</think>{ONE}"
    server = thinking(text, tools="hermes", enable_auto_tool_choice=True)
    message, reason = message_of(server, tools=[WEATHER])
    assert message["reasoning"] == f"Shall I write {ONE}?"
    assert (message["content"], calls_of(message), reason) == (None, [("get_weather", {"city": "Oslo"})], "tool_calls")


def test_reasoning_can_be_left_out_but_is_counted() -> None:
    server = thinking(THOUGHT)
    for stream in (False, True):
        fields: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
        reply = server.chat(include_reasoning=False, stream=stream, **fields)
        usage = reply.events()[-1]["usage"] if stream else reply.json()["usage"]
        assert b"rain?" not in reply.body
        # A token a character but for é, whose id is its Latin-1 code here: a broken byte, one character as well.
        assert usage["completion_tokens_details"] == {"reasoning_tokens": THOUGHT.index("</think>") + len("</think>")}


def test_running_usage_counts_thoughts_so_far() -> None:
    server = thinking("<think>ab</think>c")
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = server.chat(stream=True, stream_options=options).events()
    counts = [chunk["usage"]["completion_tokens_details"]["reasoning_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == len("<think>ab</think>")


def test_a_constraint_begins_after_the_thinking() -> None:
    """U4, G24."""
    server = thinking(THOUGHT)
    server.chat(guided_regex="[a-z]+")
    server.chat("Say it. <think>\n\n</think>\n\n", guided_regex="[a-z]+")
    specs = server.grammars.specs
    assert specs[0].kind == "regex" and "</think>" in specs[0].frames[0]["lark"]
    assert specs[1].frames == ()


def test_a_budget_of_thinking_is_a_frame_of_its_own() -> None:
    server = thinking(THOUGHT)
    assert server.chat("Say it. <think>\n", thinking_token_budget=7).status == 200
    assert "max_tokens=7" in server.grammars.specs[0].source["lark"]
    assert server.chat(thinking_token_budget=-1).error["param"] == "thinking_token_budget"


def test_switches_of_thinking_reach_the_template_and_unheard_ones_are_named() -> None:
    server = thinking(THOUGHT)
    server.chat(enable_thinking=False)
    assert server.renderer.options["chat_template_kwargs"] == {"enable_thinking": False, "thinking": False}
    reply = server.chat(reasoning_effort="none")
    assert server.renderer.options["chat_template_kwargs"]["enable_thinking"] is False
    assert "x-octavo-ignored-fields" not in reply.headers
    reply = server.chat(reasoning_effort="high")  # this template knows of no effort
    assert reply.headers["x-octavo-ignored-fields"] == "reasoning_effort"
    server.chat(enable_thinking=True, chat_template_kwargs={"enable_thinking": False})
    assert server.renderer.options["chat_template_kwargs"]["enable_thinking"] is False
    assert server.chat(reasoning_effort="much").error["param"] == "reasoning_effort"


def test_the_analysis_of_harmony_is_counted_with_its_marks() -> None:
    thought = "<|channel|>analysis<|message|>Rain?<|end|>"
    text = f"{thought}<|start|>assistant<|channel|>final<|message|>It rains."
    for cut, expected in ((text, len(thought)), (text[:40], 40), ("It rains.", 0)):
        server = thinking(cut, reasoning="openai", reason="length")
        usage = server.chat().json()["usage"]
        assert usage["completion_tokens_details"] == {"reasoning_tokens": expected}
        chunks = server.chat(stream=True, stream_options={"include_usage": True}).events()
        assert chunks[-1]["usage"] == usage
