"""Conversations with results of tools, instructions and neighbours of one role, at templates that refuse these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from octavo.base.errors import InvalidRequest
from octavo.text.templates.chat_template import ChatTemplate
from octavo.text.templates.conversation import render_conversation
from octavo.text.templates.simpler import steps

_SHOW = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}|{% endfor %}"
#: Users and assistants take turns; calls and their results do not count.
MISTRAL = (
    "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
    "{% if (m.role == 'user') != (ns.n % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}" + _SHOW
)
#: Every message counts, and there is no system message.
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + _SHOW
)
#: The instructions come first, or not at all.
FIRST = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system must be first') }}{% endif %}{% endfor %}" + _SHOW
)
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]},
    {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "a", "content": "Rain"},
    {"role": "user", "content": "And now?"},
]


def text(template: str, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    return render_conversation(ChatTemplate(template, {}), messages, "auto", **options)


def test_turns_are_taken_with_the_users_words_in_the_result() -> None:
    shown = text(MISTRAL, MESSAGES, simplify=True)
    assert shown.startswith("system:Be brief.|user:One\nTwo|assistant:Let me see.[{")
    assert shown.endswith("|tool:Rain\n\nAnd now?|")


def test_a_template_of_two_roles_gets_two_roles() -> None:
    shown = text(GEMMA, MESSAGES, simplify=True)
    call = '{"name": "f", "arguments": {"x": 1}}'
    assert shown == f"user:Be brief.\n\nOne\nTwo|assistant:Let me see.\n\n{call}|user:Rain\n\nAnd now?|"


def test_ids_of_calls_are_made_to_fit() -> None:
    template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}"
        "{{ raise_exception('9 characters') }}{% endif %}{{ c.id }}{% endfor %}{{ m.tool_call_id }}{% endfor %}"
    )
    calls = [CALL, {**CALL, "id": "b"}]
    results = [{"role": "tool", "tool_call_id": name, "content": ""} for name in ("b", "a")]
    shown = text(template, [*MESSAGES[:2], {**MESSAGES[2], "tool_calls": calls}, *results], simplify=True)
    assert shown == "call00000call00001call00001call00000"


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "examples").glob("*.jinja")), ids=lambda p: p.stem)
def test_every_example_takes_the_conversation_of_an_agent(path: Path) -> None:
    template = ChatTemplate(path.read_text(), {"bos_token": "<s>", "eos_token": "</s>"})
    shown = render_conversation(template, MESSAGES, "auto", simplify=True, add_generation_prompt=True)
    assert all(words in shown for words in ("Be brief.", "One", "Two", "Rain", "And now?"))


def test_later_instructions_are_the_users_words() -> None:
    messages = [*MESSAGES[:2], {"role": "assistant", "content": "Yes."}, {"role": "system", "content": "Stop."}]
    assert text(FIRST, messages, simplify=True).endswith("|assistant:Yes.|user:Stop.|")


def test_what_a_template_takes_stays_as_it_is() -> None:
    assert text(_SHOW, MESSAGES, simplify=True) == text(_SHOW, MESSAGES)


def test_nothing_is_changed_unasked() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        text(MISTRAL, MESSAGES)


def test_the_first_refusal_is_told_where_nothing_helps() -> None:
    with pytest.raises(InvalidRequest, match="never at 5"):
        text("{{ raise_exception('never at ' ~ messages | length) }}", MESSAGES, simplify=True)


def test_each_step_says_all_that_was_said() -> None:
    for messages in steps(MESSAGES):
        shown = text(_SHOW, messages)
        assert all(words in shown for words in ("Be brief.", "One\nTwo", "Let me see.", '"f"', "Rain", "And now?"))
