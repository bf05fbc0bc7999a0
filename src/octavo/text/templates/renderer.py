"""Messages or text to token ids: what stands between a request's wire form and the engine."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from octavo.base.config import ContentFormatOption
from octavo.base.errors import ContextLengthExceeded, InvalidConfig, InvalidRequest
from octavo.text.templates.chat_template import (
    RESERVED,
    ChatTemplate,
    TemplateSyntaxError,
    load_template,
    read_template_option,
)
from octavo.text.templates.conversation import render_conversation
from octavo.text.templates.worker import TemplateWorker
from octavo.text.tokenizers.fim import infill_tokens
from octavo.text.tokenizers.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

NO_TEMPLATE: Final = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template "
    "if the tokenizer does not define one."
)


class Renderer:
    """Safe to use from any thread. `max_model_len` (tokens) lets it refuse a text before tokenizing it; it may be
    set once the engine has said what it is.

    Templates of the model and of the command line are tried out at start, in a helper process, and rendered here.
    Those that a request brings, or names beside these, are rendered in the helper, which takes up to seconds.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str | None = None,
        *,
        content_format: ContentFormatOption = "auto",
        default_template_kwargs: Mapping[str, Any] | None = None,
        max_model_len: int | None = None,
        worker: TemplateWorker | None = None,
    ) -> None:
        """`chat_template` is the value of `--chat-template`. Raises `StartupError` for a template that is broken."""
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self._content_format = content_format
        self._default_kwargs = dict(default_template_kwargs or {})
        self._worker = worker or TemplateWorker()
        self._server_template: ChatTemplate | None = None
        self._own_templates: dict[str, ChatTemplate] = {}
        try:
            if chat_template is not None:
                self._server_template = self._load(*read_template_option(chat_template, tokenizer.chat_templates))
            else:
                self._own_templates = self._loaded()
        finally:
            self._worker.close()
        self.template_names = frozenset(tokenizer.chat_templates)
        #: Names that `chat_template_kwargs` can set for the templates rendered here.
        self.template_variables = self._variables()
        self._check_default_kwargs()

    def with_tokenizer(self, tokenizer: Tokenizer) -> Renderer:
        """The same for another tokenizer, which may bring its own templates, where the command line names none. Raises
        `StartupError` for one that is broken."""
        made = copy.copy(self)
        made.tokenizer = tokenizer
        if self._server_template is None and tokenizer.chat_templates:
            made._worker = TemplateWorker()
            try:
                made._own_templates = made._loaded()
            finally:
                made._worker.close()
                made._worker = self._worker  # of which there is one, for templates of requests
            made.template_names = frozenset(tokenizer.chat_templates)
            made.template_variables = made._variables()
        return made

    def _loaded(self) -> dict[str, ChatTemplate]:
        return {
            name: self._load(source, f"The chat template {name!r} of {self.tokenizer.source}")
            for name, source in self.tokenizer.chat_templates.items()
            if name in ("default", "tool_use")
        }

    def _variables(self) -> frozenset[str]:
        loaded = [*self._own_templates.values(), *filter(None, [self._server_template])]
        return frozenset().union(*(template.variables for template in loaded)) - RESERVED

    def _load(self, source: str, name: str) -> ChatTemplate:
        return load_template(source, self.tokenizer.special_tokens_map, name, self._worker.check)

    def _check_default_kwargs(self) -> None:
        try:
            _check_kwargs(self._default_kwargs)
        except InvalidRequest as error:
            raise InvalidConfig(f"--default-chat-template-kwargs: {error.message}") from None
        if self.has_template and (unread := sorted(self._default_kwargs.keys() - self.template_variables)):
            logger.warning("--default-chat-template-kwargs: the chat template does not read %s", ", ".join(unread))

    def close(self) -> None:
        """End the helper, if there is one."""
        self._worker.close()

    @property
    def template_sources(self) -> dict[str, str]:
        """Name -> source of the templates that requests are rendered with unless they name another."""
        if self._server_template is not None:
            return {"default": self._server_template.source}
        return {name: template.source for name, template in self._own_templates.items()}

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
        simplify: bool = False,
        media: Mapping[str, str] | None = None,
        shown_media: Mapping[str, str] | None = None,
    ) -> str:
        """The text of a conversation's prompt. The template writes BOS itself.

        `chat_template` is the request's own template, or the name of one of the tokenizer's; whether requests may
        bring one is the caller's decision. `simplify`: where a template of the server refuses the messages, it is
        given ever simpler ones that say the same (`simpler.py`). `media`: kind of the marks in messages -> the model's
        placeholder for it; None: the model takes text only. `shown_media`: the same with what the model's templates
        write around it. Raises `InvalidRequest` with the place of what is wrong.
        """
        if not messages:
            raise InvalidRequest("`messages` must hold at least one message.", "messages")
        _check_kwargs(chat_template_kwargs or {})
        kwargs = self._default_kwargs | dict(chat_template_kwargs or {})
        options: dict[str, Any] = {
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "kwargs": kwargs,
        }
        if media is not None:
            options |= {"media": dict(media), "shown_media": dict(shown_media or {})}
        if chat_template is not None and chat_template not in self._own_templates:
            return self._render_apart(chat_template, messages, options)
        template = self._template(chat_template, bool(tools))
        return render_conversation(template, messages, self._content_format, simplify=simplify, **options)

    def _render_apart(
        self, chat_template: str, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> str:
        """With the request's own template, or one of the tokenizer's that nobody has tried out."""
        source = self.tokenizer.chat_templates.get(chat_template, chat_template)
        specials = self.tokenizer.special_tokens_map
        try:
            return self._worker.render(source, specials, messages, self._content_format, options)
        except TemplateSyntaxError as error:
            raise InvalidRequest(f"The chat template cannot be compiled: {error}", "chat_template") from None

    def _template(self, requested: str | None, with_tools: bool) -> ChatTemplate:
        """T1: the request's template before the server's before the tokenizer's own."""
        if requested is not None:
            return self._own_templates[requested]
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


def _check_kwargs(kwargs: Mapping[str, Any]) -> None:
    """T24: what has a field of its own is not set beside it."""
    for name in sorted(RESERVED & kwargs.keys()):
        raise InvalidRequest(f"`{name}` cannot be set in `chat_template_kwargs`.", f"chat_template_kwargs.{name}")
