"""Grammars of running requests: compiled off the step path, advanced by each token, asked for each next mask.

A request with a grammar waits here until its matcher is ready, and enters the scheduler then; nobody else waits for
it. Grammars were proven to compile before they came (`text.grammars.checker`); one that fails here all the same ends
its own request with an error.

Which tokens a matcher admits depends on their bytes alone, so all that the engine needs is the vocabulary as bytes.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from octavo.base.grammar import LIMITS, STACK_BYTES, ByteVocabulary
from octavo.core.grammar.mask_maker import MaskMaker, MaskRow
from octavo.core.grammar.spelling import Spelling
from octavo.wire.messages import AddRequest, EngineCoreOutput, Vocabulary

if TYPE_CHECKING:
    from octavo.core.request import Request
    from octavo.wire.step import SchedulerOutput, TokenMasks

logger = logging.getLogger("octavo.core")

#: Compiled grammars that are kept for the next request with the same one.
CACHE_ENTRIES = 32

#: Tokens of which a mask says all or none in one look, where it can: those that go on a string of JSON. (The library's
#: own list has the same with other lengths, and white space: more memory and a longer start, and masks no faster.)
SLICES = [r'[^"\\\x00-\x1F\x7F]{1,10}', r'[^"\\\x00-\x1F\x7F]{1,30}']

#: Threads that make the masks of a step, beside those of the model.
NUM_THREADS = 2

#: In the bytes that a grammar dictates, a special token is this byte, which no text has, and "[", its id, "]".
_SPECIAL = b"\xff"

_FAILED = "The constraint on the output of this request failed"


class Matcher(Protocol):
    """One request's place in its grammar. After an error it is of no more use."""

    def copy(self) -> Matcher:
        """Another at the same place: what one takes in, the other does not."""
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


Words = ctypes.Array[ctypes.c_uint32]


class Compiler(Protocol):
    """Makes matchers, in one thread, and the masks of its own matchers, in another. Raises whatever it likes."""

    def set_vocabulary(self, vocabulary: Vocabulary) -> None: ...

    def compile(self, grammar: str) -> Matcher: ...

    def fill(self, matchers: Sequence[Matcher], words: Words) -> list[str | None]:
        """Write which tokens may come next, equally many words a matcher: bit i for token i.

        Returns what went wrong, or None, for each.
        """
        ...


