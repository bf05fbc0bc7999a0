"""torch's profiler around the steps of a worker."""

from __future__ import annotations

import os

import torch


class TorchProfile:
    """Records from its making to `stop`, which is called once, in the same thread.

    Of a CPU it shows torch's own operations, and a step's native kernels as one gap; of a GPU every kernel. Its
    recordings grow with every operation: a few seconds are what it is for.
    """

    def __init__(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its library writes to stderr, past the log
        from torch.profiler import ProfilerActivity, profile  # seconds of imports that nobody else needs

        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._profile.start()

    def stop(self, path: str) -> None:
        """Write a trace of Chrome's form to `path`; compressed when that ends in .gz. Raises OSError."""
        self._profile.stop()
        self._profile.export_chrome_trace(path)
