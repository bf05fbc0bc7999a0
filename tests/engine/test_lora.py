"""Adapters in the engine: what PEFT's would compute, in any company, wherever they have to wait for their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers

from engine.harness import Engine, Reply, request
from octavo.base.config import LoraConfig
from octavo.base.errors import CheckpointError
from octavo.core.scheduler.scheduler import Scheduler
from octavo.wire.messages import AddRequest
from support.adapters import merged, random_adapter, write_adapter

VOCAB = 64
COMMON = {"vocab_size": VOCAB, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
SIZES = {"hidden_size": 32, "num_key_value_heads": 2, "intermediate_size": 48}
LORA = LoraConfig(enable_lora=True, max_loras=2, max_lora_rank=16, max_cpu_loras=8)
ALL = r".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def make(kind: str) -> Any:
    torch.manual_seed(3)
    if kind == "llama":
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**COMMON, **SIZES))
    elif kind == "qwen2":
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**COMMON, **SIZES, tie_word_embeddings=True))
    elif kind == "gemma3":
        config = transformers.Gemma3TextConfig(**COMMON, **SIZES, head_dim=8, sliding_window=8)
        model = transformers.Gemma3ForCausalLM(config)
    else:
        config = transformers.GPT2Config(
            vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0
        )
        model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def load(path: Path) -> Engine:
    options = {"dtype": "float32", "logprobs_mode": "raw_logits"}
    return Engine(path, {"kv_cache_dtype": "float32"}, LORA, max_model_len=128, **options)


def ids_of(seed: int, count: int) -> list[int]:
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def with_adapter(message: AddRequest, key: str) -> AddRequest:
    return msgspec.structs.replace(message, adapter=key)


def logits(reply: Reply) -> torch.Tensor:
    """Of the prompt's positions, where all of the vocabulary was asked for."""
    rows = [*reply.prompt_logprobs, reply.logprobs[0]]
    found = torch.empty(len(rows), VOCAB)
    for row, entry in zip(found, rows, strict=True):
        row[entry.top_ids] = torch.tensor(entry.top_logprobs)
    return found


def all_logits(engine: Engine, ids: list[int], key: str) -> torch.Tensor:
    asked = with_adapter(request(1, ids, prompt_logprobs=VOCAB, logprobs=VOCAB, max_tokens=1), key)
    return logits(engine.run([asked, request(2, ids[:7], max_tokens=2)]).replies[1])


@pytest.mark.parametrize(
    ("kind", "targets", "config"),
    [
        ("llama", ALL, {"lora_alpha": 16}),
        ("qwen2", r".*(q|v|down)_proj", {"use_rslora": True, "target_modules": "all-linear"}),
        ("gemma3", ALL, {"rank_pattern": {"k_proj": 8, r".*\.1\.mlp\.up_proj": 8}, "alpha_pattern": {"nothing": 3}}),
        ("gpt2", r".*(c_attn|c_proj|c_fc)", {"fan_in_fan_out": True}),
    ],
)
def test_logits_are_those_of_the_model_with_the_adapter_merged(
    tmp_path: Path, kind: str, targets: str, config: dict[str, Any]
) -> None:
    model = make(kind)
    model.save_pretrained(tmp_path / "base")
    tensors, alpha = random_adapter(model, targets, 8, 5), config.get("lora_alpha", 12)
    write_adapter(tmp_path / "adapter", tensors, 8, **{"lora_alpha": alpha, **config})
    engine, ids = load(tmp_path / "base"), ids_of(1, 21)
    engine.worker.read_adapter("k", str(tmp_path / "adapter"))
    own = merged(model, tensors, alpha / 8**0.5 if config.get("use_rslora") else alpha / 8)
    with torch.no_grad():
        expected, before = own(torch.tensor([ids])).logits[0], model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(all_logits(engine, ids, "k"), expected, rtol=1e-4, atol=2e-5)
    assert (expected - before).abs().max() > 0.05
    torch.testing.assert_close(all_logits(engine, ids, ""), before, rtol=1e-4, atol=2e-5)


PEFT_CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    ("llama", {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    ("qwen2", {"target_modules": "all-linear", "bias": "lora_only"}),
    ("qwen2", {"target_modules": ["q_proj", "k_proj"], "use_dora": True, "bias": "all"}),
    ("qwen2", {"target_modules": ["v_proj"], "lora_bias": True}),
    ("gemma3", {"target_modules": ["embed_tokens"]}),
    ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True}),
    (
        "llama",
        {
            "target_modules": "all-linear",
            "rank_pattern": {"k_proj": 4, r".*\.1\.mlp\..*_proj": 16},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 40, "down_proj": 5},
        },
    ),
    ("llama", {"target_modules": r".*layers\.1\.(self_attn|mlp)\.(q|o|up|down)_proj", "exclude_modules": r".*o_proj"}),
    ("llama", {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}),
    ("qwen2", {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}),
    ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    ("qwen2", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
]


