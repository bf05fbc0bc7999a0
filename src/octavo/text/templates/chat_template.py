"""Chat templates: messages to the prompt's text, as the model was trained on it.

The text is that of transformers' `apply_chat_template` for the same messages, with one difference: `tools` and
`documents` are not defined at all when there are none and the template asks whether they are defined.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from jinja2 import Template, TemplateError, meta, nodes

from octavo.base.errors import CheckpointError, InvalidRequest, ServerError, StartupError
from octavo.text.templates.content_format import ContentFormat, accepts_strings, detect_format
from octavo.text.templates.sandbox import MAX_SOURCE, TICK, ChatEnvironment, Clock, LimitExceeded

#: Characters that a rendering may have beyond twice the characters of its input.
MAX_OUTPUT: Final = 4 << 20
#: Seconds that one rendering may take.
MAX_SECONDS: Final = 5.0

#: Names that a caller cannot set through `chat_template_kwargs`: they have fields of their own.
RESERVED: Final = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template", TICK}
)
#: Ends in a space, to see whether the template trims.
_MARK: Final = "\ue000octavo-continues-here\ue001 "

Message = Mapping[str, Any]


class TemplateSyntaxError(Exception):
    """The source is no template that can be compiled; the caller says where it came from."""


class TemplateRefusal(InvalidRequest):
    """The template refuses the messages, or fails on them."""


class ChatTemplate:
    """One compiled template. It keeps no state of a rendering; `render` may be called from any thread."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Raises `TemplateSyntaxError`."""
        self.source = source
        self._special_tokens = dict(special_tokens)
        compiled = _compile(source)
        self._template = compiled.template
        self.content_format: ContentFormat = compiled.content_format
        self.accepts_strings = compiled.accepts_strings
        self.variables = compiled.variables
        self._asks_for = compiled.asks_for
        self.knows_developer = "developer" in source

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Any] | None = None,  # not **kwargs: the names are a caller's, and may be `self`
    ) -> str:
        """The prompt's text. `kwargs` are further variables, of which the template gets those that it reads (T24);
        special tokens are variables already.

        Raises `InvalidRequest` with the template's own words when it refuses the messages or fails on them, or
        when it runs past its bounds.
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "Cannot set both `continue_final_message` and `add_generation_prompt` to true.",
                "continue_final_message",
            )
        kwargs = kwargs or {}
        for name in RESERVED & kwargs.keys():
            raise InvalidRequest(f"`{name}` cannot be set here.", f"chat_template_kwargs.{name}")
        shown = [{key: value for key, value in message.items() if value is not None} for message in messages]
        last = ""
        if continue_final_message:
            marked, last = _marked(shown[-1] if shown else {})
            shown[-1:] = [marked]
        variables = {
            **self._special_tokens,
            **{name: value for name, value in kwargs.items() if name in self.variables},
            "messages": shown,
            "add_generation_prompt": add_generation_prompt,
        }
        for name, value in (("tools", tools), ("documents", documents)):
            if value or name not in self._asks_for:
                variables[name] = list(value) if value else None
        try:
            text = self._run(variables)
        except LimitExceeded as error:
            raise InvalidRequest(f"The chat template was stopped: {error}.", "messages") from None
        except TemplateError as error:
            raise TemplateRefusal(error.message or str(error), "messages") from None
        except Exception as error:  # noqa: BLE001 (a template is a program: its mistakes are errors of any kind)
            raise TemplateRefusal(f"The chat template failed: {type(error).__name__}: {error}", "messages") from None
        return _cut_at_mark(text, last) if continue_final_message else text

    def check(self) -> None:
        """Render short conversations. Raises `InvalidRequest` if not even one of them works."""
        problem: InvalidRequest | None = None
        for messages, tools in _PROBES:
            begin = time.monotonic()
            try:
                self.render(messages, tools)
                return
            except InvalidRequest as error:
                problem = problem or error
            if time.monotonic() - begin > MAX_SECONDS / 2:
                break  # the others would take as long
        if problem is not None:
            raise problem

    def _run(self, variables: dict[str, Any]) -> str:
        clock = Clock(MAX_SECONDS)
        limit = MAX_OUTPUT + 2 * _characters(variables)
        pieces: list[str] = []
        size = 0
        for piece in self._template.generate(variables | {TICK: clock}):
            clock()
            size += len(piece)
            if size > limit:
                raise LimitExceeded(f"it writes more than {limit} characters")
            pieces.append(piece)
        return "".join(pieces)


_PROBE_TOOL: Final = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
_PROBES: Final[tuple[tuple[list[dict[str, Any]], list[dict[str, Any]] | None], ...]] = (
    ([{"role": "user", "content": "Hello"}], None),
    ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}], None),
    ([{"role": "user", "content": [{"type": "text", "text": "Hello"}]}], None),
    ([{"role": "user", "content": "Hello"}], [_PROBE_TOOL]),
)


def load_template(
    source: str,
    special_tokens: Mapping[str, str],
    name: str,
    check: Callable[[str, Mapping[str, str]], None] | None = None,
) -> ChatTemplate:
    """Try out a template at start and compile it. Raises `CheckpointError` that names it.

    `check` does what `ChatTemplate.check` does, before anything is compiled here.
    """
    try:
        if check is not None:
            check(source, special_tokens)
        template = ChatTemplate(source, special_tokens)
        if check is None:
            template.check()
        return template
    except TemplateSyntaxError as error:
        raise CheckpointError(f"{name} cannot be compiled: {error}") from None
    except InvalidRequest as error:
        raise CheckpointError(f"{name} cannot render even a short conversation: {error.message}") from None
    except ServerError as error:
        raise StartupError(f"{name} could not be tried out: {error.message}") from None


def read_template_option(value: str, named: Mapping[str, str]) -> tuple[str, str]:
    """(source, what to call it in messages) for the value of `--chat-template`.

    A name among the tokenizer's own templates; else a readable file; else, if it holds a brace or a line break,
    the template itself, with backslash escapes decoded. Raises `StartupError` for anything else.
    """
    if value in named:
        return named[value], f"The tokenizer's chat template {value!r}"
    try:
        with open(value, encoding="utf-8") as file:
            return file.read(MAX_SOURCE + 1), f"The chat template {value}"
    except UnicodeDecodeError:
        raise StartupError(f"The chat template {value} is not UTF-8 text.") from None
    except (OSError, ValueError) as error:
        if any(char in value for char in "{}\n"):
            return _unescaped(value), "The chat template of the command line"
        names = ", ".join(sorted(named)) or "none"
        raise StartupError(
            f"The supplied chat template ({value}) looks like a file path, but failed to open: {error}. "
            f"It is not one of the tokenizer's named templates either ({names})."
        ) from None


def _unescaped(value: str) -> str:
    """Backslash escapes decoded, all other characters as they are, beyond Latin-1 too."""
    try:
        return value.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError as error:
        raise StartupError(
            f"The chat template of the command line has a bad backslash escape: {error.reason}."
        ) from None


class _Compiled:
    """What is known of a template's source."""

    def __init__(self, source: str) -> None:
        plain = _ENVIRONMENT.parse(source)
        self.content_format = detect_format(plain)
        self.accepts_strings = accepts_strings(plain)
        self.variables = frozenset(meta.find_undeclared_variables(plain))
        tests = (node for node in plain.find_all(nodes.Test) if node.name in ("defined", "undefined"))
        self.asks_for = frozenset(test.node.name for test in tests if isinstance(test.node, nodes.Name))
        code = _ENVIRONMENT.compile(_ENVIRONMENT.parse_bounded(source))
        self.template = Template.from_code(_ENVIRONMENT, code, _ENVIRONMENT.make_globals(None))


