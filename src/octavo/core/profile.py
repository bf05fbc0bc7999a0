"""A recording of the engine on demand: its steps, and what torch and the device do in them."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from octavo.core.executors.executor import Executor
from octavo.core.step_trace import StepTrace

logger = logging.getLogger("octavo.core")


class Profile:
    """Records from its making until `write`, whose files go to `directory`, which is made if need be.

    Raises OSError where that cannot be written to.
    """

    def __init__(self, executor: Executor, directory: str, *, with_torch: bool) -> None:
        self._folder = Path(directory)
        self._folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self._folder, os.W_OK):
            raise PermissionError(f"{directory} cannot be written to")
        self._executor = executor
        self._with_torch = with_torch
        if with_torch:
            executor.start_profile()
        self.trace = StepTrace()
        logger.info("recording a profile of the steps%s", ", and of torch" if with_torch else "")

    def write(self) -> dict[str, Any]:
        """Stop, and write the traces: the files, and how many steps are in them. Raises OSError."""
        stem, folder = f"octavo-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}", self._folder
        files = []
        try:
            steps = _unused(folder, stem, "steps.json.gz")
            self.trace.write(steps)
            files.append(str(steps))
        finally:
            if self._with_torch:  # whatever went wrong: it must not go on
                torch_trace = _unused(folder, stem, "torch.json.gz")
                self._executor.stop_profile(str(torch_trace))
                files.append(str(torch_trace))
        logger.info("wrote a profile of %d steps: %s", self.trace.num_steps, ", ".join(files))
        return {
            "files": files,
            "steps": self.trace.num_steps,
            "steps_not_recorded": self.trace.num_dropped,
        }


def _unused(folder: Path, stem: str, end: str) -> Path:
    """A file that is not there yet: two recordings may end in one second."""
    path, number = folder / f"{stem}.{end}", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.{end}"
    return path