@pytest.mark.parametrize(("kind", "config"), PEFT_CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_logits_are_those_of_peft(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    peft = pytest.importorskip("peft")
    model = make(kind)
    model.save_pretrained(tmp_path / "base")
    settings = {"r": 8, "lora_alpha": 12, "init_lora_weights": False}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**(settings | config))).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    engine, ids = load(tmp_path / "base"), ids_of(2, 19)
    engine.worker.read_adapter("k", str(tmp_path / "adapter"))
    with torch.no_grad():
        expected = adapted(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(all_logits(engine, ids, "k"), expected, rtol=1e-4, atol=2e-5)


def test_modules_may_be_restricted(tmp_path: Path) -> None:
    model = make("llama")
    model.save_pretrained(tmp_path / "base")
    limits = LoraConfig(enable_lora=True, lora_target_modules=["q_proj", "self_attn.v_proj"])
    engine = Engine(tmp_path / "base", {"kv_cache_dtype": "float32"}, limits, max_model_len=128, dtype="float32")
    for targets in (r".*(q|v)_proj", r".*\.1\.(self_attn.q|mlp.up)_proj"):
        write_adapter(tmp_path / "adapter", random_adapter(model, targets, 8, 5), 8)
        if "up" not in targets:
            assert engine.worker.read_adapter("k", str(tmp_path / "adapter")).num_extra == 0
            continue
        with pytest.raises(CheckpointError, match=r"1.mlp.up_proj.lora_A.* --lora-target-modules allows"):
            engine.worker.read_adapter("k", str(tmp_path / "adapter"))


# ---------------------------------------------------------------- in company
@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """With adapters a, b, c and d, of which d changes the embedding and the output too."""
    path = tmp_path_factory.mktemp("lora")
    model = make("llama")
    model.save_pretrained(path / "base")
    engine = load(path / "base")
    for number, key in enumerate("abcd"):
        tensors = random_adapter(model, ALL, 4 + 4 * number, number)
        if key == "d":
            tensors |= random_adapter(model, "lm_head", 16, 9)
            tensors["model.embed_tokens.lora_embedding_A"] = torch.randn(16, VOCAB)
            tensors["model.embed_tokens.lora_embedding_B"] = 0.2 * torch.randn(32, 16)
        write_adapter(path / key, tensors, 4 + 4 * number)
        engine.worker.read_adapter(key, str(path / key))
    return engine


def mixed_requests() -> list[AddRequest]:
    """Of all adapters and none, on few prompts, so that only the adapter tells their blocks apart."""
    sampled = {"temperature": 0.9, "seed": 4}
    made = []
    for i in range(12):
        params = sampled if i % 3 == 0 else {}
        made.append(with_adapter(request(i, ids_of(i % 2, 45), max_tokens=12, **params), ["", *"abcd"][i % 5]))
    return made


@pytest.fixture(scope="module")
def alone(engine: Engine) -> dict[int, Reply]:
    replies: dict[int, Reply] = {}
    for each in mixed_requests():
        replies |= engine.run([each], scheduler=engine.scheduler(prefix_caching=False)).replies
    of_adapters = [tuple(replies[i].token_ids) for i in (5, 1, 7, 3, 9)]
    assert len(set(of_adapters)) == 5, "each adapter has a text of its own"
    return replies


@pytest.mark.parametrize(
    ("limits", "per_step"),
    [({}, 0), ({}, 3), ({"max_num_batched_tokens": 16, "max_num_prefill_tokens": 16}, 0), ({"max_loras": 1}, 2),
     ({"num_kv_blocks": 8}, 0)],
    ids=["together", "one after the other", "prompts in pieces", "one slot", "preempted"],
)  # fmt: skip
def test_no_reply_depends_on_the_adapters_of_others(
    engine: Engine, alone: dict[int, Reply], limits: dict[str, int], per_step: int
) -> None:
    """Two slots for four adapters: they come and go while others run."""
    run = engine.run(mixed_requests(), scheduler=engine.scheduler(**limits), per_step=per_step)
    assert run.replies == alone
    assert (run.num_preemptions > 0) == ("num_kv_blocks" in limits)


def test_blocks_are_found_by_requests_with_the_same_adapter_alone(engine: Engine, alone: dict[int, Reply]) -> None:
    scheduler = engine.scheduler()
    hits = [hits_of(engine, scheduler, each, alone) for each in mixed_requests()[:10]]
    # The prompt of request i is that of i % 2, its adapter i % 5: none of ten has both of another.
    assert hits == [0] * 10
    assert hits_of(engine, scheduler, mixed_requests()[11], alone) == 32  # it has those of request 1


def hits_of(engine: Engine, scheduler: Scheduler, message: AddRequest, alone: dict[int, Reply]) -> int:
    before = scheduler.stats().prefix_cache_hits
    assert engine.run([message], scheduler=scheduler).replies[message.request_id] == alone[message.request_id]
    return scheduler.stats().prefix_cache_hits - before


def test_a_step_without_adapters_is_that_of_an_engine_without(tmp_path: Path, engine: Engine) -> None:
    plain = Engine(
        Path(engine.config.model.model), {"kv_cache_dtype": "float32"}, max_model_len=128, dtype="float32",
        logprobs_mode="raw_logits",
    )  # fmt: skip
    asked = [request(i, ids_of(i, 9 + i)) for i in range(3)]
    assert engine.run(asked).replies == plain.run(asked).replies
    refused = plain.scheduler().add(with_adapter(asked[0], "a"))
    assert refused is not None and "--enable-lora" in (refused.error or "")
