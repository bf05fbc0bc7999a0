"""Grammars in the engine: who waits, what a matcher's end and errors mean, and that they touch one request only."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Collection, Iterator, Sequence

import pytest

from core.test_engine_core import Engine
from octavo.base.config import EngineConfig
from octavo.base.params import SamplingParams
from octavo.core.engine_core import EngineCore
from octavo.core.grammar.mask_maker import NO_TOKEN, MaskMaker, MaskRow
from octavo.core.grammar.structured import LLGuidanceCompiler, Matcher, Words
from octavo.wire.messages import Abort, AddRequest, EngineCoreOutputs, Vocabulary


class FakeMatcher:
    """Takes any token; ends after `length` of them. `grammar`: "<length> <what fails>"."""

    def __init__(self, grammar: str) -> None:
        length, self.fails = grammar.split()
        self.left = int(length)
        self.num_filled = 0

    def copy(self) -> FakeMatcher:
        return FakeMatcher(f"{self.left} {self.fails}")

    def advance(self, token_id: int) -> str | None:
        self.left -= 1
        return "unexpected token" if self.fails == "advance" else None

    def jump(self, limit: int, stop_ids: Collection[int]) -> list[int]:
        return []

    @property
    def is_complete(self) -> bool:
        return self.left == 0


class FakeCompiler:
    """Compiles when `gate` is set."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.made: list[FakeMatcher] = []

    def set_vocabulary(self, vocabulary: Vocabulary) -> None: ...

    def compile(self, grammar: str) -> Matcher:
        assert self.gate.wait(30)
        if grammar == "bad":
            raise ValueError("planted")
        self.made.append(FakeMatcher(grammar))
        return self.made[-1]

    def fill(self, matchers: Sequence[Matcher], words: Words) -> list[str | None]:
        num_words = len(words) // len(matchers)
        errors: list[str | None] = []
        for i, matcher in enumerate(matchers):
            assert isinstance(matcher, FakeMatcher)
            if matcher.fails == "panic":
                raise RuntimeError("planted")
            matcher.num_filled += 1
            word = 0 if matcher.fails == "empty" else 0xFFFFFFFF
            words[i * num_words : (i + 1) * num_words] = [word] * num_words
            errors.append("too complex" if matcher.fails == "fill" else None)
        return errors


class Guided(Engine):
    def __init__(self, **changes: object) -> None:
        super().__init__(**changes)
        self.compiler = FakeCompiler()
        self.core = EngineCore(
            EngineConfig(), self.executor.info, self.executor, self.connection, compiler=self.compiler
        )

    def ask(self, request_id: int, grammar: str, max_tokens: int = 20, prompt: tuple[int, ...] = (1, 2, 3)) -> None:
        params = SamplingParams(max_tokens=max_tokens, grammar=grammar)
        self.client.send(AddRequest(request_id, list(prompt), params))


@pytest.fixture
def engine() -> Iterator[Guided]:
    engine = Guided().start()
    engine.compiler.gate.set()
    yield engine
    engine.compiler.gate.set()
    engine.shut_down()
    engine.client.close()
    assert engine.failure is None


def test_g11_the_end_of_the_grammar_ends_the_request_and_its_last_token_is_text(engine: Guided) -> None:
    engine.ask(1, "5 nothing")
    engine.wait_for_end(1)
    last = engine.outputs[1][-1]
    assert (last.finish_reason, last.is_complete, len(engine.tokens(1))) == ("stop", True, 5)


def test_g11_max_tokens_comes_before_the_end_of_the_grammar(engine: Guided) -> None:
    engine.ask(1, "5 nothing", max_tokens=3)
    engine.ask(2, "3 nothing", max_tokens=3)
    engine.wait_for_end(1, 2)
    assert (engine.end(1), engine.outputs[1][-1].is_complete) == ("length", False)
    assert (engine.end(2), engine.outputs[2][-1].is_complete) == ("stop", True)


def test_a_grammar_that_is_being_compiled_holds_up_nobody(engine: Guided) -> None:
    engine.compiler.gate.clear()
    engine.ask(1, "2 nothing")
    engine.add(2, [1, 2, 3], 4)
    engine.wait_for_end(2)
    assert 1 not in engine.outputs
    engine.compiler.gate.set()
    engine.wait_for_end(1)
    assert engine.end(1) == "stop"


