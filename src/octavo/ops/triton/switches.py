"""What can be switched off of the kernels, to find out which of it is to blame: `OCTAVO_GPU_WITHOUT=NAME,...`."""

from __future__ import annotations

import os
from functools import cache
from typing import Final, Literal, get_args

from octavo.base.errors import DeviceError
from octavo.base.suggest import nearest

VARIABLE: Final = "OCTAVO_GPU_WITHOUT"

#: dependent_launch: kernels that are launched while the one before computes. joined_norms: norms computed by the
#: products behind them. joined_rotation: rotation and the cache's new keys computed by the attention behind them.
Switch = Literal["dependent_launch", "joined_norms", "joined_rotation"]


@cache
def _off() -> frozenset[str]:
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    known = get_args(Switch)
    for name in names:
        if name not in known:
            raise DeviceError(f"{VARIABLE}: {name!r} is none of {', '.join(known)}{nearest(name, known)}")
    return frozenset(names)


def is_on(switch: Switch) -> bool:
    """Raises DeviceError if the variable names what does not exist."""
    return switch not in _off()
