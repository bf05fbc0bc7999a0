"""From pictures to codes, and to the embeddings of their tokens: one picture at a time, in float32, so that its codes
are the same whatever is encoded beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from octavo.device.base import Device
from octavo.models.codes import CODEBOOK, GROUP_EPS, NUM_GROUPS, CodesDefinition, Step
from octavo.models.spec import CodesSpec
from octavo.models.tower import CODES
from octavo.ops.table import Ops
from octavo.worker.encoder import EncoderRunner


class CodeEncoder:
    """`weights`: what was packed, by the names of the definition's weights."""

    def __init__(
        self, spec: CodesSpec, definition: CodesDefinition, ops: Ops, device: Device, weights: Mapping[str, Any]
    ) -> None:
        self.side = spec.side
        self._steps = definition.steps
        self._device = device
        self._weights = weights
        self._embeddings = EncoderRunner(definition.program, ops, device, weights)
        self._token_ids = np.array(spec.token_ids, np.int32)

    def run(self, values: np.ndarray) -> Tensor:
        """The rows of pictures [S, 3, side, side], one behind the other: [S * num_rows, width] of the table's type."""
        found = [self._codes(*self._device.upload(np.ascontiguousarray(each[None]))) for each in values]
        ids = self._token_ids[torch.cat(found).cpu().numpy()]
        return self._embeddings.run([len(ids)], token_ids=ids).clone()

    def _codes(self, x: Tensor) -> Tensor:
        """int64 [num_rows] of one picture [1, 3, side, side]."""
        # Fast paths of GPUs round inputs to 10 bits, or choose their sums anew in each process.
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            for step in self._steps:
                x = self._step(step, x)
            rows = x[0].flatten(1).t()
            book = self._weight(CODEBOOK)
            return ((book**2).sum(1) - 2 * (rows @ book.t())).argmin(1)

    def _step(self, step: Step, x: Tensor) -> Tensor:
        if step.kind == "convolution":
            return self._convolved(step.name, x, step.kernel)
        if step.kind == "norm":
            return functional.silu(self._normed(step.name, x))
        if step.kind == "halving":
            return self._convolved(step.name, functional.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
        if step.kind == "attention":
            return x + self._attention(step.name, self._normed(f"{step.name}.norm", x))
        inner = self._convolved(f"{step.name}.conv1", functional.silu(self._normed(f"{step.name}.norm1", x)))
        inner = self._convolved(f"{step.name}.conv2", functional.silu(self._normed(f"{step.name}.norm2", inner)))
        return inner + (x if step.inputs == step.outputs else self._convolved(f"{step.name}.nin_shortcut", x, 1))

    def _attention(self, name: str, x: Tensor) -> Tensor:
        q, k, v = (self._convolved(f"{name}.{part}", x, 1)[0].flatten(1).t() for part in ("q", "k", "v"))
        attended = ((q @ k.t()) * q.shape[1] ** -0.5).softmax(1) @ v
        return self._convolved(f"{name}.proj_out", attended.t().reshape(x.shape), 1)

    def _convolved(self, name: str, x: Tensor, side: int = 3, *, stride: int = 1, padding: int | None = None) -> Tensor:
        bias = self._weight(name, "bias")
        filters = self._weight(name).reshape(len(bias), x.shape[1], side, side)
        return functional.conv2d(x, filters, bias, stride, side // 2 if padding is None else padding)

    def _normed(self, name: str, x: Tensor) -> Tensor:
        return functional.group_norm(x, NUM_GROUPS, self._weight(name), self._weight(name, "bias"), GROUP_EPS)

    def _weight(self, name: str, kind: str = "weight") -> Tensor:
        found: Tensor = self._weights[f"{CODES}.{name}.{kind}"]
        return found


def codes_bytes(spec: CodesSpec) -> int:
    """What a picture takes on its way to codes: of the widest level its input and result, and what lies between."""
    level = max(factor * (spec.side >> number) ** 2 for number, factor in enumerate(spec.multipliers))
    places = (spec.side >> (len(spec.multipliers) - 1)) ** 2
    buffers = 6 * level * spec.base_channels
    return torch.float32.itemsize * max(buffers, places * (2 * len(spec.token_ids) + 2 * places))
