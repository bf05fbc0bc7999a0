"""From what a turn wants to be continued to token ids: templates, tokenization, infilling, and in which thread."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

from octavo.base.config import ServerConfig
from octavo.base.errors import ContextLengthExceeded, InvalidRequest, Overloaded, RequestError
from octavo.base.media import MediaItem
from octavo.media.part import text_only
from octavo.served.media import MediaReader, refuse_media
from octavo.served.media_text import Mark
from octavo.served.parts import Renderer
from octavo.served.turn import Continuation, Conversation
from octavo.wire.messages import EngineInfo

#: Prompts of more characters than this are tokenized in a thread, so that the streams go on meanwhile.
THREAD_CHARS = 2048
#: Short texts of a turn that go to a thread together.
_TEXTS_A_THREAD: Final = 64
#: No token stands for more bytes of text than this: longer prompts are refused before they are tokenized.
MAX_TOKEN_BYTES = 256
#: Renderings of requests' own templates that wait for their turn.
MAX_TEMPLATES_QUEUED = 64

#: `messages[0].content` becomes `messages.0.content`, the spelling of all other paths.
_INDEX = re.compile(r"\[(\d+)\]")

NO_MARKS: list[Mark] = []

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as the model gets it. `param`: the field that it came in.

    Of a model with an encoder `ids` are the encoder's input, and `decoder_ids` what the decoder begins with.
    """

    ids: list[int]
    text: str | None  # None where it was given as ids
    param: str
    ends: tuple[int, ...] = ()  # further tokens that end what is written behind it
    media: tuple[MediaItem, ...] = ()  # `text` has a placeholder for each, `ids` have its rows
    decoder_ids: list[int] | None = None
    decoder_text: str | None = None


@dataclass(slots=True)
class _Queued:
    """Templates that wait to be rendered, for whomever."""

    count: int = 0


