"""A model without numerics: its next token is a hash of the history that it reads through the block tables.

Each KV slot holds the token id that was written to it, so that a wrong block, a stale hit, and a lost or doubled
token change the output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from itertools import takewhile
from pathlib import Path

import msgspec

from octavo.core.request import Request
from octavo.wire.messages import AddRequest, EngineInfo, TokenLogprobs
from octavo.wire.step import ModelRunnerOutput, NewRequestData, SchedulerOutput, TokenMasks

VOCAB_SIZE = 50

INFO = EngineInfo(
    model_type="fake", vocab_size=VOCAB_SIZE, max_model_len=64, num_kv_blocks=33, block_size=4, max_num_seqs=8,
    max_num_batched_tokens=32, max_num_prefill_tokens=32,
    max_request_tokens=64, kv_cache_bytes=0, weight_bytes=0, num_params=0, dtype="",
    kv_cache_dtype="", quantization="none", device="fake", ops={}, load_seconds={},
)  # fmt: skip


def info(**changes: object) -> EngineInfo:
    """`INFO` with changes. Prompts may fill a step unless `max_num_prefill_tokens` is given."""
    budget = changes.get("max_num_batched_tokens", INFO.max_num_batched_tokens)
    return msgspec.structs.replace(INFO, **{"max_num_prefill_tokens": budget} | changes)


def next_token(history: list[int], seed: int) -> int:
    return hashlib.sha256(repr((history, seed)).encode()).digest()[0] % VOCAB_SIZE


def logprobs_of(token: int, count: int) -> TokenLogprobs:
    """The sampled token is the most likely; those that follow it in the vocabulary are the next."""
    ids = [(token + i) % VOCAB_SIZE for i in range(min(count, VOCAB_SIZE))]
    return TokenLogprobs(-0.5, 1, ids, [-0.5 - i for i in range(len(ids))])


def alone(message: AddRequest, count: int, seed: int) -> list[int]:
    """The first `count` tokens that the fake model generates for a request by itself."""
    tokens = list(message.prompt_token_ids)
    for _ in range(count):
        tokens.append(next_token(tokens, seed))
    return tokens[len(message.prompt_token_ids) :]


def dictated_after(token: int) -> list[int]:
    """What `Jumper` dictates after a sampled token: for a third of the tokens up to six others."""
    return [(token + 7 * i) % VOCAB_SIZE for i in range(1, 2 + token % 6)] if token % 3 == 0 else []


class Jumper:
    """A grammar that admits every token, and after some of them nothing but a few others."""

    def __init__(self) -> None:
        self.last = -1

    def copy(self) -> Jumper:
        other = Jumper()
        other.last = self.last
        return other

    def advance(self, token_id: int) -> str | None:
        self.last = token_id
        return None

    def jump(self, limit: int, stop_ids: Collection[int]) -> list[int]:
        return list(takewhile(lambda token: token not in stop_ids, dictated_after(self.last)))[:limit]

    is_complete = False


def scores_of(history: list[int]) -> list[TokenLogprobs]:
    """The i-th is what the fake model tells of the token behind the first i + 1: a hash of them."""
    return [TokenLogprobs(float(next_token(history[: i + 1], -1)), 1, [], []) for i in range(len(history))]


def num_scored(new: NewRequestData) -> int:
    """Tokens of the prompt whose rows score the next one."""
    is_fresh = len(new.prompt_token_ids) == new.num_prompt_tokens
    return new.num_prompt_tokens - 1 if is_fresh and new.params.prompt_logprobs is not None else 0


class FakeExecutor:
    """`before_step` may raise or wait; `errors` maps request ids to a message with which they fail in the next step."""

    def __init__(self, engine_info: EngineInfo, before_step: Callable[[], None] = lambda: None) -> None:
        self.info, self.before_step = engine_info, before_step
        self.pool = [[-1] * engine_info.block_size for _ in range(engine_info.num_kv_blocks)]
        self.slots: dict[int, dict] = {}
        self.swapped: dict[int, list[list[int]]] = {}  # request id -> the blocks that the host keeps
        self.media: set[bytes] = set()  # digests of the items whose rows it keeps
        self.under_way: tuple[bytes, int] | None = None  # an item that is encoded in part, and how far
        self.errors: dict[int, str] = {}
        self.asleep = 0

    def load(self) -> EngineInfo:
        return self.info

    def submit(self, plan: SchedulerOutput) -> ModelRunnerOutput:
        """Computes at once; the answer is kept until it is collected."""
        return self.execute(plan)

    def start_profile(self) -> None: ...

    def stop_profile(self, path: str) -> None:
        Path(path).write_bytes(b"")

    def submit_masks(self, step: ModelRunnerOutput, masks: TokenMasks) -> None:
        """All tokens are admitted."""

    def collect(self, step: ModelRunnerOutput) -> ModelRunnerOutput:
        return step

    def sleep(self, level: int) -> None:
        """The worker forgets everything."""
        self.asleep = level
        self.pool, self.slots, self.swapped, self.media = [], {}, {}, set()
        self.under_way = None

    def wake_up(self) -> None:
        self.asleep = 0
        self.pool = [[-1] * self.info.block_size for _ in range(self.info.num_kv_blocks)]

    def execute(self, plan: SchedulerOutput) -> ModelRunnerOutput:
        self.before_step()
        for request_id in plan.swap_dropped:
            self.swapped.pop(request_id, None)
        for request_id, blocks in plan.swap_out:
            assert request_id not in self.swapped
            self.swapped[request_id] = [list(self.pool[block]) for block in blocks]
        for request_id, places, blocks in plan.swap_in:
            swapped = self.swapped.pop(request_id)
            kept = [swapped[place] for place in places]
            for block, tokens in zip(blocks, kept, strict=True):
                self.pool[block] = list(tokens)
        self._encode(plan)
        for slot in plan.finished_slots:
            self.slots.pop(slot, None)
        for new in plan.new_requests:
            self.slots[new.slot] = {
                "id": new.request_id, "tokens": list(new.prompt_token_ids),
                "blocks": [list(table) for table in new.block_ids],
                "computed": new.num_computed_tokens, "seed": new.sampling_seed, "num_scored": num_scored(new),
                "logprobs": new.params.logprobs, "draft": [], "media": new.media,
            }  # fmt: skip
        for known in plan.cached_requests:
            for table, new_ids in zip(self.slots[known.slot]["blocks"], known.new_block_ids, strict=False):
                table += new_ids
            self.slots[known.slot]["tokens"] += known.new_token_ids
            self.slots[known.slot]["draft"] = list(known.draft_token_ids)
            self.slots[known.slot]["computed"] = known.num_computed_tokens
        result = ModelRunnerOutput(sampled_token_ids={})
        for slot, count in plan.num_scheduled_tokens.items():
            self._compute(slot, count, result)
        return result

    def _encode(self, plan: SchedulerOutput) -> None:
        """One item at a time is under way, goes on from where it was, and has no rows before its end."""
        self.media -= set(plan.media_dropped)
        if self.under_way is not None and self.under_way[0] in plan.media_dropped:
            self.under_way = None
        for part in plan.media_encoded:
            if part.item is not None:
                assert part.item.digest == part.digest and part.digest not in self.media
                assert self.under_way is None or not part.item.size, "another is under way"
                done = 0
            else:
                assert self.under_way is not None and self.under_way[0] == part.digest, "it was never begun"
                done, self.under_way = self.under_way[1], None
            assert part.end is None or part.end > done
            if part.end is None:
                self.media.add(part.digest)
            else:
                self.under_way = part.digest, part.end

    def _compute(self, slot: int, count: int, result: ModelRunnerOutput) -> None:
        state, size = self.slots[slot], self.info.block_size
        start, end = state["computed"], state["computed"] + count
        for item in state["media"]:
            if any(first < end and first + length > start for first, length in item.spans):
                assert item.digest in self.media, "rows are read that nobody has encoded"
        tokens = [*state["tokens"], *state["draft"]]
        for table in state["blocks"]:
            for p in range(state["computed"], end):
                assert table[p // size], "the null block is nobody's"
                self.pool[table[p // size]][p % size] = tokens[p]
        is_sampled = end == len(tokens)
        if state["id"] in self.errors:
            result.errors[slot] = self.errors.pop(state["id"])
            if is_sampled:
                state["tokens"].append(-1)  # a step that was planned ahead may go on with it
            return
        result.sampled_token_ids[slot] = []
        history = tokens[:end]
        for table, window in zip(state["blocks"], self.info.kv_group_windows, strict=True):
            # What the first of the step's tokens sees, and all behind it; a wrong token changes all that follows.
            for p in range(max(0, start - window + 1) if window else 0, end):
                found = self.pool[table[p // size]][p % size]
                history[p] = found if found != tokens[p] else history[p]
        if state["num_scored"]:
            result.prompt_logprobs[slot] = scores_of(history)[start : min(end, state["num_scored"])]
        if is_sampled:
            taken = self._verified(state, history)
            state["tokens"] += taken
            result.sampled_token_ids[slot] = taken
            if state["logprobs"] is not None:
                result.logprobs[slot] = [logprobs_of(token, state["logprobs"]) for token in taken]

    def _verified(self, state: dict, history: list[int]) -> list[int]:
        """What is sampled behind the known tokens, and behind those of the draft that turn out to be right."""
        num_known = len(state["tokens"])
        taken = [next_token(history[:num_known], state["seed"])]
        for i, guess in enumerate(state["draft"], 1):
            if guess != taken[-1]:
                break
            taken.append(next_token(history[: num_known + i], state["seed"]))
        return taken


class Guesser:
    """Proposes what the fake model would generate, and often something else: each time in another way.

    `ways`: the next proposal is made in the next of these, over and over.
    """

    def __init__(self, ways: Sequence[str] = ("right", "wrong", "none", "half", "long", "junk", "stops")) -> None:
        self.ways = ways
        self.num_calls = 0
        self.told: list[tuple[int, int]] = []  # proposed, accepted

    def wants(self, request: Request) -> bool:
        return request.request_id % 5 != 4

    def propose(self, request: Request) -> list[int]:
        way = self.ways[self.num_calls % len(self.ways)]
        self.num_calls += 1
        length = {"none": 0, "long": 100}.get(way, 1 + self.num_calls % 5)
        tokens = list(request.token_ids)
        for _ in range(length):
            tokens.append(next_token(tokens, request.sampling_seed))
            if request.can_jump:
                tokens += dictated_after(tokens[-1])
        right = tokens[len(request.token_ids) :]
        if way == "wrong":
            return [(token + 1) % VOCAB_SIZE for token in right]
        if way == "half":
            return [*right[: length // 2], 3, *right[length // 2 :]]
        if way == "junk":
            return [*right[:1], VOCAB_SIZE, -1, 1 << 40]
        if way == "stops":
            return [*right[:1], *request.stop_ids, *request.eos_token_ids, *right[1:]]
        return right

    def accepted(self, request: Request, num_proposed: int, num_accepted: int) -> None:
        assert 0 <= num_accepted <= num_proposed and not request.draft_token_ids
        self.told.append((num_proposed, num_accepted))
