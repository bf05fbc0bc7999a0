"""Adapters for longer contexts: their rotation is scaled as they say, beside others in one batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.harness import Engine, Reply, request
from engine.test_lora import ALL, COMMON, SIZES, all_logits, ids_of, logits, with_adapter
from octavo.base.config import LoraConfig
from octavo.base.errors import CheckpointError, InvalidConfig
from support.adapters import merged, random_adapter, write_adapter

POSITIONS = COMMON["max_position_embeddings"]
LONG = LoraConfig(enable_lora=True, max_loras=3, long_lora_scaling_factors=[4.0, 2.0])


def make(kind: str) -> Any:
    torch.manual_seed(3)
    if kind == "llama":
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**COMMON, **SIZES))
    else:
        config = transformers.Gemma3TextConfig(**COMMON, **SIZES, head_dim=8, sliding_window=8)
        model = transformers.Gemma3ForCausalLM(config)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def scaled(model: Any, factor: float) -> Any:
    """With all its rotations by positions divided by `factor`."""
    model = copy.deepcopy(model)
    for name, buffer in model.named_buffers():
        if "inv_freq" in name:
            buffer /= factor
    return model


def load(path: Path, **options: Any) -> Engine:
    settings = {"dtype": "float32", "logprobs_mode": "raw_logits", "max_model_len": 400, **options}
    return Engine(path, {"kv_cache_dtype": "float32"}, LONG, **settings)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_each_adapter_has_its_own_rotation(tmp_path: Path, kind: str) -> None:
    model = make(kind)
    model.save_pretrained(tmp_path / "base")
    engine, lengths = load(tmp_path / "base"), {"plain": None, "twice": 2 * POSITIONS, "long": 3 * POSITIONS + 1}
    factors = {"plain": 1.0, "twice": 2.0, "long": 4.0}
    tensors = {key: random_adapter(model, ALL, 8, seed) for seed, key in enumerate(lengths)}
    for key, length in lengths.items():
        write_adapter(tmp_path / key, tensors[key], 8, context_length=length)
        info = engine.worker.read_adapter(key, str(tmp_path / key))
        assert info.context_length == (0 if length is None else min(length, 400))
    ids, replies = ids_of(1, 90), {}
    for key in ("", *lengths):
        own = model if not key else merged(scaled(model, factors[key]), tensors[key], 2.0)
        with torch.no_grad():
            expected = own(torch.tensor([ids])).logits[0]
        found = all_logits(engine, ids, key)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-5)
        replies[key] = found
    asked = [
        with_adapter(request(i, ids, max_tokens=1, logprobs=64, prompt_logprobs=64), key)
        for i, key in enumerate(("", *lengths))
    ]
    together: dict[int, Reply] = engine.run(asked).replies
    for i, key in enumerate(("", *lengths)):
        assert torch.equal(logits(together[i]), replies[key])
    if kind == "llama":  # beyond the model's own positions
        longer = ids_of(2, 300)
        with torch.no_grad():
            expected = merged(scaled(model, 4.0), tensors["long"], 2.0)(torch.tensor([longer])).logits[0]
        torch.testing.assert_close(all_logits(engine, longer, "long"), expected, rtol=1e-4, atol=5e-5)
        for level in (1, 2):
            engine.worker.sleep(level)
            engine.worker.wake_up()
        torch.testing.assert_close(all_logits(engine, longer, "long"), expected, rtol=1e-4, atol=5e-5)


def test_other_factors_and_other_positions_are_refused(tmp_path: Path) -> None:
    model = make("llama")
    model.save_pretrained(tmp_path / "base")
    engine = load(tmp_path / "base")
    path = write_adapter(tmp_path / "a", random_adapter(model, ALL, 8, 1), 8, context_length=2 * POSITIONS + 1)
    with pytest.raises(CheckpointError, match="context_length 257 is 3 times .*--long-lora-scaling-factors there is 4"):
        engine.worker.read_adapter("k", str(path))
    with pytest.raises(InvalidConfig, match="--max-model-len 513 is longer than the 512"):
        load(tmp_path / "base", max_model_len=513)
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(InvalidConfig, match="--long-lora-scaling-factors: gpt2 has no rotation"):
        load(tmp_path / "gpt2", max_model_len=128)
