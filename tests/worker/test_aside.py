"""Tensors that are put aside are empty, and afterwards what they were, views of each other included."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from octavo.base.errors import DeviceError
from octavo.base.host import FreeMemory
from octavo.device.aside import PutAside, tensors_of


@dataclass(frozen=True)
class Packed:
    values: torch.Tensor
    scales: tuple[torch.Tensor, ...]
    bias: torch.Tensor | None = None


def weights() -> dict[str, object]:
    whole = torch.arange(24, dtype=torch.float32)
    return {"a": Packed(whole[:12].view(3, 4), (whole[12:18],)), "b": [whole.view(4, 6)], "c": Packed(whole[20:], ())}


def test_all_tensors_of_packed_weights_are_found() -> None:
    assert [tuple(tensor.shape) for tensor in tensors_of(weights())] == [(3, 4), (6,), (4, 6), (4,)]


def test_they_come_back_as_they_were_and_share_what_they_shared() -> None:
    found = list(tensors_of(weights()))
    before = [tensor.clone() for tensor in found]
    aside = PutAside(iter(found))
    assert {tensor.untyped_storage().nbytes() for tensor in found} == {0}
    aside.restore()
    assert all(torch.equal(tensor, values) for tensor, values in zip(found, before, strict=True))
    found[2][0, 0] = 99.0
    assert found[0][0, 0] == 99.0


def test_what_the_host_has_no_room_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    (tensor,) = tensors_of(torch.ones(1000))
    monkeypatch.setattr("octavo.device.aside.host.free_memory", lambda: FreeMemory(3999, "here"))
    with pytest.raises(DeviceError, match="0 MiB free here. Level 2 drops them"):
        PutAside(iter([tensor]))
    assert tensor.sum() == 1000