_ENVIRONMENT: Final = ChatEnvironment()


@lru_cache(maxsize=64)
def _compile(source: str) -> _Compiled:
    if len(source) > MAX_SOURCE:
        raise TemplateSyntaxError(f"it has more than {MAX_SOURCE} characters")
    try:
        return _Compiled(source)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise TemplateSyntaxError(f"{error.message}" + (f" (line {line})" if line else "")) from None
    except RecursionError:
        raise TemplateSyntaxError("it is nested too deeply") from None
    except (SyntaxError, MemoryError, OverflowError, ValueError) as error:
        raise TemplateSyntaxError(f"{type(error).__name__}: {error}") from None


def _characters(value: object) -> int:
    """Characters of all strings in nested lists and objects."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list | tuple) else 0


def _marked(message: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """(a copy of the message whose text ends with the mark, that text without it)."""
    marked = copy.deepcopy(dict(message))
    content = marked.get("content")
    if isinstance(content, str):
        marked["content"] = content + _MARK
        return marked, content
    texts = [part for part in content or () if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if not texts:
        raise InvalidRequest("`continue_final_message` needs a last message with text.", "continue_final_message")
    last: str = texts[-1]["text"]
    texts[-1]["text"] = last + _MARK
    return marked, last


def _cut_at_mark(text: str, last: str) -> str:
    """The prompt up to the end of the last message, whose text is `last`."""
    mark = _MARK.rstrip()
    before, found, after = text.rpartition(mark)
    if not found or last.strip() not in before:
        raise InvalidRequest("The chat template does not show the last message as it is.", "continue_final_message")
    # The mark's own space is gone: the template trims its messages, and this one would have been trimmed as well.
    return before if after.startswith(" ") else before.rstrip()
