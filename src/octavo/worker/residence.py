"""The model and its KV cache, as long as they are in memory: sleeping gives it back, waking takes it again.

Level 1 gives back the KV cache and the buffers of steps; a device that is not the host's CPU also gives back the
weights, which the host keeps. Level 2 drops the weights too: they are loaded from the files again. What is computed
behind it is what was computed before, bit for bit.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from typing import Any

from octavo.base.errors import CheckpointError
from octavo.device.aside import PutAside, tensors_of
from octavo.device.base import Device
from octavo.models.decoder import Definition
from octavo.models.loader import LoadedModel
from octavo.models.transformer import Transformer
from octavo.worker.model_runner import ModelRunner
from octavo.worker.pooling import EncodingRunner

logger = logging.getLogger("octavo.worker")

Weights = Mapping[str, Any]
Runner = ModelRunner | EncodingRunner


class Residence:
    """Owns the runner, which is None while the worker sleeps, and the weights."""

    def __init__(
        self,
        loaded: LoadedModel,
        device: Device,
        load: Callable[[], LoadedModel],
        make_model: Callable[[Definition, Weights], Transformer],
        make_runner: Callable[[Transformer], Runner],
    ) -> None:
        """`load`: the model from its files, as `loaded` was; `make_model`: of weights that are there; `make_runner`:
        with a KV cache that nobody has used. None of them may keep what it makes."""
        self.runner: Runner | None = make_runner(loaded.model)
        self._facts = _facts(loaded)
        self._definition = loaded.model.definition
        self._weights: Weights | None = loaded.weights
        self._aside: PutAside | None = None  # where the weights are, while the host keeps them
        self._device = device
        self._load, self._make_model, self._make_runner = load, make_model, make_runner

    def sleep(self, level: int) -> None:
        """Give memory back; from level 1 to level 2 as well. Raises DeviceError where the host cannot keep the weights.

        No step is under way.
        """
        if level == 1 and self.runner is not None and self._device.name != "cpu":
            self._aside = PutAside(tensors_of(self._weights))
        self.runner = None
        if level > 1:
            self._weights = self._aside = None
        _collect()
        logger.info("asleep at level %d: %s", level, self._device.free_memory())

    def wake_up(self) -> None:
        """Take memory again. Raises what loading raises, and the device's error where there is not enough: the worker
        sleeps on then, and may be woken again."""
        if self.runner is not None:
            return
        if self._weights is None:
            loaded = self._load()
            if _facts(loaded) != self._facts:
                raise CheckpointError("The model's files hold another model than the one that was put to sleep.")
            self._weights = loaded.weights
            del loaded  # its buffers of steps are not those of the runner
        if self._aside is not None:
            self._aside.restore()
            self._aside = None
        self.runner = self._make_runner(self._make_model(self._definition, self._weights))
        gc.freeze()


def _facts(loaded: LoadedModel) -> tuple[Any, ...]:
    """What the rest of the engine has been told of a model."""
    return loaded.spec, loaded.dtype, loaded.num_params, loaded.weight_bytes, loaded.quantization


def _collect() -> None:
    """Free what nobody refers to, cycles too: the process has told the collector not to look at old objects."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
