"""What the tests of the CPU's kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from octavo import _cpu


@pytest.fixture(params=_cpu.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction-set level that this processor has, on two threads."""
    before, threads = _cpu.isa(), _cpu.num_threads()
    _cpu.set_isa(request.param)
    _cpu.set_num_threads(2)
    yield request.param
    _cpu.set_isa(before)
    _cpu.set_num_threads(threads)