def test_a_request_that_waits_for_its_grammar_counts_as_waiting(engine: Guided) -> None:
    """Nothing else may happen meanwhile, and the number is told all the same."""
    engine.compiler.gate.clear()
    engine.ask(1, "2 nothing")
    while engine.receive(EngineCoreOutputs).stats.num_waiting != 1:
        pass
    assert engine.call("stats").result["num_waiting"] == 1
    engine.compiler.gate.set()
    engine.wait_for_end(1)
    assert engine.call("stats").result["num_waiting"] == 0


def test_a_request_that_waits_for_its_grammar_can_be_aborted(engine: Guided) -> None:
    engine.compiler.gate.clear()
    engine.ask(1, "2 nothing")
    engine.client.send(Abort([1]))
    engine.wait_for_end(1)
    assert engine.end(1) == "abort"
    engine.compiler.gate.set()
    engine.ask(2, "2 nothing")
    engine.wait_for_end(2)
    assert engine.end(2) == "stop" and len(engine.outputs[1]) == 1


HOWS = ("fill", "empty", "panic", "advance")


@pytest.mark.parametrize("grammar", ["bad", *(f"{n} {how}" for n in (1, 2, 5) for how in HOWS)])
def test_an_error_of_a_grammar_ends_its_own_request_alone(engine: Guided, grammar: str) -> None:
    """W13: accepted at the front, refused at the back."""
    engine.ask(1, grammar)
    engine.ask(2, "6 nothing")
    engine.add(3, [4, 5], 6)
    engine.wait_for_end(1, 2, 3)
    assert (engine.end(1), engine.end(2), engine.end(3)) == ("error", "stop", "length")
    error = engine.outputs[1][-1].error
    assert error is not None and "constraint" in error


def test_a_mask_is_made_for_the_steps_that_sample_and_no_others() -> None:
    engine = Guided(max_num_batched_tokens=8).start()
    engine.compiler.gate.set()
    engine.ask(1, "3 nothing", prompt=tuple(range(20)))
    engine.wait_for_end(1)
    assert engine.compiler.made[0].num_filled == 3  # the prompt takes three steps, of which the last samples
    engine.shut_down()


def test_a_preempted_request_goes_on_in_its_grammar() -> None:
    engine = Guided(num_kv_blocks=9, max_num_seqs=3)
    engine.compiler.gate.set()
    engine.start()
    for i in range(3):
        engine.ask(i, "18 nothing", prompt=(i, 1, 2, 3, 4, 5))
    engine.wait_for_end(0, 1, 2)
    assert [len(engine.tokens(i)) for i in range(3)] == [18, 18, 18]
    assert engine.core.scheduler.stats().num_preemptions > 0
    assert [matcher.num_filled for matcher in engine.compiler.made] == [18, 18, 18]
    engine.shut_down()


# ------------------------------------------------------------------------------------------------ the real matcher
TOKENS = [bytes([i]) for i in range(256)] + [b"</s>", b"ab", b""]


