"""Limits: a feature adds one, and admissions ask it like the others."""

from __future__ import annotations

from core.test_scheduler import World, prompt
from octavo.core.limits import Candidate
from octavo.core.request import Request


class Adapters:
    """At most `size` different first tokens among those that run."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.users: dict[int, int] = {}  # first token -> requests that run
        self.num_left = 0

    def room(self, candidate: Candidate, count: int) -> int:
        first = candidate.request.token_ids[0]
        return count if first in self.users or len(self.users) < self.size else 0

    def take(self, candidate: Candidate, count: int) -> None:
        first = candidate.request.token_ids[0]
        self.users[first] = self.users.get(first, 0) + 1

    def leave(self, request: Request, *, forget: bool) -> None:
        self.num_left += 1
        first = request.token_ids[0]
        self.users[first] -= 1
        if not self.users[first]:
            del self.users[first]


class Encoder:
    """So many tokens of a prompt in its first step."""

    def room(self, candidate: Candidate, count: int) -> int:
        return min(count, 3)

    def take(self, candidate: Candidate, count: int) -> None:
        assert count <= 3

    def leave(self, request: Request, *, forget: bool) -> None: ...


def test_who_finds_no_room_waits_with_all_behind_him() -> None:
    world = World()
    adapters = Adapters(2)
    world.scheduler.limits.append(adapters)
    for request_id, (first, max_tokens) in enumerate(((10, 2), (20, 4), (10, 9), (30, 9), (20, 9)), 1):
        world.add(request_id, prompt(first, 3), max_tokens=max_tokens)
    assert list(world.scheduled(world.step())) == [1, 2, 3]
    world.step()  # the first ends; one of the same kind goes on
    assert list(world.scheduled(world.step())) == [2, 3]
    world.step()  # the second ends
    assert list(world.scheduled(world.step())) == [3, 4]
    world.run()
    assert not adapters.users and adapters.num_left == 5


def test_a_limit_may_give_a_request_fewer_tokens() -> None:
    world = World()
    world.scheduler.limits.append(Encoder())
    world.add(1, prompt(0, 8))
    assert [world.scheduled(world.step()) for _ in range(2)] == [{1: 3}, {1: 5}]


def test_a_preempted_request_leaves_its_limits_and_enters_them_again() -> None:
    world = World(num_kv_blocks=7, block_size=4, caching=False)
    adapters = Adapters(9)
    world.scheduler.limits.append(adapters)
    world.add(1, prompt(0, 6), max_tokens=9)
    world.add(2, prompt(9, 6), max_tokens=9)
    world.run()
    assert world.scheduler.stats().num_preemptions > 0
    assert not adapters.users and adapters.num_left == 2 + world.scheduler.stats().num_preemptions
