"""Adapters of experts: PEFT's of modules and of parameters, over floats and quantized experts, in any company."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.harness import Engine, request
from engine.test_lora import COMMON, LORA, SIZES, all_logits, ids_of, load, with_adapter
from models.test_adapters import write_gguf
from octavo.base.errors import CheckpointError
from support.adapters import write_adapter

EXPERTS, INNER, HIDDEN, RANK = 4, 48, 32, 4
SCALING = 2.0


def make(kind: str) -> Any:
    torch.manual_seed(3)
    if kind == "mixtral":
        model: Any = transformers.MixtralForCausalLM(transformers.MixtralConfig(**COMMON, **SIZES, num_local_experts=4))
    elif kind == "qwen3":
        config = transformers.Qwen3MoeConfig(
            **COMMON, **SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=INNER
        )
        model = transformers.Qwen3MoeForCausalLM(config)
    else:
        config = transformers.GptOssConfig(
            **COMMON, **SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=16
        )
        model = transformers.GptOssForCausalLM(config)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def halves(rows: int, columns: int, seed: int, rank: int = RANK) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, columns, generator=generator) * columns**-0.5
    return a, 0.3 * torch.randn(rows, rank, generator=generator)


def of_modules(kind: str, seed: int) -> tuple[dict[str, torch.Tensor], Callable[[Any], Any]]:
    """An adapter of some experts' own modules, and the model that it makes of one."""
    w1, w2, w3 = ("w1", "w2", "w3") if kind == "mixtral" else ("gate_proj", "down_proj", "up_proj")
    block = "block_sparse_moe" if kind == "mixtral" else "mlp"
    found, deltas = {}, []
    for number, (layer, expert, name) in enumerate([(0, 1, w1), (0, 1, w2), (0, 3, w3), (1, 0, w2), (1, 2, w1)]):
        rows, columns = (HIDDEN, INNER) if name == w2 else (INNER, HIDDEN)
        a, b = halves(rows, columns, seed + number)
        module = f"model.layers.{layer}.{block}.experts.{expert}.{name}"
        found |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        deltas.append((layer, expert, "down" if name == w2 else "gate" if name == w1 else "up", b @ a))

    def change(model: Any) -> Any:
        model = copy.deepcopy(model)
        for layer, expert, name, delta in deltas:
            experts = model.model.layers[layer].mlp.experts
            matrix = (experts.down_proj if name == "down" else experts.gate_up_proj).data[expert]
            first = INNER if name == "up" else 0
            matrix[first : first + len(delta)] += SCALING * delta
        return model

    return found, change