class StructuredOutputs:
    """All methods are called by the engine's loop; `post` is called by the compiling thread."""

    def __init__(self, vocab_size: int, post: Callable[[GrammarReady], None], compiler: Compiler | None = None) -> None:
        self._post = post
        self._compiler = compiler or LLGuidanceCompiler(vocab_size)
        self._tasks: SimpleQueue[Vocabulary | tuple[int, str]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pending: dict[int, AddRequest] = {}  # by request id: their grammar is not ready
        self._has_vocabulary = False
        self._masks = MaskMaker(self._compiler, -(-vocab_size // 32))

    # ------------------------------------------------------------------------------------------- before a request runs
    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """To come before the first request. A second one is ignored: there is one model."""
        if not self._has_vocabulary:
            self._has_vocabulary = True
            self._masks.num_words = -(-len(vocabulary.tokens) // 32)
            self._enqueue(vocabulary)

    def submit(self, message: AddRequest) -> None:
        """Compile the request's grammar; a `GrammarReady` follows."""
        assert message.params.grammar is not None
        self._pending[message.request_id] = message
        self._enqueue((message.request_id, message.params.grammar))

    @property
    def num_pending(self) -> int:
        """Requests that wait for their grammar."""
        return len(self._pending)

    def is_pending(self, request_id: int) -> bool:
        return request_id in self._pending

    def take(self, ready: GrammarReady) -> AddRequest | None:
        """The request that waited for `ready`; None if it was aborted meanwhile."""
        return self._pending.pop(ready.request_id, None)

    def abort(self, request_ids: Iterable[int]) -> list[EngineCoreOutput]:
        """End those that still wait for their grammar."""
        return [EngineCoreOutput(i, [], "abort") for i in request_ids if self._pending.pop(i, None) is not None]

    @property
    def pending_requests(self) -> list[int]:
        return list(self._pending)

    # ------------------------------------------------------------------------------------------------ around a step
    def start_masks(self, plan: SchedulerOutput, slots: list[Request | None]) -> None:
        """Begin to make the masks of `plan.masked_slots`. If there are any, `finish_masks` must follow before masks
        are begun again."""
        rows: list[MaskRow] = []
        for slot in plan.masked_slots:
            request = slots[slot]
            assert request is not None and request.matcher is not None
            rows += [MaskRow(slot, request, place) for place in (request.matcher, *request.draft_places)]
        if rows:
            self._masks.start(rows)

    def finish_masks(self) -> tuple[TokenMasks, dict[int, str]]:
        """Wait until nobody works at masks any more. Returns those last begun, and slot -> error of those that
        failed."""
        masks, errors = self._masks.finish()
        return masks, {slot: f"{_FAILED}: {error}." for slot, error in errors.items()}

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


class LLGuidanceCompiler:
    """`Compiler` by llguidance."""

    def __init__(self, vocab_size: int) -> None:
        """`vocab_size`: of the model; tokens beyond are never dictated."""
        self._vocab_size = vocab_size
        self._tokenizer: Any = None
        self._spelling = Spelling([], ())
        self._executor: Any = None
        self._compiled: OrderedDict[str, Any] = OrderedDict()  # newest last

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        import llguidance  # only where grammars are used

        started = time.monotonic()
        tokens: Any = ByteVocabulary(vocabulary.tokens, vocabulary.special_ids, vocabulary.eos_token_ids)
        eos = list(vocabulary.eos_token_ids)
        # Both steps hold the interpreter's lock for long where the vocabulary is large: the heartbeat goes in between.
        # A server has them behind it before its first request (`startup.wait_loaded`).
        plain = llguidance.LLTokenizer(tokens, eos_token=eos, slices=[])
        time.sleep(0.01)
        self._tokenizer = plain.with_slices(SLICES)
        self._spelling = Spelling(vocabulary.tokens[: self._vocab_size], {*vocabulary.special_ids, *eos})
        self._executor = llguidance.LLExecutor(NUM_THREADS)
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
        return LLGuidanceMatcher(first.deep_copy(), self._spelling)

    def fill(self, matchers: Sequence[Matcher], words: Words) -> list[str | None]:
        own = [matcher for matcher in matchers if isinstance(matcher, LLGuidanceMatcher)]
        assert len(own) == len(matchers) and len(words) % len(own) == 0
        # The size of a mask is checked by the library, that of the array by it and by the line above.
        rows = [(matcher.native, i) for i, matcher in enumerate(own)]
        num_bytes = ctypes.sizeof(words) // len(own)
        self._executor.unsafe_compute_mask_ptr(rows, ctypes.addressof(words), num_bytes, len(own))
        return [matcher.error() for matcher in own]


class LLGuidanceMatcher:
    """`Matcher` by llguidance."""

    __slots__ = ("_spelling", "native")

    def __init__(self, native: Any, spelling: Spelling) -> None:
        self.native = native  # an `LLMatcher`
        self._spelling = spelling

    def copy(self) -> LLGuidanceMatcher:
        return LLGuidanceMatcher(self.native.deep_copy(), self._spelling)

    def advance(self, token_id: int) -> str | None:
        if not self.native.consume_token(token_id):
            return self.error() or "a token outside the grammar was sampled"
        return None

    def jump(self, limit: int, stop_ids: Collection[int]) -> list[int]:
        # A copy is asked: once asked, a matcher makes no mask at a place where a special token must follow.
        text = self.native.deep_copy().compute_ff_bytes().partition(_SPECIAL)[0]
        if not text:
            return []
        ids = list(takewhile(lambda i: i not in stop_ids, self._spelling.begin(text)))[:limit]
        return ids[: self.native.try_consume_tokens(ids)]

    def error(self) -> str | None:
        return str(self.native.get_error()).split("\n")[0][:200] if self.native.is_error() else None

    @property
    def is_complete(self) -> bool:
        return bool(self.native.is_stopped())
