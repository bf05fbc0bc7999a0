"""A plugin of pytest: the tests of the Triton kernels on $OCTAVO_TEST_TORCH_DEVICE instead of in the interpreter.

    OCTAVO_TEST_TORCH_DEVICE=cuda pytest -p gpu.pytest_cuda tests/triton

The tests are written for CPU tensors. Before any of them is imported, the functions of `octavo.ops.triton` are put
behind `facade`, and so is the launch of kernels, for tests that launch them directly.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from types import ModuleType
from typing import Any

import pytest
import torch

from gpu.facade import on_device


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    device = torch.device(os.environ["OCTAVO_TEST_TORCH_DEVICE"])
    if device.type != "cpu":
        # The tests' own conftest has asked for the interpreter; no kernel has been imported yet.
        os.environ.pop("TRITON_INTERPRET", None)
        device = torch.device(device.type, torch.cuda.current_device())
    package = importlib.import_module("octavo.ops.triton")
    modules = [
        importlib.import_module(f"{package.__name__}.{module.name}")
        for module in pkgutil.iter_modules(package.__path__)
    ]
    if device.type != "cpu":
        _patch_launches(device)
    for module in modules:
        _patch(module, device)


def _patch(module: ModuleType, device: torch.device) -> None:
    """All public functions, wherever the module has them from: a table of operations is made of such names."""
    for name, value in list(vars(module).items()):
        own = inspect.isfunction(value) and value.__module__.startswith("octavo.ops.triton")
        if own and not name.startswith("_") and name != "variants" and not hasattr(value, "__wrapped__"):
            setattr(module, name, on_device(value, device))


def _patch_launches(device: torch.device) -> None:
    from triton.runtime.jit import JITFunction

    run: Any = JITFunction.run

    def moved(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(arg, torch.Tensor) and arg.device.type == "cpu" for arg in (*args, *kwargs.values())):
            return run(self, *args, **kwargs)
        return on_device(run, device)(self, *args, **kwargs)

    JITFunction.run = moved