NUM_WORDS = -(-len(TOKENS) // 32)


@pytest.fixture(scope="module")
def compiler() -> LLGuidanceCompiler:
    compiler = LLGuidanceCompiler(len(TOKENS))
    compiler.set_vocabulary(Vocabulary(TOKENS, [256], [256]))
    return compiler


def allowed(compiler: LLGuidanceCompiler, *matchers: Matcher) -> list[set[int]]:
    words = (ctypes.c_uint32 * (len(matchers) * NUM_WORDS))()
    assert compiler.fill(matchers, words) == [None] * len(matchers)
    rows = [words[i * NUM_WORDS : (i + 1) * NUM_WORDS] for i in range(len(matchers))]
    return [{i for i in range(NUM_WORDS * 32) if row[i >> 5] >> (i & 31) & 1} for row in rows]


def test_the_matcher_follows_the_tokens(compiler: LLGuidanceCompiler) -> None:
    matcher = compiler.compile('%llguidance {"no_forcing": true}\nstart: "ab" "c"?')
    assert allowed(compiler, matcher) == [{ord("a"), 257}]
    assert matcher.advance(257) is None and not matcher.is_complete
    assert allowed(compiler, matcher) == [{ord("c"), 256}]
    assert matcher.advance(ord("c")) is None and matcher.is_complete


def test_a_jump_takes_what_must_follow_up_to_its_last_word(compiler: LLGuidanceCompiler) -> None:
    """G26"""
    matcher = compiler.compile('%llguidance {"no_forcing": true}\nstart: "ab+ab-" ("ac" | "ad")')
    assert matcher.advance(ord("a")) is None
    assert matcher.jump(1, ()) == [ord("b")]
    assert matcher.jump(9, {257}) == [ord("+")]
    assert matcher.jump(9, ()) == [257, ord("-")]
    assert matcher.jump(9, ()) == [] and allowed(compiler, matcher) == [{ord("a")}]
    assert matcher.advance(ord("a")) is None
    assert matcher.jump(9, ()) == []
    assert matcher.advance(ord("d")) is None and matcher.is_complete


def test_a_special_token_that_must_follow_is_sampled_after_a_jump() -> None:
    """G26: also one that ends texts, which a jump never takes."""
    compiler = LLGuidanceCompiler(260)
    compiler.set_vocabulary(Vocabulary([*TOKENS, b"<call>"], [256, 259], [256]))
    matcher = compiler.compile('%llguidance {"no_forcing": true}\nstart: "ab+ab " <[259]> "<[259]>+x " <[256]> | "c"')
    assert matcher.advance(ord("a")) is None
    taken = matcher.jump(99, ())
    for token in b"b+ab "[len(b"".join(TOKENS[i] for i in taken)) :]:
        assert matcher.advance(token) is None and matcher.jump(99, ()) == []
    assert allowed(compiler, matcher) == [{259}] and not matcher.is_complete
    assert matcher.advance(259) is None
    taken = matcher.jump(99, ())
    assert bytes(taken) and b"<[259]>+x ".startswith(bytes(taken))
    for token in b"<[259]>+x "[len(taken) :]:
        assert allowed(compiler, matcher) == [{token}]
        assert matcher.advance(token) is None and matcher.jump(99, {256}) == []
    assert allowed(compiler, matcher) == [{256}]
    assert matcher.advance(256) is None and matcher.is_complete


def test_a_token_outside_the_grammar_is_an_error(compiler: LLGuidanceCompiler) -> None:
    matcher = compiler.compile('%llguidance {"no_forcing": true}\nstart: "ab"')
    assert matcher.advance(ord("x")) is not None


def test_two_requests_of_one_grammar_do_not_share_their_place(compiler: LLGuidanceCompiler) -> None:
    first, second = (compiler.compile('%llguidance {"no_forcing": true}\nstart: "ab"') for _ in range(2))
    assert first.advance(ord("a")) is None
    assert allowed(compiler, first, second) == [{ord("b")}, {ord("a"), 257}]
    assert allowed(compiler, second, first) == [{ord("a"), 257}, {ord("b")}]


def test_no_id_without_text_is_allowed(compiler: LLGuidanceCompiler) -> None:
    [free] = allowed(compiler, compiler.compile('%llguidance {"no_forcing": true}\nstart: /(.|\\n)*/'))
    assert {ord("a"), 256, 257} <= free and max(free) < len(TOKENS) - 1


def test_a_copy_goes_its_own_way(compiler: LLGuidanceCompiler) -> None:
    matcher = compiler.compile('%llguidance {"no_forcing": true}\nstart: "ab" ("c" | "d+") "e"')
    assert matcher.advance(257) is None
    ahead = [matcher.copy(), matcher.copy()]
    assert ahead[0].advance(ord("c")) is None and ahead[1].advance(ord("d")) is None
    both = {ord("c"), ord("d")}
    assert allowed(compiler, matcher, *ahead) == [both, {ord("e")}, {ord("+")}]
    assert ahead[0].copy().advance(ord("x")) is not None
    assert ahead[0].advance(ord("e")) is None and ahead[0].is_complete and not matcher.is_complete


class Masked:
    """A request as far as masks are concerned."""

    params = SamplingParams()
    eos_token_ids = (0,)


def test_a_mask_that_fails_behind_a_draft_admits_nothing_and_one_before_it_is_an_error() -> None:
    maker = MaskMaker(FakeCompiler(), 1)
    ways = {4: ("none", "fill", "none"), 2: ("fill", "none"), 7: ("panic",), 1: ("empty", "none")}
    maker.start([MaskRow(slot, Masked(), FakeMatcher(f"9 {way}")) for slot in ways for way in ways[slot]])  # type: ignore[arg-type]
    masks, errors = maker.finish()
    assert masks.slots == [4, 4, 4, 2, 2, 7, 1, 1]
    assert memoryview(masks.words).cast("I").tolist() == [2**32 - 1, 0, 2**32 - 1, 0, 2**32 - 1, 0, 0, 2**32 - 1]
    assert errors == {2: "too complex", 7: "RuntimeError in the grammar engine", 1: NO_TOKEN}
