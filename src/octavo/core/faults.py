"""Armed fault points: the seam by which tests break the engine at the n-th call of a named place.

`OCTAVO_FAULTS="step:3=memory_error,allocate:5=error,step:9=hang"` makes the third step fail for want of memory, the
fifth allocation of blocks raise, and the ninth step never return. Without it a point costs one test of a dict.

Points: `load` (before the model is loaded), `add` (a request enters), `allocate` (a request needs KV blocks),
`step` (before the worker runs), `update` (before the worker's answer is taken in).
Actions: `error` (RuntimeError), `memory_error` (MemoryError), `hang` (until disarmed), `exit` (the process exits
with code 70, without clean-up).
"""

from __future__ import annotations

import os
import threading

from octavo.base.errors import InvalidConfig

POINTS = ("load", "add", "allocate", "step", "update")
ACTIONS = ("error", "memory_error", "hang", "exit")
EXIT_CODE = 70

_armed: dict[str, dict[int, str]] = {}  # point -> number of the call -> action
_calls: dict[str, int] = {}
_disarmed = threading.Event()


def arm(spec: str) -> None:
    """Arm the points of `spec` and count from one again. Raises `InvalidConfig` for a spec that means nothing."""
    armed: dict[str, dict[int, str]] = {}
    for item in filter(None, (part.strip() for part in spec.split(","))):
        place, _, action = item.partition("=")
        point, _, number = place.partition(":")
        if point not in POINTS or action not in ACTIONS or not number.isdecimal():
            raise InvalidConfig(f"OCTAVO_FAULTS: {item!r} is not POINT:NUMBER=ACTION.")
        armed.setdefault(point, {})[int(number)] = action
    disarm()
    _disarmed.clear()
    _armed.update(armed)


def arm_from_environment() -> None:
    """Arm what OCTAVO_FAULTS says. Called once, when the engine process starts."""
    arm(os.environ.get("OCTAVO_FAULTS", ""))


def disarm() -> None:
    """Make every point a no-op again and let go of hanging calls."""
    _armed.clear()
    _calls.clear()
    _disarmed.set()


def fault(point: str) -> None:
    """A place that may be made to fail."""
    if _armed:
        _count(point)


def _count(point: str) -> None:
    number = _calls[point] = _calls.get(point, 0) + 1
    action = _armed.get(point, {}).get(number)
    if action == "error":
        raise RuntimeError(f"Armed fault: call {number} of {point}.")
    if action == "memory_error":
        raise MemoryError(f"Armed fault: call {number} of {point}.")
    if action == "hang":
        _disarmed.wait()
    if action == "exit":
        os._exit(EXIT_CODE)
