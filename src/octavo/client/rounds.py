"""When the readers of streams are told that there is news."""

from __future__ import annotations

import asyncio
import time

from octavo.client.generation import RequestState

#: A round of events, one for each stream that has news, begins this many times its own time after the one before, at
#: least. With very many streams that is longer than the engine's step: then there are fewer events, with more tokens
#: in each, and new requests find room.
ROUND_SPACING = 2.0
#: Seconds that this may hold up a token, at most.
MOST_WAIT = 0.1


class Rounds:
    """The readers that have news are woken together, now or when it is time. Everything runs on the event loop."""

    def __init__(self) -> None:
        self._due: list[RequestState] = []  # to be woken in the next round
        self.earliest = 0.0  # when the next round may be, time.monotonic()
        self._next: asyncio.TimerHandle | None = None

    def add(self, state: RequestState) -> None:
        """It has news for the next round."""
        self._due.append(state)

    def plan(self, now: float) -> None:
        """Have a round for those that wait for one, if there are any. `now`: time.monotonic()."""
        if not self._due or self._next is not None:
            return
        wait = self.earliest - now
        if wait <= 0:
            self.wake()
        else:
            self._next = asyncio.get_running_loop().call_later(wait, self.wake)

    def wake(self) -> None:
        """The round is now."""
        self._next = None
        due, self._due = self._due, []
        for state in due:
            state.wake()
        # Runs when all of them have: a loop keeps the order.
        asyncio.get_running_loop().call_soon(self._end, time.monotonic())

    def _end(self, start: float) -> None:
        self.earliest = start + min(MOST_WAIT, ROUND_SPACING * (time.monotonic() - start))
