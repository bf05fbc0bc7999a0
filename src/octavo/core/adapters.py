"""Adapters in the core: which ones the worker's host keeps, and which slot each has in the steps.

An adapter is named by a key of the client's, which is never used again for other files. The host keeps at most so
many; one that requests use stays, and of the others the one used last goes last. Files are read in a thread, and
requests wait for them outside the scheduler's queue, so that nobody else does. Within the queue an adapter's place in a
step is a limit like others.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from octavo.base.errors import OctavoError
from octavo.core.executors.executor import Executor
from octavo.core.limits import Candidate
from octavo.core.request import Request
from octavo.wire.messages import AdapterInfo, AddRequest

logger = logging.getLogger("octavo.core")

#: Called with why the adapter cannot be had; None: the host keeps it.
Waiter = Callable[[str | None], None]


@dataclass(frozen=True, slots=True)
class AdapterRead:
    """For the inbox: a thread has come to its end."""

    key: str
    error: str | None
    info: AdapterInfo = AdapterInfo()


class KeptAdapters:
    """What the host keeps. One caller, the core's thread; `deliver` is called in others."""

    def __init__(
        self,
        executor: Executor,
        deliver: Callable[[AdapterRead], None],
        most: int,
        in_use: Callable[[], set[str]],
        most_prompts: int = 0,
    ) -> None:
        """`most`: adapters of weights, beside which there are `most_prompts` prompt adapters. `in_use`: the keys of the
        adapters of all requests that the scheduler has."""
        self._executor, self._deliver, self._in_use = executor, deliver, in_use
        self._most = {False: most, True: most_prompts}
        self._kept: dict[str, AdapterInfo] = {}  # the one used last at the end
        self._reading: set[str] = set()
        self._retired: set[str] = set()
        self._files: dict[str, tuple[str, bool]] = {}  # path, and whether it is a prompt adapter's
        self._waiting: dict[str, dict[int, Waiter]] = {}  # by key, then by a number of the waiter's

    @property
    def num_waiting(self) -> int:
        return len(self.waiting_requests) if self._waiting else 0

    @property
    def waiting_requests(self) -> list[int]:
        return [number for waiters in self._waiting.values() for number in waiters if number >= 0]

    def has(self, key: str) -> bool:
        """Whether it is there; it counts as used."""
        if key not in self._kept:
            return False
        self._kept[key] = self._kept.pop(key)
        return True

    def info(self, key: str) -> AdapterInfo | None:
        """Of an adapter that is there."""
        return self._kept.get(key)

    def change(self, message: AddRequest) -> str | None:
        """Why the adapter of a request, which is there, is not the one that it was made for."""
        found = self._kept[message.adapter].num_virtual_tokens
        if found == message.num_virtual_tokens:
            return None
        return (
            f"{message.adapter_path}: it has {found} virtual tokens, and had {message.num_virtual_tokens} when it was "
            "loaded"
        )

    def wait(self, key: str, path: str, number: int, waiter: Waiter, *, is_prompt: bool = False) -> None:
        """Tell `waiter` when the host keeps it. `number`: of the request that waits; below 0: it is none."""
        self._files[key] = path, is_prompt
        self._waiting.setdefault(key, {})[number] = waiter
        self.read_more()

    def is_waiting(self, number: int) -> bool:
        return any(number in waiters for waiters in self._waiting.values())

    def forget(self, numbers: Iterable[int]) -> list[int]:
        """These requests wait no more; those that did."""
        found = []
        for number in numbers:
            popped = [waiters.pop(number, None) for waiters in self._waiting.values()]
            found += [number] * any(popped)
        self._waiting = {key: waiters for key, waiters in self._waiting.items() if waiters}
        return found

    def retire(self, key: str) -> None:
        """No request will come with it any more: it goes when those that use it have ended."""
        self._retired.add(key)
        self.read_more()

    def read_more(self) -> None:
        """Drop what nobody needs, and read what somebody waits for and there is room for. To be called when requests
        have ended."""
        if self._retired:
            done = self._retired - self._in_use() - self._waiting.keys() - self._reading
            for key in done:
                self._retired.discard(key)
                self._drop(key)
        for key in [key for key in self._waiting if key not in self._reading]:
            if self.has(key):
                self._tell(key, None)
            elif self._make_room(key):
                self._reading.add(key)
                threading.Thread(target=self._read, args=(key, self._files[key][0]), name="octavo-adapter").start()

    def on_read(self, read: AdapterRead) -> None:
        self._reading.discard(read.key)
        if read.error is None:
            self._kept[read.key] = read.info
        else:
            del self._files[read.key]
        self._tell(read.key, read.error)

    def _tell(self, key: str, error: str | None) -> None:
        for waiter in self._waiting.pop(key, {}).values():
            waiter(error)

    def _make_room(self, wanted: str) -> bool:
        is_prompt = self._files[wanted][1]
        alike = [key for key in (*self._kept, *self._reading) if self._files[key][1] == is_prompt]
        if len(alike) < self._most[is_prompt]:
            return True
        needed = self._in_use() | self._waiting.keys() | self._reading
        for key in alike:
            if key not in needed:
                self._drop(key)
                return True
        return False

    def _drop(self, key: str) -> None:
        self._kept.pop(key, None)
        self._files.pop(key, None)
        self._executor.drop_adapter(key)

    def _read(self, key: str, path: str) -> None:
        error: str | None = None
        info = AdapterInfo()
        try:
            info = self._executor.read_adapter(key, path)
        except OctavoError as exc:
            error = exc.message
        except MemoryError:
            error = f"{path}: there is not enough memory for it"
        except Exception as exc:  # a damaged file must not end the engine
            logger.exception("the adapter %s could not be read", path)
            error = f"{path}: {type(exc).__name__}: {exc}"
        self._deliver(AdapterRead(key, error, info))