@pytest.mark.parametrize("kind", ["mixtral", "qwen3"])
def test_modules_of_single_experts_give_what_merged_ones_do(tmp_path: Path, kind: str) -> None:
    model = make(kind)
    model.save_pretrained(tmp_path / "base")
    tensors, change = of_modules(kind, 5)
    write_adapter(tmp_path / "adapter", tensors, RANK)
    engine, ids = load(tmp_path / "base"), ids_of(1, 21)
    engine.worker.read_adapter("k", str(tmp_path / "adapter"))
    with torch.no_grad():
        expected, before = change(model)(torch.tensor([ids])).logits[0], model(torch.tensor([ids])).logits[0]
    assert (expected - before).abs().max() > 0.02
    torch.testing.assert_close(all_logits(engine, ids, "k"), expected, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(all_logits(engine, ids, ""), before, rtol=1e-4, atol=2e-5)


PARAMETERS = ["experts.gate_up_proj", "experts.down_proj"]
PEFT_CASES: list[tuple[str, dict[str, Any]]] = [
    ("mixtral", {"target_modules": ["q_proj"], "target_parameters": PARAMETERS}),
    ("mixtral", {"target_modules": ["w1", "w2", "w3"]}),
    ("qwen3", {"target_modules": [], "target_parameters": ["mlp.experts.down_proj", "mlp.gate.weight"]}),
    ("qwen3", {"target_modules": [], "target_parameters": PARAMETERS, "rank_pattern": {"experts.down_proj": 4}}),
    ("gpt_oss", {"target_modules": ["o_proj"], "target_parameters": PARAMETERS, "use_rslora": True}),
]


@pytest.mark.parametrize(("kind", "config"), PEFT_CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_parameters_give_what_they_give_in_peft(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    model = make(kind)
    model.save_pretrained(tmp_path / "base")
    settings = {"r": 8, "lora_alpha": 12, "init_lora_weights": False}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**(settings | config))).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    engine, ids = load(tmp_path / "base"), ids_of(2, 19)
    engine.worker.read_adapter("k", str(tmp_path / "adapter"))
    with torch.no_grad():
        expected = adapted(torch.tensor([ids])).logits[0]
        adapted.disable_adapter_layers()
        before = adapted(torch.tensor([ids])).logits[0]
    assert (expected - before).abs().max() > 0.02
    torch.testing.assert_close(all_logits(engine, ids, "k"), expected, rtol=1e-4, atol=2e-5)


def stacked(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As PEFT saves them: of a [experts, rank, in] and b [experts, out, rank]."""
    return a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)


def test_older_versions_take_a_matrix_for_its_transposed(tmp_path: Path) -> None:
    """Their delta[e, i, o] = sum over r of B[o, r, e] A[e, r, i], where i are the rows of a matrix."""
    model = make("qwen3")
    model.save_pretrained(tmp_path / "base")
    a = torch.stack([halves(1, 2 * INNER, seed)[0] for seed in range(EXPERTS)])
    b = torch.stack([halves(HIDDEN, 1, seed)[1] for seed in range(EXPERTS)])
    names = zip("AB", stacked(a, b), strict=True)
    tensors = {f"model.layers.1.mlp.experts.lora_{kind}.weight": value for kind, value in names}
    write_adapter(tmp_path / "adapter", tensors, RANK, target_parameters=["gate_up_proj"], peft_version="0.18.1")
    changed = copy.deepcopy(model)
    changed.model.layers[1].mlp.experts.gate_up_proj.data += SCALING * torch.einsum("eor,eri->eio", b, a)
    engine, ids = load(tmp_path / "base"), ids_of(1, 15)
    engine.worker.read_adapter("k", str(tmp_path / "adapter"))
    with torch.no_grad():
        expected = changed(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(all_logits(engine, ids, "k"), expected, rtol=1e-4, atol=2e-5)


def test_a_gguf_adapter_has_the_stacks_of_a_models_file(tmp_path: Path) -> None:
    model = make("mixtral")
    model.save_pretrained(tmp_path / "base")
    changed, tensors = copy.deepcopy(model), {}
    for part, rows, columns in (("gate", INNER, HIDDEN), ("up", INNER, HIDDEN), ("down", HIDDEN, INNER)):
        a, b = (torch.stack(each) for each in zip(*(halves(rows, columns, e) for e in range(EXPERTS)), strict=True))
        tensors |= {f"blk.1.ffn_{part}_exps.weight.lora_a": a, f"blk.1.ffn_{part}_exps.weight.lora_b": b}
        experts = changed.model.layers[1].mlp.experts
        matrices = experts.down_proj.data if part == "down" else experts.gate_up_proj.data
        first = INNER if part == "up" else 0
        matrices[:, first : first + rows] += SCALING * b @ a
    write_gguf(tmp_path / "adapter.gguf", tensors, alpha=SCALING * RANK)
    engine, ids = load(tmp_path / "base"), ids_of(1, 15)
    engine.worker.read_adapter("k", str(tmp_path / "adapter.gguf"))
    with torch.no_grad():
        expected = changed(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(all_logits(engine, ids, "k"), expected, rtol=1e-4, atol=2e-5)
    half = {name: value[0] if name.endswith("b") else value for name, value in tensors.items()}
    with pytest.raises(CheckpointError, match="lora_b'?: it is not of all experts"):
        engine.worker.read_adapter("k", str(write_gguf(tmp_path / "half.gguf", half)))


@pytest.mark.parametrize("quantization", [None, "experts_int8"])
def test_no_reply_depends_on_the_adapters_of_others(tmp_path: Path, quantization: str | None) -> None:
    model = make("mixtral")
    model.save_pretrained(tmp_path / "base")
    engine = Engine(tmp_path / "base", {"kv_cache_dtype": "float32"}, LORA, max_model_len=128, dtype="float32",
                    quantization=quantization, logprobs_mode="raw_logits")  # fmt: skip
    for seed, key in enumerate("abc"):
        write_adapter(tmp_path / key, of_modules("mixtral", 10 * seed)[0], RANK)
        engine.worker.read_adapter(key, str(tmp_path / key))
    asked = [
        with_adapter(request(i, ids_of(i // 4, 30), max_tokens=8, logprobs=2), ["", *"abc"][i % 4]) for i in range(8)
    ]
    alone = {}
    for each in asked:
        alone |= engine.run([each], scheduler=engine.scheduler(prefix_caching=False)).replies
    assert len({tuple(alone[i].logprobs[0].top_logprobs) for i in range(8)}) == 8
    for limits, per_step in (({}, 0), ({}, 3), ({"max_num_batched_tokens": 16, "max_num_prefill_tokens": 16}, 0)):
        assert engine.run(asked, scheduler=engine.scheduler(**limits), per_step=per_step).replies == alone
    with torch.no_grad():
        expected = of_modules("mixtral", 0)[1](model)(torch.tensor([ids_of(1, 9)])).logits[0]
    found = all_logits(engine, ids_of(1, 9), "a")
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 if quantization else 2e-5)


def test_what_does_not_fit_the_experts_is_told_by_its_name(tmp_path: Path) -> None:
    make("qwen3").save_pretrained(tmp_path / "base")
    engine, name = load(tmp_path / "base"), "model.layers.0.mlp.experts"
    a, b = halves(2 * INNER, HIDDEN, 1, EXPERTS * RANK)
    cases: list[tuple[dict[str, torch.Tensor], dict[str, Any], str]] = [
        ({f"{name}.lora_A.weight": a[:12], f"{name}.lora_B.weight": b[:, :12]}, {}, "it is not of 4 experts"),
        ({f"{name}.lora_A.weight": a[:, :5], f"{name}.lora_B.weight": b}, {}, r"its shape is \[4, 5\]"),
        ({f"{name}.lora_A.weight": a[:7], f"{name}.lora_B.weight": b}, {}, "has the shape .7, 32., and"),
        ({f"{name}.lora_A.weight": a}, {}, "its other half is missing"),
        ({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, {"target_parameters": PARAMETERS}, "has 1 param"),
        ({f"{name}.9.up_proj.lora_A.weight": a[:4]}, {}, "the model has no such module"),
    ]
    for number, (tensors, config, message) in enumerate(cases):
        settings = {"target_parameters": PARAMETERS[:1], "peft_version": "0.21.2", **config}
        path = write_adapter(tmp_path / str(number), tensors, RANK, **settings)
        with pytest.raises(CheckpointError, match=message):
            engine.worker.read_adapter("k", str(path))
