"""From messages to prompts, and from outputs to replies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from octavo.base.config.options import opt

ContentFormatOption = Literal["auto", "string", "openai"]
ToolStrictLevel = Literal["auto", "function", "parameter"]


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """From messages to prompts, and from outputs to replies."""

    chat_template: str | None = opt(
        None, "Chat template: a file, the template itself, or the name of one of the tokenizer's templates."
    )
    chat_template_content_format: ContentFormatOption = opt(
        "auto",
        "How the template sees the content of a message: string, openai (a list of parts), or auto, as it reads it.",
    )
    default_chat_template_kwargs: str | None = opt(
        None, "Default variables of the chat template, as a JSON object.", json=True
    )
    trust_request_chat_template: bool = opt(False, "Render chat templates that come with requests.")
    exclude_tools_when_tool_choice_none: bool = opt(
        False, "Hide the tools from the chat template when a request's tool_choice is none."
    )
    response_role: str = opt("assistant", "Role of the reply.")
    enable_auto_tool_choice: bool = opt(False, "Let the model decide whether it calls tools.")
    tool_call_parser: str = opt(
        "auto", "Format of the model's tool calls; auto: the one that its chat template or vocabulary shows."
    )
    tool_parser_plugin: str | None = opt(None, "Python file that registers further formats of tool calls.")
    tool_strict_level: ToolStrictLevel = opt(
        "auto",
        "What tool calls must fit when the model decides whether to call. function: names that exist; parameter: the "
        "schemas too; auto: the schemas of tools with strict.",
    )
    reasoning_parser: str | None = opt(
        None, "Format of the model's thinking, or auto; default: thinking stays in the content."
    )
    generation_config: str = opt(
        "auto",
        "Source of the default sampling parameters: auto, the model's generation_config.json; vllm, none; or a "
        "directory or file.",
    )
    override_generation_config: str | None = opt(
        None, "Default sampling parameters as a JSON object; they override --generation-config.", json=True
    )
    disable_additional_properties: bool = opt(
        False,
        "Forbid keys that a request's JSON schema does not name, where the schema leaves them open.",
        aliases=(
            "guided_decoding_disable_additional_properties",
            "structured_outputs_config.disable_additional_properties",
        ),
    )
    disable_any_whitespace: bool = opt(
        False,
        "Forbid white space between the tokens of JSON output.",
        aliases=("guided_decoding_disable_any_whitespace", "structured_outputs_config.disable_any_whitespace"),
    )
    structured_outputs_config: str | None = opt(
        None, "disable_additional_properties and disable_any_whitespace, as a JSON object.", json=True
    )
    return_tokens_as_token_ids: bool = opt(
        False, "Name tokens token_id:<id> in log probabilities, unless the request says otherwise."
    )
    stream_interval: int = opt(
        1, "Minimum number of tokens in one event of a stream; the first and the last event never wait.", low=1
    )
    sse_keep_alive_interval: float = opt(
        0.0, "Seconds of silence after which a stream sends a comment; 0: never.", low=0.0
    )
    enable_force_include_usage: bool = opt(
        False, "End every stream with its usage, even when the request does not ask for it."
    )
