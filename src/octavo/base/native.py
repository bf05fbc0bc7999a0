"""The native module of the CPU's kernels, `octavo._cpu`: is it there?

Imported by name and late: a machine with a GPU may do without it, and a CPU then computes with torch, slowly.
"""

from __future__ import annotations

import importlib
import importlib.util

from octavo.base.errors import DeviceError

_NAME = "octavo._cpu"


def has_native_cpu() -> bool:
    """Whether `octavo._cpu` was built. Raises DeviceError when it was and cannot be loaded: that is a fault of the
    installation, and not to be answered with slow operations."""
    if importlib.util.find_spec(_NAME) is None:
        return False
    try:
        importlib.import_module(_NAME)
    except ImportError as error:
        raise DeviceError(
            f"octavo's native module cannot be loaded: {error}. Install octavo again, for this Python and system."
        ) from error
    return True
