"""Adapters that add tokens, of prompts and of outputs, in PEFT's forms and vLLM's; others see nothing of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.harness import Engine, Reply, request
from engine.test_lora import ALL, VOCAB, ids_of, load, logits, make, with_adapter
from octavo.base.config import LoraConfig
from octavo.base.errors import CheckpointError
from octavo.base.params import SamplingParams
from support.adapters import merged, random_adapter, write_adapter

WIDE = LoraConfig(enable_lora=True, max_loras=2, max_lora_rank=16, max_cpu_loras=8, lora_extra_vocab_size=256)
EXTRA = 3
NEW = [VOCAB, VOCAB + 2, VOCAB + 1]


def load_wide(path: Path) -> Engine:
    options = {"dtype": "float32", "logprobs_mode": "raw_logits"}
    return Engine(path, {"kv_cache_dtype": "float32"}, WIDE, max_model_len=128, **options)


def wide_logits(engine: Engine, ids: list[int], key: str, width: int = VOCAB + EXTRA) -> torch.Tensor:
    asked = with_adapter(request(1, ids, prompt_logprobs=width, logprobs=width, max_tokens=1), key)
    reply = engine.run([asked, request(2, ids_of(3, 7), max_tokens=2)]).replies[1]
    rows = [*reply.prompt_logprobs, reply.logprobs[0]]
    found = torch.full((len(rows), VOCAB + 256), torch.nan)
    for row, entry in zip(found, rows, strict=True):
        row[entry.top_ids] = torch.tensor(entry.top_logprobs)
    return found[:, :width]


def grown(kind: str) -> tuple[Any, Any]:
    """A model, and the same with rows for more tokens."""
    model = make(kind)
    larger = copy.deepcopy(model)
    larger.resize_token_embeddings(VOCAB + EXTRA, mean_resizing=False)
    for table in (larger.get_input_embeddings(), larger.get_output_embeddings()):
        table.weight.data[VOCAB:] = 0.3 * torch.randn(EXTRA, 32, generator=torch.Generator().manual_seed(1))
    return model, larger.eval()


PEFT_CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    ("llama", {"target_modules": ["v_proj", "embed_tokens", "lm_head"]}),
    ("llama", {"target_modules": ["down_proj"]}),
    ("gemma3", {"target_modules": ["embed_tokens"]}),
]


@pytest.mark.parametrize(("kind", "config"), PEFT_CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_logits_are_those_of_peft(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    model, larger = grown(kind)
    model.save_pretrained(tmp_path / "base")
    settings = {"r": 8, "lora_alpha": 12, "init_lora_weights": False}
    adapted = peft.get_peft_model(larger, peft.LoraConfig(**(settings | config))).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    engine, ids = load_wide(tmp_path / "base"), [*ids_of(2, 9), *NEW, *ids_of(4, 5)]
    assert engine.worker.read_adapter("k", str(tmp_path / "adapter")).num_extra == EXTRA
    with torch.no_grad():
        expected = adapted(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(wide_logits(engine, ids, "k"), expected, rtol=1e-4, atol=2e-5)


def write_new_rows(path: Path, larger: Any) -> None:
    """In vLLM's form."""
    rows = {
        "input_embeddings": larger.get_input_embeddings().weight.data[VOCAB:].clone(),
        "output_embeddings": larger.get_output_embeddings().weight.data[VOCAB:].clone(),
    }
    save_file(rows, path / "new_embeddings.safetensors")


def test_rows_in_a_file_of_their_own(tmp_path: Path) -> None:
    model, larger = grown("llama")
    model.save_pretrained(tmp_path / "base")
    tensors = random_adapter(model, ALL, 8, 5)
    write_new_rows(write_adapter(tmp_path / "adapter", tensors, 8), larger)
    engine, ids = load_wide(tmp_path / "base"), [*NEW, *ids_of(1, 12)]
    assert engine.worker.read_adapter("k", str(tmp_path / "adapter")).num_extra == EXTRA
    with torch.no_grad():
        expected = merged(larger, tensors, 2.0)(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(wide_logits(engine, ids, "k"), expected, rtol=1e-4, atol=2e-5)


def test_nobody_else_sees_of_added_tokens(tmp_path: Path) -> None:
    """Neither those without an adapter nor those with another, bit for bit, with and without company; logits and texts
    are those of an engine that has no room for more tokens."""
    model, larger = grown("llama")
    model.save_pretrained(tmp_path / "base")
    write_new_rows(write_adapter(tmp_path / "new", random_adapter(model, ALL, 8, 5), 8), larger)
    write_adapter(tmp_path / "plain", random_adapter(model, ALL, 8, 6), 8)
    engine, narrow = load_wide(tmp_path / "base"), load(tmp_path / "base")
    for each, keys in ((engine, ("new", "plain")), (narrow, ("plain",))):
        for key in keys:
            each.worker.read_adapter(key, str(tmp_path / key))
    sampled: dict[str, Any] = {"temperature": 0.9, "seed": 4}
    others = [
        with_adapter(
            request(i, ids_of(i, 11), max_tokens=9, logprobs=VOCAB, **(sampled if i % 2 else {})), ["", "plain"][i // 2]
        )
        for i in range(4)
    ]
    expected = narrow.run(others).replies
    new = [
        with_adapter(
            request(i, [*NEW, i], max_tokens=12, allowed_token_ids=(VOCAB, VOCAB + 1) if i % 2 else None), "new"
        )
        for i in (8, 9)
    ]
    replies = engine.run([*others, *new]).replies
    assert {i: replies[i] for i in range(4)} == expected
    assert set(replies[9].token_ids) <= {VOCAB, VOCAB + 1} and len(replies[9].token_ids) == 12
    alone: dict[int, Reply] = {}
    for each in (*others, *new):
        alone |= engine.run([each], scheduler=engine.scheduler(prefix_caching=False)).replies
    assert replies == alone
    scheduler = engine.scheduler()
    refused = scheduler.add(request(20, [VOCAB]))
    assert refused is not None and f"outside 0..{VOCAB - 1}" in (refused.error or "")
    assert logits(expected[0]).shape[1] == VOCAB
    assert SamplingParams().top_k <= 0


def test_what_does_not_fit_is_told_by_its_name(tmp_path: Path) -> None:
    model = make("llama")
    model.save_pretrained(tmp_path / "base")
    engine = load_wide(tmp_path / "base")
    q = random_adapter(model, r".*\.0\..*q_proj", 8, 1)
    head_a, head_b = torch.zeros(8, 32), torch.zeros(VOCAB + EXTRA, 8)
    head = {"lm_head.lora_A.weight": head_a, "lm_head.lora_B.weight": head_b}
    base = {"lm_head.base_layer.weight": torch.zeros(VOCAB + 1, 32)}
    cases: list[tuple[dict[str, torch.Tensor], str]] = [
        ({"lm_head.weight": torch.zeros(VOCAB + 300, 32)}, "it adds 300 tokens.* --lora-extra-vocab-size is 256"),
        (head, "lm_head.lora_B.weight.* adds 3 tokens, and the matrix with their rows .base_layer. is missing"),
        (head | base, "it adds 3 tokens, and .*base_layer.weight' others"),
        ({"model.embed_tokens.weight": torch.full((VOCAB + 1, 32), torch.nan)}, "embed_tokens.* NaN"),
    ]
    for number, (tensors, message) in enumerate(cases):
        path = write_adapter(tmp_path / str(number), q | tensors, 8)
        with pytest.raises(CheckpointError, match=message):
            engine.worker.read_adapter("k", str(path))
