"""Phi-3-small against its description in plain torch: prompts of many blocks, whole and in pieces."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from models.running import load, prompt_logits
from octavo.base.errors import CheckpointError
from octavo.models.registry import model_spec
from octavo.ops.run import Runner
from octavo.ops.table import bind
from support.tiny_phi3_small import CONFIG, logits_of, make_phi3_small

pytestmark = pytest.mark.usefixtures("one_torch_thread")

#: More blocks of 16 than local ones and twice the stride.
PROMPTS = [torch.randint(0, 96, (100,), generator=torch.Generator().manual_seed(seed)).tolist() for seed in (1, 2)]


@pytest.mark.parametrize("impl", ["reference", "auto"])
@pytest.mark.parametrize(
    "options", [{}, {"blocksparse_homo_head_pattern": True, "mup_use_scaling": False, "blocksparse_vert_stride": 16}]
)
def test_logits_are_those_of_the_description(impl: Any, options: dict[str, Any], tmp_path: Path) -> None:
    config, tensors = make_phi3_small(tmp_path, **options)
    expected = torch.stack([logits_of(config, tensors, prompt) for prompt in PROMPTS])
    ops = bind("cpu", impl)
    for chunk in (100, 37):
        ours = torch.stack(prompt_logits(load(tmp_path, ops), ops, PROMPTS, chunk))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_chunking_company_and_calls_change_no_bit(tmp_path: Path) -> None:
    make_phi3_small(tmp_path)
    ops = bind("cpu")
    whole = prompt_logits(load(tmp_path, ops), ops, PROMPTS)
    for chunk in (3, 64):
        assert torch.equal(torch.stack(prompt_logits(load(tmp_path, ops), ops, PROMPTS, chunk)), torch.stack(whole))
    assert torch.equal(prompt_logits(load(tmp_path, ops), ops, PROMPTS[:1])[0], whole[0])
    one_by_one = dataclasses.replace(ops, program_runner=Runner)
    assert torch.equal(prompt_logits(load(tmp_path, one_by_one), one_by_one, PROMPTS, 7)[0], whole[0])


def test_tokens_that_were_never_trained_are_never_sampled(tmp_path: Path) -> None:
    make_phi3_small(tmp_path, vocab_size=100_352, num_hidden_layers=1)
    ops = bind("cpu")
    loaded = load(tmp_path, ops)
    logits = loaded.model.logits(torch.randn(2, 64))
    unused = sorted(set(range(100_256, 100_352)) - {100_257, 100_261, 100_262, 100_263, 100_266})
    assert (logits[:, unused] == -torch.inf).all()
    assert logits.isfinite().sum() == 2 * (100_352 - len(unused))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"gegelu_limit": 7.0}, "gegelu_limit"),
        ({"hidden_act": "silu"}, "hidden_act"),
        ({"rope_position_scale": 2.0}, "rope_position_scale"),
        ({"blocksparse_block_size": 24}, "blocksparse_block_size"),
        ({"blocksparse_vert_stride": 0}, "blocksparse_vert_stride"),
        ({"blocksparse_num_local_blocks": -1}, "blocksparse_num_local_blocks"),
        ({"dense_attention_every_n_layers": "2"}, "dense_attention_every_n_layers"),
        ({"ff_intermediate_size": None, "ff_dim_multiplier": 4}, "ff_dim_multiplier"),
        ({"rope_scaling": {"type": "su", "long_mscale": 1.2, "short_mscale": 1.1}}, "short_mscale"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        model_spec(CONFIG | options, "here")
