"""Which formats the outputs of a model have: as the flags say, or as its template and vocabulary show."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidConfig
from octavo.served.parts import OutputSettings
from octavo.text.formats.base import ReasoningFormat, ToolFormat
from octavo.text.formats.detect import detect_reasoning_format, detect_tool_format
from octavo.text.formats.registry import load_plugin, reasoning_format, tool_format
from octavo.text.grammars.tool_grammar import SpecialTokens

logger = logging.getLogger(__name__)

#: The value of `--tool-call-parser` and `--reasoning-parser` that leaves it to the model's files.
AUTO = "auto"


class FormatVocabulary(Protocol):
    """`text.tokenizers.tokenizer.Tokenizer`."""

    @property
    def special_ids(self) -> Collection[int]: ...

    def token(self, token_id: int) -> str | None: ...

    def token_to_id(self, token: str) -> int | None: ...


def check_formats(config: ServerConfig) -> None:
    """Load the plug-in, and look up the formats that the flags name. Raises `StartupError`."""
    if config.tool_parser_plugin is not None:
        load_plugin(config.tool_parser_plugin)
    if config.tool_call_parser != AUTO:
        tool_format(config.tool_call_parser)
    if config.reasoning_parser not in (None, AUTO):
        reasoning_format(config.reasoning_parser or "")


def output_settings(
    config: ServerConfig, tokenizer: FormatVocabulary, templates: Mapping[str, str], eos_token_ids: Collection[int]
) -> OutputSettings:
    """`templates`: name -> source of the chat templates that requests are rendered with. Raises `StartupError`.

    `check_formats` comes before it.
    """
    tools = _tool_format(config, templates, tokenizer.token_to_id)
    reasoning = _reasoning_format(config, templates, tokenizer.token_to_id)
    if reasoning is not None and reasoning.pipeline is not None and tools is None:
        tools = tool_format(reasoning.name)
    if tools is not None and reasoning is not None and tools.pipeline is not reasoning.pipeline:
        raise InvalidConfig(
            f"--tool-call-parser {tools.name} and --reasoning-parser {reasoning.name} cannot be combined: "
            "they read different outputs"
        )
    for what, row in (("tool calls", tools), ("thinking", reasoning)):
        if row is not None:
            logger.info("format of %s: %s", what, row.name)
    return OutputSettings(tools, reasoning, special_tokens(tokenizer, eos_token_ids))


def special_tokens(tokenizer: FormatVocabulary, eos_token_ids: Collection[int]) -> SpecialTokens:
    """The special tokens of a vocabulary that have a text."""
    ids = {text: i for i in tokenizer.special_ids if (text := tokenizer.token(i))}
    return SpecialTokens(ids, frozenset(eos_token_ids))


def _tool_format(
    config: ServerConfig, templates: Mapping[str, str], token_to_id: Callable[[str], int | None]
) -> ToolFormat | None:
    if config.tool_call_parser != AUTO:
        return tool_format(config.tool_call_parser)
    found = detect_tool_format(templates, token_to_id)
    if found is None and config.enable_auto_tool_choice:
        raise InvalidConfig(
            "--enable-auto-tool-choice requires --tool-call-parser: neither the chat template nor the vocabulary of "
            "this model shows how it writes tool calls"
        )
    return None if found is None else tool_format(found)


def _reasoning_format(
    config: ServerConfig, templates: Mapping[str, str], token_to_id: Callable[[str], int | None]
) -> ReasoningFormat | None:
    if config.reasoning_parser is None:
        return None
    if config.reasoning_parser != AUTO:
        return reasoning_format(config.reasoning_parser)
    found = detect_reasoning_format(templates, token_to_id)
    if found is None:
        logger.warning(
            "--reasoning-parser auto: this model's files show no marks of thinking, so it stays in the content"
        )
    return None if found is None else reasoning_format(found)
