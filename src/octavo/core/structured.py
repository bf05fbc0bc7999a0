"""Grammars of running requests: compiled off the step path, advanced by each token, asked for each next mask.

A request with a grammar waits here until its matcher is ready, and enters the scheduler then; nobody else waits for
it. Grammars were proven to compile before they came (`text.grammar_checker`); one that fails here all the same ends
its own request with an error.

Which tokens a matcher admits depends on their bytes alone, so all that the engine needs is the vocabulary as bytes.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import takewhile
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from octavo.core.spelling import Spelling
from octavo.grammar import LIMITS, STACK_BYTES, ByteVocabulary
from octavo.messages import AddRequest, RequestOutput, Vocabulary

if TYPE_CHECKING:
    from octavo.core.request import Request
    from octavo.step import SchedulerOutput

logger = logging.getLogger("octavo.core")

#: Compiled grammars that are kept for the next request with the same one.
CACHE_ENTRIES = 32

#: In the bytes that a grammar dictates, a special token is this byte, which no text has, and "[", its id, "]".
_SPECIAL = b"\xff"

_FAILED = "The constraint on the output of this request failed"


class Matcher(Protocol):
    """One request's place in its grammar. After an error it is of no more use."""

    def fill(self, words: ctypes.Array[ctypes.c_uint32]) -> str | None:
        """Write which tokens may come next, bit i of the array for token i. Returns what went wrong, or None."""
        ...

    def advance(self, token_id: int) -> str | None:
        """Take in the sampled token. Returns what went wrong, or None."""
        ...

    def jump(self, limit: int, stop_ids: Collection[int]) -> list[int]:
        """Take in the text that must follow, and return its tokens: at most `limit`, none of `stop_ids`.

        What they are depends on the tokens taken in so far alone.
        """
        ...

    @property
    def is_complete(self) -> bool:
        """Nothing can follow but the end."""
        ...


@dataclass(frozen=True, slots=True)
class GrammarReady:
    """What the compiling thread puts into the engine's inbox."""

    request_id: int
    matcher: Matcher | None
    error: str | None


class Compiler(Protocol):
    """Makes matchers; called in one thread. Raises whatever it likes."""

    def set_vocabulary(self, vocabulary: Vocabulary) -> None: ...

    def compile(self, grammar: str) -> Matcher: ...


