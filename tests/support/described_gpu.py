"""A GPU that is not there, as the driver describes it."""

from __future__ import annotations

import types

import pytest
import torch


def gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """A GPU as the driver describes it."""
    properties = types.SimpleNamespace(
        name="Test GPU", major=capability[0], minor=capability[1], total_memory=80 << 30, multi_processor_count=100
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
