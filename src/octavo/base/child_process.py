"""What a process does that must not outlive the one that started it, and leaves signals to that."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def leave_signals_to_parent() -> None:
    """INT and TERM are the parent's business: a terminal, or a service manager that stops a group, sends them to all
    processes. The parent's death ends this process (Linux: that of the thread which started it)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