class AdapterLimit:
    """Slots of a step's adapters. Requests with the same adapter share one, which stays as it is until another adapter
    needs it; of those that no running request has, the one used last goes last."""

    def __init__(self, num_slots: int, *, of_prompts: bool = False) -> None:
        """`of_prompts`: of prompt adapters, not of those of weights."""
        self._of_prompts = of_prompts
        self._free = list(range(num_slots - 1, -1, -1))
        self._slots: dict[str, int] = {}  # by key, the one used last at the end
        self._num_users: dict[str, int] = {}
        self._placed: list[tuple[int, str]] = []

    def room(self, candidate: Candidate, count: int) -> int:
        key = self._key(candidate.request)
        return count if not key or key in self._slots or self._free or self._idle() else 0

    def take(self, candidate: Candidate, count: int) -> None:
        request = candidate.request
        key = self._key(request)
        if not key:
            return
        slot = self._slots.pop(key, None)
        if slot is None:
            slot = self._free.pop() if self._free else self._slots.pop(self._idle())
            self._placed.append((slot, key))
        self._slots[key] = slot
        self._num_users[key] = self._num_users.get(key, 0) + 1
        request.adapter_slot = slot

    def leave(self, request: Request, *, forget: bool) -> None:
        if self._key(request):
            self._num_users[request.adapter] -= 1
            if not self._num_users[request.adapter]:
                del self._num_users[request.adapter]
            request.adapter_slot = -1

    def take_plan(self) -> list[tuple[int, str]]:
        """What the worker is to put where, since the last plan."""
        placed, self._placed = self._placed, []
        return placed

    def fail(self, placed: list[tuple[int, str]]) -> None:
        """A plan did not happen. Whoever it admitted has left."""
        for slot, key in placed:
            if self._slots.get(key) == slot and key not in self._num_users:
                del self._slots[key]
                self._free.append(slot)
        self._placed = [(slot, key) for slot, key in placed if self._slots.get(key) == slot] + self._placed

    def reset(self) -> None:
        """The worker's slots are empty again. Nobody runs."""
        self._free += self._slots.values()
        self._slots, self._placed = {}, []

    def _key(self, request: Request) -> str:
        return request.adapter if bool(request.num_virtual_tokens) == self._of_prompts else ""

    def _idle(self) -> str:
        """The adapter used longest ago that no running request has; "": there is none."""
        return next((key for key in self._slots if key not in self._num_users), "")
