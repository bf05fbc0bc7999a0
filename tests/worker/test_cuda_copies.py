"""Copies between host and GPU through pinned buffers, on a stream that is always late: what was launched happens when
somebody waits for it, and not before. A buffer that is written again too early spoils what was on its way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from octavo.base.config import ParallelConfig
from octavo.device import cuda
from octavo.device.cuda import CUDADevice
from support.described_gpu import gpu


class Stream:
    """Work in the order in which it was launched."""

    def __init__(self) -> None:
        self.work: list[Callable[[], object]] = []
        self.num_done = 0

    def run_until(self, count: int) -> None:
        while self.num_done < count:
            self.work[self.num_done]()
            self.num_done += 1


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """torch.cuda's events and torch's asynchronous copies, late, in the host's memory."""
    stream = Stream()

    class Event:
        count = 0

        def record(self) -> None:
            self.count = len(stream.work)

        def synchronize(self) -> None:
            stream.run_until(self.count)

    empty, copy = torch.empty, torch.Tensor.copy_

    def late_copy(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if not non_blocking:
            return copy(self, source)
        stream.work.append(lambda: copy(self, source))
        return self

    def empty_anywhere(*args: Any, pin_memory: bool = False, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return empty(*args, **kwargs).fill_(0)

    gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", empty_anywhere)
    monkeypatch.setattr(torch.Tensor, "copy_", late_copy)
    return stream


def arrays(step: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(step)
    size = 50 + 400_000 * (step % 7 == 3)  # now and then one that needs a larger buffer
    return (
        rng.integers(0, 1000, size, dtype=np.int32),
        rng.integers(0, 1000, 3, dtype=np.int64),
        rng.random((2, 5), dtype=np.float32),
        rng.integers(0, 9, 0, dtype=np.int32),
    )


def test_uploads_that_are_late_arrive_whole(stream: Stream) -> None:
    device = CUDADevice(ParallelConfig())
    arrived = [device.upload(*arrays(step)) for step in range(25)]
    assert stream.num_done < len(stream.work)
    stream.run_until(len(stream.work))
    for step, tensors in enumerate(arrived):
        for array, tensor in zip(arrays(step), tensors, strict=True):
            assert tensor.numpy().dtype == array.dtype and np.array_equal(tensor.numpy(), array), step


def test_an_upload_to_a_fixed_place_goes_there(stream: Stream) -> None:
    """As the inputs of a captured step do."""
    device = CUDADevice(ParallelConfig())
    place = torch.zeros(4096, dtype=torch.uint8)
    first = device.upload(*arrays(1), into=place)
    second = device.upload(*arrays(2), into=place)
    stream.run_until(1)
    assert np.array_equal(first[0].numpy(), arrays(1)[0])
    stream.run_until(2)
    assert [a.data_ptr() for a in first] == [b.data_ptr() for b in second]
    assert all(np.array_equal(t.numpy(), a) for t, a in zip(first, arrays(2), strict=True))


def test_weights_larger_than_the_buffers_arrive_whole(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_WEIGHT_CHUNK", 1 << 10)
    device = CUDADevice(ParallelConfig())
    weights = [torch.randn(rows, 33, generator=torch.Generator().manual_seed(rows)) for rows in (1, 100, 7)]
    weights += [torch.arange(20_000, dtype=torch.int16), torch.zeros(0, 5), torch.randn(40, 30).t()]
    arrived = [device.upload_weight(weight) for weight in weights]
    stream.run_until(len(stream.work))
    for weight, there in zip(weights, arrived, strict=True):
        assert there.dtype == weight.dtype and torch.equal(there, weight)


def test_a_download_is_what_was_there_when_it_was_launched(stream: Stream) -> None:
    device = CUDADevice(ParallelConfig())
    source = torch.tensor([1, 2, 3], dtype=torch.int32)
    wait = device.download(source, source * 2)
    stream.work.append(lambda: source.fill_(9))  # the next step's
    ids, doubled = wait()
    assert ids.tolist() == [1, 2, 3] and doubled.tolist() == [2, 4, 6]
