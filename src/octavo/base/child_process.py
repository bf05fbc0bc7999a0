"""What a process does that must not outlive the one that started it, and leaves signals to that."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def leave_signals_to_parent(*, with_children: bool = True) -> None:
    """INT and TERM are the parent's business: a terminal, or a service manager that stops a group, sends them to all
    processes. The parent's death ends this process (Linux: that of the thread which started it).

    `with_children`: what this process starts ignores them too, as what is ignored is inherited; else it hears them.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN if with_children else _ignore)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _ignore(signum: int, frame: object) -> None:
    """A handler, which no program that is started inherits."""
