"""What the machine can do at best, as the benchmarks measure it (K7)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

import octavo
from octavo import _cpu
from octavo.base.host import num_cpus
from octavo.bench.limits import Limits, best_of, measure_limits
from octavo.bench.machine import last_cache_bytes, stamp


@pytest.fixture(params=_cpu.available_isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before, threads = _cpu.isa(), _cpu.num_threads()
    _cpu.set_isa(request.param)
    yield request.param
    _cpu.set_isa(before)
    _cpu.set_num_threads(threads)


def test_operations_are_counted_for_all_threads() -> None:
    for work in (_cpu.multiply_add, _cpu.dot_int8):
        _cpu.set_num_threads(1)
        one = work(1)
        assert one > 0 and work(7) == 7 * one
        _cpu.set_num_threads(2)
        assert work(3) == 6 * one


def test_limits_are_measured_and_the_pool_is_as_it_was() -> None:
    _cpu.set_num_threads(1)
    limits = measure_limits(2, read_bytes=3 << 20, steps=100, rounds=2)
    assert limits is not None and limits.num_threads == 2 and _cpu.num_threads() == 1
    assert min(limits.memory_read_gb_s, limits.float32_gflop_s, limits.int8_gop_s) > 0
    assert f"reads {limits.memory_read_gb_s:.1f} GB/s" in str(limits)


def test_of_two_measurements_the_better_figures_count() -> None:
    assert best_of(Limits(2, 20.0, 100.0, 400.0), Limits(2, 30.0, 90.0, 500.0)) == Limits(2, 30.0, 100.0, 500.0)
    assert best_of(None, Limits(2, 1.0, 1.0, 1.0)) == Limits(2, 1.0, 1.0, 1.0)
    assert best_of(None, None) is None


def test_without_the_native_module_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(octavo, "_cpu", raising=False)
    monkeypatch.setitem(sys.modules, "octavo._cpu", None)
    assert measure_limits() is None


def test_the_stamp_tells_what_a_figure_is_judged_by() -> None:
    found = stamp()
    assert json.loads(json.dumps(found)) == found
    assert found["cores"] == num_cpus() >= 1 and found["cpu"] and found["packages"]["torch"]
    assert last_cache_bytes() >= 0 and (found["cache_mib"] is None or found["cache_mib"] > 0)
