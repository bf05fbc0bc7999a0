"""Which formats a server reads: what its flags say, else what the model's files show (F3, F4, U2)."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidConfig, StartupError
from octavo.served.output_settings import check_formats, output_settings
from octavo.served.parts import OutputSettings

HERMES = "{% if tools %}<tools>{{ tools }}</tools> answer in <tool_call></tool_call>{% endif %}{{ messages }}"


class Vocabulary:
    """Two special tokens, one of which ends texts."""

    special_ids = frozenset({0, 1})

    def token(self, token_id: int) -> str | None:
        return ["<eos>", "<think>"][token_id]

    def token_to_id(self, token: str) -> int | None:
        return {"<eos>": 0, "<think>": 1}.get(token)


def settings(template: str = "{{ messages }}", **config: Any) -> OutputSettings:
    return output_settings(ServerConfig(**config), Vocabulary(), {"default": template}, {0})


def names(found: OutputSettings) -> tuple[str | None, str | None]:
    tools, reasoning = found.tool_format, found.reasoning_format
    return tools and tools.name, reasoning and reasoning.name


def test_the_format_of_calls_is_told_from_the_template() -> None:
    assert names(settings(HERMES)) == ("hermes", None)
    assert names(settings(HERMES, tool_call_parser="mistral")) == ("mistral", None)
    assert names(settings()) == (None, None)


def test_auto_choice_needs_a_format_that_is_known() -> None:
    """F4."""
    with pytest.raises(InvalidConfig, match="--enable-auto-tool-choice requires --tool-call-parser"):
        settings(enable_auto_tool_choice=True)
    assert names(settings(HERMES, enable_auto_tool_choice=True)) == ("hermes", None)


def test_thoughts_are_looked_for_only_when_the_server_is_told() -> None:
    template = "{{ messages }}<think></think>"
    assert names(settings(template)) == (None, None)
    assert names(settings(template, reasoning_parser="auto"))[1] is not None
    assert names(settings(reasoning_parser="deepseek_r1")) == (None, "deepseek_r1")


def test_special_tokens_are_known_by_their_texts() -> None:
    special = settings().special_tokens
    assert (special.ids, special.eos_ids) == ({"<eos>": 0, "<think>": 1}, {0})
    assert special.within(["a<think>b"]) == {1}


def test_harmony_is_read_as_a_whole_or_not_at_all() -> None:
    assert names(settings(reasoning_parser="openai")) == ("openai", "openai")
    with pytest.raises(InvalidConfig, match="they read different outputs"):
        settings(reasoning_parser="openai", tool_call_parser="hermes")
    with pytest.raises(InvalidConfig, match="they read different outputs"):
        settings(reasoning_parser="qwen3", tool_call_parser="openai")


@pytest.mark.parametrize("flag", ["tool_call_parser", "reasoning_parser"])
def test_a_format_that_nobody_knows_is_refused_before_the_model_is_read(flag: str) -> None:
    with pytest.raises(StartupError, match=f"--{flag.replace('_', '-')}.*mistral"):
        check_formats(ServerConfig(**{flag: "mistrall"}))
