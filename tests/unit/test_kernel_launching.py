"""Launches of compiled kernels, beside Triton's own dispatch, on a driver that only notes what it is told."""

from __future__ import annotations

import types
from typing import Any, get_args

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.language.extra.cuda import gdc_wait  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from octavo.base.errors import DeviceError  # noqa: E402
from octavo.ops.triton import launching, switches  # noqa: E402
from octavo.ops.triton.launching import Kernel  # noqa: E402


def scale_kernel(out, x, maybe, factor, count, BLOCK: tl.constexpr, TWICE: tl.constexpr = False):
    index = tl.arange(0, BLOCK)
    value = tl.load(x + index, mask=index < count, other=0.0) * factor
    if TWICE:
        value = value * 2
    tl.store(out + index, value, mask=index < count)


def chained_kernel(out, x, CHAINED: tl.constexpr = False):
    if CHAINED:  # as `wait_turn`, which may be the interpreter's in this process
        gdc_wait()
    tl.store(out, tl.load(x))


class Driver:
    """Enough of one to compile for sm_90 and launch nothing."""

    def __init__(self, capability: int = 90) -> None:
        self.capability = capability
        self.metadata: list[Any] = []
        self.launches: list[tuple[Any, ...]] = []
        self.num_loaded = 0
        self.utils = types.SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 232_448}, load_binary=self._load
        )
        self.launcher_cls = self._launcher

    def _launcher(self, src: Any, metadata: Any) -> Any:
        self.metadata.append(metadata)
        return lambda *args: self.launches.append(args)

    def _load(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        self.num_loaded += 1
        return object(), self.num_loaded, 32, 0, 1024

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 77

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


@pytest.fixture
def active(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    monkeypatch.setattr(driver, "_active", made)
    return made


def test_kept_kernels_are_those_that_triton_would_launch(active: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments of all classes, each twice: the function and what it gets are the same as by Triton's dispatch."""
    memory = torch.zeros(64)
    aligned, odd, half = memory[:16], memory[1:17], torch.zeros(32, dtype=torch.bfloat16)
    ours, plain = Kernel(scale_kernel), JITFunction(scale_kernel)
    cases: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((aligned, aligned, None, 2.0, 16), {"BLOCK": 16}),
        ((aligned, odd, None, 2.0, 16), {"BLOCK": 16}),
        ((aligned, half, None, 2.0, 16), {"BLOCK": 16}),
        ((aligned, aligned, aligned, 2.0, 16), {"BLOCK": 16}),
        ((aligned, aligned, None, 1.0, 15), {"BLOCK": 16}),
        ((aligned, aligned, None, 1.0, 1), {"BLOCK": 16}),
        ((aligned, aligned, None, 1.0, 1 << 40), {"BLOCK": 16}),
        ((aligned, aligned, None, 3, 16), {"BLOCK": 16}),
        ((aligned, aligned, None, 2.0, 16), {"BLOCK": 16, "TWICE": True, "num_warps": 1}),
    ]

    def launched(kernel: Any, grid: tuple[int, ...], case: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[Any, ...]:
        kernel[grid](*case[0], **case[1])
        x, y, z, stream, function, metadata, _, _, _, *values = active.launches.pop()
        assert not active.launches
        found = compiled[kernel][function]
        values = [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in values]
        return (x, y, z), stream, metadata, found, values

    compiled: dict[Any, dict[int, str]] = {ours: {}, plain: {}}
    load = active._load

    def noted(name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        result = load(name, binary, shared, device)
        for each in compiled.values():
            each[result[1]] = binary.hex()
        return result

    active.utils.load_binary = noted
    wanted = [launched(plain, (5, 2), case) for case in cases]
    for case, expected in zip(cases, wanted, strict=True):
        assert launched(ours, (5, 2), case) == expected
    monkeypatch.setattr(JITFunction, "run", None)  # what is kept needs no dispatch
    for case, expected in zip(cases, wanted, strict=True):
        assert launched(ours, (5, 2), case) == expected
    assert launched(ours, (9,), cases[0])[0] == (9, 1, 1)


def test_what_is_not_understood_and_what_a_profiler_listens_to_goes_triton_s_way(
    active: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: list[str] = []
    kernel = Kernel(scale_kernel)

    def dispatched(self: Any, *args: Any, **kwargs: Any) -> None:
        ways.append("triton")

    monkeypatch.setattr(JITFunction, "run", dispatched)
    x = torch.zeros(16)
    for _ in range(2):
        kernel[(1,)](x, torch.nn.Parameter(x), None, 1.0, 16, BLOCK=16)
    monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", lambda metadata: None)
    for _ in range(2):
        kernel[(1,)](x, x, None, 1.0, 16, BLOCK=16)
    assert ways == ["triton"] * 4 and not active.launches


@pytest.mark.parametrize(
    ("capability", "off", "is_chained"), [(90, "", True), (90, "dependent_launch", False), (80, "", False)]
)
def test_chained_kernels_are_launched_ahead_where_the_gpu_can_and_nobody_switches_it_off(
    capability: int, off: str, is_chained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Driver(capability)
    monkeypatch.setattr(driver, "_active", made)
    monkeypatch.setattr(launching, "is_on", lambda switch: switch != off)
    launching._can_chain.cache_clear()
    x = torch.zeros(16)
    try:
        kernel = Kernel(chained_kernel, chained=True)
        for _ in range(2):
            kernel[(1,)](x, x)
    finally:
        launching._can_chain.cache_clear()
    (metadata,) = made.metadata
    assert metadata.launch_pdl == is_chained and len(made.launches) == 2
    (compiled,) = kernel.device_caches[0][0].values()
    assert ("griddepcontrol.wait" in compiled.asm["ptx"]) == is_chained
    plain = Kernel(scale_kernel)
    plain[(1,)](x, x, None, 1.0, 16, BLOCK=16)
    assert not made.metadata[-1].launch_pdl


def test_a_switch_that_does_not_exist_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(switches.VARIABLE, "joined_norms, dependent_launches")
    switches._off.cache_clear()
    try:
        with pytest.raises(DeviceError, match="'dependent_launches' is none of .*; did you mean dependent_launch?"):
            switches.is_on("joined_norms")
        monkeypatch.setenv(switches.VARIABLE, "joined_norms, joined_rotation")
        assert [switches.is_on(name) for name in get_args(switches.Switch)] == [True, False, False]
    finally:
        switches._off.cache_clear()