class PromptMaker:
    """The renderer, and the threads in which it works on what is long."""

    def __init__(
        self, renderer: Renderer, config: ServerConfig, info: EngineInfo, media: MediaReader | None = None
    ) -> None:
        self._renderer = renderer
        self._media = media
        self._config = config
        self._info = info
        # Two threads: a few long prompts at once must not take the cores from the engine.
        self._threads = ThreadPoolExecutor(2, "tokenize")
        # A template that a request brought may take its full time: only others of its kind wait for it.
        self._template_thread = ThreadPoolExecutor(1, "template")
        self._templates = _Queued()
        self._num_ids = info.vocab_size

    def speaking(self, renderer: Renderer, info: EngineInfo, num_ids: int) -> PromptMaker:
        """The same, in the same threads, for an adapter with a renderer, a context or tokens of its own."""
        made = copy.copy(self)
        made._renderer, made._info, made._num_ids = renderer, info, num_ids
        return made

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._template_thread.shutdown(wait=False, cancel_futures=True)

    async def made(
        self, wanted: Sequence[Conversation | Continuation], param: str, cache_salt: str = ""
    ) -> list[Prompt]:
        """All prompts of a turn, in order; each is named `param`, with its number where there are several.

        `cache_salt`: names that callers give to media count among requests of the same salt.

        Raises `InvalidRequest`, `ContextLengthExceeded`, or `Overloaded`.
        """
        # A thousand short ones hold up the streams as a long one does.
        total = sum(_num_chars(item.prompt) for item in wanted if isinstance(item, Continuation))
        ids = await self._of_short_texts(wanted) if total > THREAD_CHARS else {}
        made = []
        for place, item in enumerate(wanted):
            name = f"{param}.{place}" if len(wanted) > 1 else param
            if isinstance(item, Conversation):
                prompt = await self._of_conversation(item, name, cache_salt)
            elif place in ids:
                prompt = Prompt(ids[place], str(item.prompt), name)
            else:
                prompt = await self._of_completion(item, name, total, cache_salt)
            made.append(await self._with_decoder(prompt, item))
        return made

    async def _of_short_texts(self, wanted: Sequence[Conversation | Continuation]) -> dict[int, list[int]]:
        """The ids of the short texts among them, by place: many go to a thread at once, for the way there is longer
        than one of them takes. Those that cannot be tokenized are left out, for whoever tells their name."""
        short = [
            (place, item.prompt, item.add_special_tokens)
            for place, item in enumerate(wanted)
            if isinstance(item, Continuation)
            and isinstance(item.prompt, str)
            and 0 < len(item.prompt) <= min(THREAD_CHARS, self._most_chars)
            and not (item.media or item.suffix)
        ]
        found: dict[int, list[int]] = {}

        def run(part: list[tuple[int, str, bool]]) -> None:
            for place, text, add_special_tokens in part:
                with contextlib.suppress(RequestError):
                    found[place] = self._renderer.render_text(text, add_special_tokens)

        loop = asyncio.get_running_loop()
        for first in range(0, len(short), _TEXTS_A_THREAD):
            await loop.run_in_executor(self._threads, run, short[first : first + _TEXTS_A_THREAD])
        return found

    async def paired(
        self, pairs: Sequence[tuple[str, str]], encode: Callable[[str, str], tuple[list[int], int]], param: str
    ) -> list[tuple[list[int], int]]:
        """Two texts in one each, and where the second begins. `encode`: the tokenizer's. Raises as `made`."""
        total = sum(len(first) + len(second) for first, second in pairs)
        made = []
        for first, second in pairs:
            size = len(first) + len(second)
            made.append(await self._run(size, partial(encode, first, second), param, total))
        return made

    async def _with_decoder(self, prompt: Prompt, item: Conversation | Continuation) -> Prompt:
        """Of a model with an encoder, what its decoder begins with."""
        start = list(self._info.decoder_start_token_ids)
        given = item.decoder_prompt if isinstance(item, Continuation) else None
        param = f"{prompt.param}.decoder_prompt"
        if not start:
            if given is not None:
                raise InvalidRequest("The model has no encoder: it takes one prompt, as `prompt`.", param)
            return prompt
        if not given:
            return replace(prompt, decoder_ids=start)
        if isinstance(given, str):
            ids = start + await self._run(len(given), lambda: self._renderer.render_text(given, False), param)
            return replace(prompt, decoder_ids=ids, decoder_text=given)
        self._check_ids(given, param)
        return replace(prompt, decoder_ids=given if given[0] == start[0] else [start[0], *given])

    async def _of_conversation(self, item: Conversation, param: str, cache_salt: str) -> Prompt:
        self._check_template(item.chat_template)
        messages, marks = item.messages, NO_MARKS
        if self._media is not None:
            collected = await self._media.collected(messages, item.media_options, cache_salt)
            messages, marks = collected.messages, collected.marks
        else:
            refuse_media(messages, item.media_options)
        options: dict[str, Any] = {
            "tools": item.tools,
            "documents": item.documents,
            "add_generation_prompt": item.add_generation_prompt,
            "continue_final_message": item.continue_final_message,
            "chat_template": item.chat_template,
            "chat_template_kwargs": item.chat_template_kwargs,
            "simplify": item.simplify,
        }
        if self._media is not None:
            options |= {"media": self._media.text.placeholders, "shown_media": self._media.text.shown}

        def render() -> Prompt:
            text = self._renderer.chat_text(messages, **options)
            answers = item.add_generation_prompt and not item.continue_final_message
            return self._tokenized(text, item.add_special_tokens, marks, param, answers)

        size = _num_chars(messages) + _num_chars(options) - len(item.chat_template or "") + _num_media_chars(marks)
        return await self._run(size, render, param, is_slow=item.chat_template is not None)

    def _tokenized(
        self, text: str, add_special_tokens: bool, marks: Sequence[Mark], param: str, answers: bool = True
    ) -> Prompt:
        """`answers`: an answer is to begin behind it."""
        if not marks or self._media is None:
            return Prompt(self._renderer.render_text(text, add_special_tokens), text, param)
        adds = add_special_tokens and not self._media.text.brings_bos
        ids = self._renderer.render_text(self._media.text.expanded(text, marks, param), adds)
        if answers:
            ids = ids + self._media.text.end_ids
        return Prompt(ids, text, param, media=self._media.text.placed(ids, marks, param))

    def _check_template(self, chat_template: str | None) -> None:
        """A name of the tokenizer's templates, or with `--trust-request-chat-template` a template."""
        if chat_template is None or chat_template in self._renderer.template_names:
            return
        if not self._config.trust_request_chat_template:
            names = ", ".join(sorted(self._renderer.template_names)) or "none"
            raise InvalidRequest(
                "This server renders no templates of requests (--trust-request-chat-template is off); "
                f"`chat_template` can only name one of the model's own: {names}.",
                "chat_template",
            )

    async def _of_completion(self, item: Continuation, param: str, total: int, cache_salt: str) -> Prompt:
        prompt = item.prompt
        if item.media:
            return await self._of_text_with_media(item, param, cache_salt)
        text = prompt if isinstance(prompt, str) else None
        if not isinstance(prompt, str):
            self._check_ids(prompt, param)
        if item.suffix:
            ids, ends = await self._infilled(item, param, total)
            return Prompt(ids, text, param, ends)
        if not isinstance(prompt, str):
            return Prompt(prompt, None, param)
        if not prompt:
            raise InvalidRequest("Prompt cannot be empty.", param)
        ids = await self._run(
            len(prompt), lambda: self._renderer.render_text(prompt, item.add_special_tokens), param, total
        )
        return Prompt(ids, text, param)

    async def _of_text_with_media(self, item: Continuation, param: str, cache_salt: str) -> Prompt:
        """A program writes the placeholders itself, and they are a token each where it gives ids."""
        media, prompt = self._media, item.prompt
        if media is None:
            raise InvalidRequest(text_only(item.media[0].kind), item.media[0].place)
        pieces = [piece for own in await media.loaded(item.media, item.media_options, cache_salt) for piece in own]
        marks = [piece for piece in pieces if isinstance(piece, Mark)]

        def render() -> Prompt:
            if isinstance(prompt, str):
                return self._tokenized(prompt, item.add_special_tokens, marks, param)
            self._check_ids(prompt, param)
            ids = media.text.expanded_ids(prompt, marks, lambda text: self._renderer.render_text(text, False))
            return Prompt(ids, None, param, media=media.text.placed(ids, marks, param))

        return await self._run(_num_chars(prompt) + _num_media_chars(marks), render, param)

    async def _infilled(self, item: Continuation, param: str, total: int) -> tuple[list[int], tuple[int, ...]]:
        """A prompt for what stands between two texts, and the tokens that end it."""
        suffix = item.suffix or ""

        def render() -> tuple[list[int], tuple[int, ...]]:
            found = self._renderer.render_infill(item.prompt, suffix, item.add_special_tokens)
            if found is None:
                raise InvalidRequest(
                    "`suffix` is not supported: the model's vocabulary has no tokens to fill in the middle.", "suffix"
                )
            return found

        size = len(suffix) + _num_chars(item.prompt)
        return await self._run(size, render, param, total + len(suffix))

    def _check_ids(self, ids: list[int], param: str) -> None:
        if not ids:
            raise InvalidRequest("Prompt cannot be empty.", param)
        if min(ids) < 0 or max(ids) >= self._num_ids:
            raise InvalidRequest(f"Token ids should lie in 0..{self._num_ids - 1}.", param)

    @property
    def _most_chars(self) -> int:
        """That fit the context, if a token stood for as many as it can."""
        return max(self._info.max_model_len, self._info.max_encoder_len) * MAX_TOKEN_BYTES

    async def _run(
        self, size: int, function: Callable[[], T], param: str, total: int = 0, *, is_slow: bool = False
    ) -> T:
        """Run `function`, which tokenizes `size` characters of the field `param`; in a thread when they are many.

        `total`: the characters of all prompts of the turn. `is_slow`: it may take seconds, whatever the size.
        """
        if size > self._most_chars:
            most = self._most_chars // MAX_TOKEN_BYTES
            raise ContextLengthExceeded(
                f"The prompt has {size} characters; they cannot fit the context of {most} tokens.",
                param,
            )
        try:
            if is_slow:
                return await self._in_template_thread(function)
            if max(size, total) <= THREAD_CHARS:
                return function()
            return await asyncio.get_running_loop().run_in_executor(self._threads, function)
        except ContextLengthExceeded as exc:
            raise ContextLengthExceeded(exc.message, exc.param or param) from None
        except InvalidRequest as exc:
            raise InvalidRequest(exc.message, _INDEX.sub(r".\1", exc.param or param)) from None

    async def _in_template_thread(self, function: Callable[[], T]) -> T:
        if self._templates.count >= MAX_TEMPLATES_QUEUED:
            raise Overloaded("Too many chat templates of requests are waiting to be rendered. Try again later.")
        self._templates.count += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._template_thread, function)
        finally:
            self._templates.count -= 1


def _num_media_chars(marks: Sequence[Mark]) -> int:
    return sum(len(mark.prepared.text) for mark in marks)


def _num_chars(value: Any) -> int:
    """Characters of all strings in a JSON value, whose depth is bounded."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_num_chars, value.values()))
    if isinstance(value, list | tuple) and value and type(value[0]) is int:
        return 0  # token ids
    return sum(map(_num_chars, value)) if isinstance(value, list | tuple) else 0
