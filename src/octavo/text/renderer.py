"""Messages or text to token ids: what stands between a request's wire form and the engine.

Messages come as plain dictionaries that the server has checked for shape. Here their content is brought into the
form the template expects, and whatever the model cannot take (images, sound) is refused with its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from octavo.errors import ContextLengthExceeded, InvalidRequest
from octavo.text.chat_template import (
    RESERVED,
    ChatTemplate,
    TemplateSyntaxError,
    load_template,
    read_template_option,
)
from octavo.text.fim import infill_tokens
from octavo.text.tokenizer import Tokenizer

NO_TEMPLATE: Final = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template "
    "if the tokenizer does not define one."
)
#: Kinds of content parts that are text -> the field that holds it.
_TEXT_PARTS: Final = {
    "text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking",
}  # fmt: skip
#: Names under which callers send the reasoning of earlier turns, best first.
_REASONING: Final = ("reasoning_content", "reasoning", "thinking")


class Renderer:
    """Safe to use from any thread. `max_model_len` (tokens) lets it refuse a text before tokenizing it; it may be
    set once the engine has said what it is."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str | None = None,
        *,
        content_format: Literal["auto", "string", "openai"] = "auto",
        default_template_kwargs: Mapping[str, Any] | None = None,
        max_model_len: int | None = None,
    ) -> None:
        """`chat_template` is the value of `--chat-template`. Raises `StartupError` for a template that is broken."""
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self._content_format = content_format
        self._default_kwargs = dict(default_template_kwargs or {})
        _check_kwargs(self._default_kwargs)
        special_tokens = tokenizer.special_tokens_map
        self._server_template: ChatTemplate | None = None
        if chat_template is not None:
            source, name = read_template_option(chat_template, tokenizer.chat_templates)
            self._server_template = load_template(source, special_tokens, name)
        self._own_templates: dict[str, ChatTemplate] = {}
        if self._server_template is None:
            self._own_templates = {
                name: load_template(source, special_tokens, f"The chat template {name!r} of {tokenizer.source}")
                for name, source in tokenizer.chat_templates.items()
                if name in ("default", "tool_use")
            }

    @property
    def has_template(self) -> bool:
        return self._server_template is not None or bool(self._own_templates)

    def render_text(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text. Raises `ContextLengthExceeded` if it surely has more than `max_model_len` tokens."""
        if self.max_model_len is not None:
            least = self.tokenizer.min_num_tokens(text)
            if least > self.max_model_len:
                raise ContextLengthExceeded(
                    f"This model's maximum context length is {self.max_model_len} tokens. However, your prompt "
                    f"has at least {least} tokens. Please reduce the length of the prompt."
                )
        return self.tokenizer.encode(text, add_special_tokens)

    def render_infill(
        self, before: str | Sequence[int], after: str, add_special_tokens: bool = True
    ) -> tuple[list[int], tuple[int, ...]] | None:
        """The ids of a prompt after which the model writes what stands between two texts, and the ids that end it.

        None when the vocabulary has no tokens for that.
        """
        marks = infill_tokens(self.tokenizer)
        if marks is None:
            return None
        start = self.render_text("", add_special_tokens)  # a BOS, if the model wants one
        prefix = self.render_text(before, False) if isinstance(before, str) else list(before)
        suffix = self.render_text(after, False)
        return [*start, marks.prefix, *prefix, marks.suffix, *suffix, marks.middle], marks.ends

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_special_tokens: bool = False,
    ) -> list[int]:
        """The ids of a conversation's prompt; `chat_text` is its text. The template writes BOS itself.

        `chat_template` is the request's own template, or the name of one of the tokenizer's; whether requests may
        bring one is the caller's decision. Raises `InvalidRequest` with the place of what is wrong.
        """
        text = self.chat_text(
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template=chat_template,
            chat_template_kwargs=chat_template_kwargs,
        )
        return self.render_text(text, add_special_tokens)

    def chat_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """`render_chat` without the tokens."""
        if not messages:
            raise InvalidRequest("`messages` must hold at least one message.", "messages")
        _check_kwargs(chat_template_kwargs or {})
        template = self._template(chat_template, bool(tools))
        return template.render(
            self._messages(messages, template),
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **(self._default_kwargs | dict(chat_template_kwargs or {})),
        )

    def _template(self, requested: str | None, with_tools: bool) -> ChatTemplate:
        """The request's template before the server's before the tokenizer's own."""
        if requested is not None:
            source = self.tokenizer.chat_templates.get(requested, requested)
            try:
                return ChatTemplate(source, self.tokenizer.special_tokens_map)
            except TemplateSyntaxError as error:
                raise InvalidRequest(f"The chat template cannot be compiled: {error}", "chat_template") from None
        if self._server_template is not None:
            return self._server_template
        own = self._own_templates
        if with_tools and "tool_use" in own:
            return own["tool_use"]
        if "default" in own:
            return own["default"]
        if self.tokenizer.chat_templates:
            names = ", ".join(sorted(self.tokenizer.chat_templates))
            raise InvalidRequest(
                "This model has several chat templates and none is the default; name one of them in "
                f"`chat_template`: {names}.",
                "chat_template",
            )
        raise InvalidRequest(NO_TEMPLATE, "messages")

    def _messages(self, messages: Sequence[Mapping[str, Any]], template: ChatTemplate) -> list[dict[str, Any]]:
        as_parts = (template.content_format if self._content_format == "auto" else self._content_format) == "openai"
        shown = []
        for i, message in enumerate(messages):
            path = f"messages[{i}]"
            new = dict(message)
            parts = _text_parts(message.get("content"), f"{path}.content")
            if not as_parts:
                new["content"] = "\n".join(parts)
            elif isinstance(message.get("content"), list) or (not template.accepts_strings and parts):
                new["content"] = [{"type": "text", "text": part} for part in parts]
            else:
                new["content"] = "".join(parts)
            if message.get("role") == "developer" and not template.knows_developer:
                new["role"] = "system"
            if message.get("tool_calls"):
                new["tool_calls"] = [_with_parsed_arguments(call) for call in message["tool_calls"]]
            reasoning = next((message[name] for name in _REASONING if message.get(name) is not None), None)
            if reasoning is not None:
                new |= {"thinking": message.get("thinking", reasoning), "reasoning_content": reasoning}
            shown.append(new)
        return shown


def _text_parts(content: object, path: str) -> list[str]:
    """The texts of a message's content. Raises `InvalidRequest` naming the part that is not text."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise InvalidRequest("`content` must be a string, a list of parts or null.", path)
    return [_text_part(part, f"{path}[{j}]") for j, part in enumerate(content)]


def _text_part(part: object, path: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise InvalidRequest("A content part must be an object with a `type`.", path)
    kind = part.get("type", "text")
    name = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if name is None:
        raise InvalidRequest(f"This model takes text only; a part of type {str(kind)[:40]!r} cannot be read.", path)
    text = part.get(name)
    if not isinstance(text, str):
        raise InvalidRequest(f"A part of type {kind!r} needs a string `{name}`.", f"{path}.{name}")
    return text


def _with_parsed_arguments(call: Any) -> Any:
    """A tool call whose `arguments` are the object that their JSON text stands for.

    Text that is no JSON stays as it is: a model's earlier mistake must not end the conversation.
    """
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _check_kwargs(kwargs: Mapping[str, Any]) -> None:
    for name in sorted(RESERVED & kwargs.keys()):
        raise InvalidRequest(f"`{name}` cannot be set in `chat_template_kwargs`.", f"chat_template_kwargs.{name}")