class StructuredOutputs:
    """All methods are called by the engine's loop; `post` is called by the compiling thread."""

    def __init__(self, vocab_size: int, post: Callable[[GrammarReady], None], compiler: Compiler | None = None) -> None:
        self._vocab_size = vocab_size
        self._post = post
        self._compiler = compiler or LLGuidanceCompiler(vocab_size)
        self._tasks: SimpleQueue[Vocabulary | tuple[int, str]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pending: dict[int, AddRequest] = {}  # by request id: their grammar is not ready
        self._num_words = -(-vocab_size // 32)
        self._masks: dict[int, ctypes.Array[ctypes.c_uint32]] = {}  # by slot

    # ------------------------------------------------------------------------------------------- before a request runs
    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """To come before the first request."""
        self._num_words = -(-max(self._vocab_size, len(vocabulary.tokens)) // 32)
        self._masks.clear()
        self._enqueue(vocabulary)

    def submit(self, message: AddRequest) -> None:
        """Compile the request's grammar; a `GrammarReady` follows."""
        assert message.params.grammar is not None
        self._pending[message.request_id] = message
        self._enqueue((message.request_id, message.params.grammar))

    def is_pending(self, request_id: int) -> bool:
        return request_id in self._pending

    def take(self, ready: GrammarReady) -> AddRequest | None:
        """The request that waited for `ready`; None if it was aborted meanwhile."""
        return self._pending.pop(ready.request_id, None)

    def abort(self, request_ids: Iterable[int]) -> list[RequestOutput]:
        """End those that still wait for their grammar."""
        return [RequestOutput(i, [], "abort") for i in request_ids if self._pending.pop(i, None) is not None]

    def abort_all(self) -> list[RequestOutput]:
        return self.abort(list(self._pending))

    # ------------------------------------------------------------------------------------------------ around a step
    def fill(self, plan: SchedulerOutput, slots: list[Request | None]) -> dict[int, str]:
        """Put the masks of the step's sampling slots into `plan.masks`. Returns slot -> error of those that failed.

        The memory belongs to the slot and is written again in the next step.
        """
        errors: dict[int, str] = {}
        for slot, count in plan.num_scheduled_tokens.items():
            request = slots[slot]
            if request is None or request.matcher is None:
                continue
            if request.num_computed_tokens + count < len(request.token_ids):
                continue
            words = self._masks.get(slot)
            if words is None:
                words = self._masks[slot] = (ctypes.c_uint32 * self._num_words)()
            error = request.matcher.fill(words)
            if error is None and not bytes(words).strip(b"\0"):
                error = "no token is allowed"
            if error is not None:
                errors[slot] = f"{_FAILED}: {error}."
                continue
            if request.params.ignore_eos:
                _without(words, request.eos_token_ids)
            plan.masks[slot] = words
        return errors

    # ------------------------------------------------------------------------------------------- the compiling thread
    def _enqueue(self, task: Vocabulary | tuple[int, str]) -> None:
        if self._thread is None:
            # The size holds for threads that start from now on, and Python has no other way to say it for one.
            before = threading.stack_size(STACK_BYTES)
            try:
                self._thread = threading.Thread(target=self._work, name="octavo-grammar", daemon=True)
                self._thread.start()
            finally:
                threading.stack_size(before)
        self._tasks.put(task)

    def _work(self) -> None:
        while True:
            task = self._tasks.get()
            if isinstance(task, Vocabulary):
                self._set_vocabulary(task)
                continue
            request_id, grammar = task
            if request_id not in self._pending:
                continue
            matcher, error = None, None
            try:
                matcher = self._compiler.compile(grammar)
            except BaseException as exc:  # noqa: BLE001  (a panic of the library is a BaseException)
                logger.error("the grammar of request %d could not be compiled: %s", request_id, exc)
                error = f"{_FAILED}: it could not be compiled."
            self._post(GrammarReady(request_id, matcher, error))

    def _set_vocabulary(self, vocabulary: Vocabulary) -> None:
        try:
            self._compiler.set_vocabulary(vocabulary)
        except BaseException:
            logger.exception("The vocabulary cannot be used for grammars.")


def _without(words: ctypes.Array[ctypes.c_uint32], token_ids: Iterable[int]) -> None:
    """Forbid `token_ids`, unless nothing else is allowed."""
    saved = [(i >> 5, words[i >> 5]) for i in token_ids]
    for i in token_ids:
        words[i >> 5] &= ~(1 << (i & 31)) & 0xFFFFFFFF
    if not bytes(words).strip(b"\0"):
        for index, word in saved:
            words[index] |= word


class LLGuidanceCompiler:
    """`Compiler` by llguidance."""

    def __init__(self, vocab_size: int) -> None:
        """`vocab_size`: of the model; tokens beyond are never dictated."""
        self._vocab_size = vocab_size
        self._tokenizer: Any = None
        self._spelling = Spelling([], ())
        self._num_bytes = 0
        self._compiled: OrderedDict[str, Any] = OrderedDict()  # newest last

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        import llguidance  # only where grammars are used

        started = time.monotonic()
        tokens: Any = ByteVocabulary(vocabulary.tokens, vocabulary.special_ids, vocabulary.eos_token_ids)
        eos = list(vocabulary.eos_token_ids)
        # Both steps hold the interpreter's lock for long where the vocabulary is large: the heartbeat goes in between.
        plain = llguidance.LLTokenizer(tokens, eos_token=eos, slices=[])
        time.sleep(0.01)
        self._tokenizer = plain.with_slices(llguidance.LLTokenizer.general_slices())
        self._spelling = Spelling(vocabulary.tokens[: self._vocab_size], {*vocabulary.special_ids, *eos})
        self._num_bytes = -(-len(vocabulary.tokens) // 32) * 4
        self._compiled.clear()
        logger.info("grammars: %d tokens in %.2f s", len(vocabulary.tokens), time.monotonic() - started)

    def compile(self, grammar: str) -> Matcher:
        import llguidance

        if self._tokenizer is None:
            raise RuntimeError("there is no vocabulary")
        first = self._compiled.get(grammar)
        if first is None:
            limits = llguidance.LLParserLimits(**LIMITS)
            first = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
            if first.is_error():
                raise ValueError(first.get_error())
            self._compiled[grammar] = first
            if len(self._compiled) > CACHE_ENTRIES:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return LLGuidanceMatcher(first.deep_copy(), self._num_bytes, self._spelling)


class LLGuidanceMatcher:
    """`Matcher` by llguidance."""

    __slots__ = ("_matcher", "_next_special", "_num_bytes", "_spelling")

    def __init__(self, matcher: Any, num_bytes: int, spelling: Spelling) -> None:
        self._matcher = matcher
        self._spelling = spelling
        self._num_bytes = num_bytes  # of a mask over the vocabulary, which the logits may be wider than
        self._next_special: int | None = None  # `jump` saw that this token must follow

    def fill(self, words: ctypes.Array[ctypes.c_uint32]) -> str | None:
        if self._next_special is not None:
            # Once asked what must follow, the library makes no mask at a place where that is a special token.
            ctypes.memset(words, 0, ctypes.sizeof(words))
            words[self._next_special >> 5] = 1 << (self._next_special & 31)
            return None
        assert ctypes.sizeof(words) >= self._num_bytes  # all that keeps the library inside the array
        self._matcher.unsafe_compute_mask_ptr(ctypes.addressof(words), self._num_bytes)
        return self._error()

    def advance(self, token_id: int) -> str | None:
        self._next_special = None
        if not self._matcher.consume_token(token_id):
            return self._error() or "a token outside the grammar was sampled"
        return None

    def jump(self, limit: int, stop_ids: Collection[int]) -> list[int]:
        text, special, _ = self._matcher.compute_ff_bytes().partition(_SPECIAL)
        ids = list(takewhile(lambda i: i not in stop_ids, self._spelling.begin(text)))[:limit] if text else []
        ids = ids[: self._matcher.try_consume_tokens(ids)] if ids else []
        if special:
            rest = self._matcher.compute_ff_bytes()
            if rest.startswith(_SPECIAL):
                self._next_special = int(rest[2 : rest.index(b"]")])
        return ids

    def _error(self) -> str | None:
        return str(self._matcher.get_error()).split("\n")[0][:200] if self._matcher.is_error() else None

    @property
    def is_complete(self) -> bool:
        return bool(self._matcher.is_stopped())
