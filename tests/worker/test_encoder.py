"""The runner of programs that keep nothing, against transformers' encoders."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from models.running import load
from octavo.device.base import Device
from octavo.models.blocks import MLP, Attention, Sequential
from octavo.models.encoder import EncoderSpec, define_encoder
from octavo.models.spec import NormSpec
from octavo.ops.operands import Heads
from octavo.ops.table import bind
from octavo.worker.encoder import EncoderRunner
from support.tiny_bart import make_bart, random_ids
from worker.devices import HostDevice

LENS = [45, 1, 70, 3]


def runner_of(path: Path, impl: Any = "auto") -> EncoderRunner:
    ops = bind(impl=impl)
    loaded = load(path, ops, dtype="float32")
    encoder = loaded.model.definition.encoder
    assert encoder is not None
    return EncoderRunner(encoder.program, ops, cast(Device, HostDevice()), loaded.weights)


def encoded(runner: EncoderRunner, inputs: list[list[int]]) -> list[torch.Tensor]:
    ids = np.array(list(chain(*inputs)), np.int32)
    lens = [len(each) for each in inputs]
    return list(runner.run(lens, token_ids=ids).clone().split(lens))


@pytest.mark.parametrize("kind", ["Bart", "MBart"])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_rows_are_those_of_transformers(tmp_path: Path, kind: str, impl: str) -> None:
    model = make_bart(tmp_path, kind)
    inputs = [random_ids(length, seed) for seed, length in enumerate(LENS)]
    for rows, ids in zip(encoded(runner_of(tmp_path, impl), inputs), inputs, strict=True):
        with torch.no_grad():
            expected = model.model.encoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(rows, expected, rtol=2e-5, atol=2e-5)


def test_a_sequence_alone_has_the_bits_that_it_has_in_company(tmp_path: Path) -> None:
    make_bart(tmp_path)
    runner = runner_of(tmp_path)
    inputs = [random_ids(length, seed) for seed, length in enumerate(LENS)]
    together = encoded(runner, inputs)
    for rows, ids in zip(together, inputs, strict=True):
        assert torch.equal(encoded(runner, [ids])[0], rows)
    for rows, ids in zip(reversed(together), reversed(inputs), strict=True):
        assert torch.equal(encoded(runner, [ids])[0], rows)


def test_given_rows_go_through_a_matrix_or_as_they_are() -> None:
    """As those of images and sounds; what a layer lets rows see is up to the ends that are given."""
    ops, width = bind(), 32
    norm = NormSpec(eps=1e-5, kind="layer", bias=True)
    heads = Heads(num_heads=2, num_kv_heads=2, head_dim=16)
    attention = Attention(heads=heads, scale=0.25, reads_key_ends=True)
    layer = Sequential(attention=attention, mlp=MLP(size=64, activation="gelu"), norm=norm)
    spec = EncoderSpec(
        name="tower", hidden_size=width, max_positions=64, layers=(layer, layer), norm=norm, input_width=20,
        input_bias=True, learned_positions=True,
    )  # fmt: skip
    definition = define_encoder(spec)
    assert len(definition.program.caches) == 1, "a layer overwrites what the last has left"
    generator = torch.Generator().manual_seed(1)
    weights: dict[str, Any] = {}
    for param in definition.params:
        tensors = [0.2 * torch.randn(part.shape, generator=generator) for part in param.parts]
        biases = [None if each is None else torch.randn(each.shape, generator=generator) for each in param.biases]
        packed: Any = torch.cat(tensors) if param.packing == "vector" else None
        if packed is None:
            is_table = param.packing == "embedding"
            packed = ops.pack_embedding(tensors[0]) if is_table else ops.pack_linear_many(tensors, biases)
        weights[param.weight.name] = packed
    rows = torch.randn(10, 20, generator=generator)
    native = EncoderRunner(definition.program, ops, cast(Device, HostDevice()), weights)
    whole = native.run([6, 4], rows=rows, key_ends=np.array([6] * 6 + [4] * 4, np.int32)).clone()
    causal = native.run([6, 4], rows=rows).clone()
    spans = native.run([6, 4], rows=rows, key_ends=np.array([2, 2, 6, 6, 6, 6, 1, 2, 3, 4], np.int32)).clone()
    assert (whole[:5] != causal[:5]).any(dim=1).all()
    assert torch.equal(spans[6:], causal[6:]), "ends that are those of a causal attention"
    alone = native.run([2], rows=rows[:2].contiguous(), key_ends=np.array([2, 2], np.int32))
    assert torch.equal(alone, spans[:2]), "a span does not depend on what is behind it"
