"""Which device a configuration means."""

from __future__ import annotations

import importlib
import importlib.util
import logging

import torch

from octavo.base.config import ParallelConfig
from octavo.base.errors import DeviceError
from octavo.device.base import Device

logger = logging.getLogger("octavo.device")


def make_device(config: ParallelConfig) -> Device:
    """The device that `--device` names, or for "auto" the best there is. Raises DeviceError when it cannot be used."""
    if config.device == "cuda":
        return _make("cuda", "CUDADevice", config)
    if config.device == "auto" and torch.cuda.is_available():
        if importlib.util.find_spec("triton") is None:
            logger.warning("There is a GPU, but no Triton for its kernels: the model runs on the CPU.")
        else:
            try:
                return _make("cuda", "CUDADevice", config)
            except DeviceError as error:
                logger.warning("The model runs on the CPU. %s", error.message)
    return _make("cpu", "CPUDevice", config)


def _make(module: str, name: str, config: ParallelConfig) -> Device:
    # By name: each needs what machines of the other kind may lack, a native module or a driver.
    device: Device = getattr(importlib.import_module(f"octavo.device.{module}"), name)(config)
    return device
