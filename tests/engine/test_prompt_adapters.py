"""Prompt adapters in the engine: what PEFT's would compute, in any company, wherever they have to wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers

from engine.harness import Engine, Reply, request
from engine.test_lora import ALL, COMMON, LORA, SIZES, VOCAB, ids_of, logits, make, with_adapter
from models.towers import Case
from octavo.base.config import PromptAdapterConfig
from octavo.base.errors import InvalidConfig
from octavo.core.scheduler.scheduler import Scheduler
from octavo.wire.messages import AddRequest
from support.adapters import logits_behind, random_adapter, write_adapter, write_prompt_adapter
from support.pictures import pixels

PROMPTS = PromptAdapterConfig(enable_prompt_adapter=True, max_prompt_adapters=2, max_prompt_adapter_token=40)


def load(path: Path, **options: Any) -> Engine:
    given = {"dtype": "float32", "logprobs_mode": "raw_logits", "max_model_len": 128, "prompts": PROMPTS, **options}
    return Engine(path, {"kv_cache_dtype": "float32"}, **given)


def behind(message: AddRequest, key: str, count: int) -> AddRequest:
    """The request with `count` virtual tokens in front of its prompt."""
    return msgspec.structs.replace(message, adapter=key, num_virtual_tokens=count)


def rows_of(seed: int, count: int, width: int = 32) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def made(kind: str) -> Any:
    if kind not in ("granite", "minicpm3", "opt"):
        return make(kind)
    torch.manual_seed(3)
    if kind == "granite":
        factors = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 2.0}
        model: Any = transformers.GraniteForCausalLM(transformers.GraniteConfig(**COMMON, **SIZES, **factors))
    elif kind == "minicpm3":
        latents = {"kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16}
        sizes = {**SIZES, "num_key_value_heads": 4, **latents, "v_head_dim": 16, "dim_model_base": 16}
        model = transformers.MiniCPM3ForCausalLM(transformers.MiniCPM3Config(**COMMON, **sizes))
    else:
        config = transformers.OPTConfig(
            **COMMON, hidden_size=32, ffn_dim=48, word_embed_proj_dim=16, pad_token_id=1, bos_token_id=2
        )
        model = transformers.OPTForCausalLM(config)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def all_logits(engine: Engine, ids: list[int], key: str, count: int) -> torch.Tensor:
    asked = behind(request(1, ids, prompt_logprobs=VOCAB, logprobs=VOCAB, max_tokens=1), key, count)
    return logits(engine.run([asked, request(2, ids[:7], max_tokens=2)]).replies[1])


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3", "gpt2", "granite", "minicpm3", "opt"])
def test_logits_are_those_behind_the_rows(tmp_path: Path, kind: str) -> None:
    """Also where the model multiplies embeddings, adds learned positions to them, or makes them wide."""
    model = made(kind)
    model.save_pretrained(tmp_path / "base")
    rows = rows_of(5, 9, 16 if kind == "opt" else 32)
    engine, ids = load(tmp_path / "base"), ids_of(1, 21)
    info = engine.worker.read_adapter("k", str(write_prompt_adapter(tmp_path / "adapter", rows)))
    assert info.num_virtual_tokens == 9
    with torch.no_grad():
        before = model(torch.tensor([ids])).logits[0]
    expected = logits_behind(model, rows, ids)
    torch.testing.assert_close(all_logits(engine, ids, "k", 9), expected, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(all_logits(engine, ids[:1], "k", 9), expected[:1], rtol=1e-4, atol=2e-5)
    assert (expected - before).abs().max() > 0.02
    torch.testing.assert_close(all_logits(engine, ids, "", 0), before, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("method", ["PromptTuningConfig", "PromptEncoderConfig"])
def test_logits_are_those_of_peft(tmp_path: Path, method: str) -> None:
    peft = pytest.importorskip("peft")
    model = make("llama")
    model.save_pretrained(tmp_path / "base")
    options = {"encoder_hidden_size": 24} if method == "PromptEncoderConfig" else {}
    config = getattr(peft, method)(task_type="CAUSAL_LM", num_virtual_tokens=6, **options)
    adapted = peft.get_peft_model(model, config).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    engine, ids = load(tmp_path / "base"), ids_of(2, 19)
    assert engine.worker.read_adapter("k", str(tmp_path / "adapter")).num_virtual_tokens == 6
    with torch.no_grad():
        expected = adapted(torch.tensor([ids])).logits[0, 6:]
    torch.testing.assert_close(all_logits(engine, ids, "k", 6), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["gemma3", "qwen3-vl", "granite-vision"])
def test_rows_of_tokens_are_as_the_tokens_also_beside_pictures(tmp_path: Path, name: str) -> None:
    """Where inner layers take rows of a picture too, where embeddings are multiplied, or all that is given is."""
    case = Case(tmp_path / "base", name, lambda path: Engine(path, prompts=PROMPTS))
    before, ids = [5, 9, 2, 7, 6], [8, 3, 4]
    with torch.no_grad():
        rows = case.model.get_input_embeddings()(torch.tensor(before))
    case.engine.worker.read_adapter("k", str(write_prompt_adapter(tmp_path / "rows", rows)))
    whole = request(1, before + ids, max_tokens=4, logprobs=2)
    own = behind(request(2, ids, max_tokens=4, logprobs=2), "k", len(before))
    seen, media = case.prompt([pixels(24, 36, 1)])
    seeing = AddRequest(3, seen, request(3, seen, max_tokens=4).params, media=media)
    alone = {each.request_id: case.engine.run([each]).replies[each.request_id] for each in (whole, seeing)}
    found = case.engine.run([own, seeing]).replies
    assert found[2] == alone[1] and found[3] == alone[3]
    refused = case.engine.scheduler().add(behind(seeing, "k", len(before)))
    assert refused is not None and "takes no media beside it" in (refused.error or "")


# ---------------------------------------------------------------- in company
COUNTS = {"": 0, "a": 3, "b": 17, "c": 32, "lora": 0}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """With three prompt adapters for two places, and one of weights."""
    path = tmp_path_factory.mktemp("prompts")
    model = make("llama")
    model.save_pretrained(path / "base")
    engine = load(path / "base", lora=LORA)
    for seed, key in enumerate("abc"):
        engine.worker.read_adapter(key, str(write_prompt_adapter(path / key, rows_of(seed, COUNTS[key]))))
    tensors = random_adapter(model, ALL, 8, 1)
    tensors["model.embed_tokens.lora_embedding_A"] = torch.randn(8, VOCAB)
    tensors["model.embed_tokens.lora_embedding_B"] = 0.2 * torch.randn(32, 8)
    engine.worker.read_adapter("lora", str(write_adapter(path / "lora", tensors, 8)))
    return engine


def mixed_requests() -> list[AddRequest]:
    """Of all adapters and none, on few prompts, so that only the adapter tells their blocks apart."""
    sampled = {"temperature": 0.9, "seed": 4, "repetition_penalty": 1.3}
    made = []
    for i in range(15):
        key = list(COUNTS)[i % 5]
        params = sampled if i % 3 == 0 else {}
        made.append(behind(request(i, ids_of(i % 2, 45), max_tokens=12, **params), key, COUNTS[key]))
    return made


@pytest.fixture(scope="module")
def alone(engine: Engine) -> dict[int, Reply]:
    replies: dict[int, Reply] = {}
    for each in mixed_requests():
        replies |= engine.run([each], scheduler=engine.scheduler(prefix_caching=False)).replies
    assert len({tuple(replies[i].token_ids) for i in (5, 1, 7, 13, 9)}) == 5, "each adapter has a text of its own"
    return replies


@pytest.mark.parametrize(
    ("limits", "per_step"),
    [({}, 0), ({}, 3), ({"max_num_batched_tokens": 16, "max_num_prefill_tokens": 16}, 0),
     ({"max_prompt_adapters": 1}, 2), ({"num_kv_blocks": 9}, 0)],
    ids=["together", "one after the other", "prompts in pieces", "one slot", "preempted"],
)  # fmt: skip
def test_no_reply_depends_on_the_adapters_of_others(
    engine: Engine, alone: dict[int, Reply], limits: dict[str, int], per_step: int
) -> None:
    run = engine.run(mixed_requests(), scheduler=engine.scheduler(**limits), per_step=per_step)
    assert run.replies == alone
    assert (run.num_preemptions > 0) == ("num_kv_blocks" in limits)


def test_blocks_are_found_behind_the_same_rows_alone(engine: Engine, alone: dict[int, Reply]) -> None:
    scheduler = engine.scheduler()
    hits = [hits_of(engine, scheduler, each, alone) for each in mixed_requests()[:10]]
    # The prompt of request i is that of i % 2, its adapter i % 5: only blocks of b's and c's rows alone are another's.
    assert hits == [0] * 7 + [16, 32, 0]
    assert hits_of(engine, scheduler, mixed_requests()[12], alone) == 48  # 17 + 45 tokens, as request 2 had


def hits_of(engine: Engine, scheduler: Scheduler, message: AddRequest, alone: dict[int, Reply]) -> int:
    before = scheduler.stats().prefix_cache_hits
    assert engine.run([message], scheduler=scheduler).replies[message.request_id] == alone[message.request_id]
    return scheduler.stats().prefix_cache_hits - before


def test_virtual_tokens_count_as_tokens_and_are_no_text(engine: Engine) -> None:
    """They take their part of the context; a penalty of what the prompt says does not see them."""
    refused = engine.scheduler().add(behind(request(1, ids_of(1, 90), max_tokens=7), "c", 32), None)
    assert refused is not None and "needs 129 tokens" in (refused.error or "")
    longest = behind(request(1, ids_of(1, 90), max_tokens=6), "c", 32)
    assert len(engine.run([longest]).replies[1].token_ids) == 6
    asked = request(1, [9, 8, 7], logit_bias={0: 100.0, 1: 99.0}, max_tokens=1)
    penalised = msgspec.structs.replace(asked.params, repetition_penalty=2.0)
    asked = msgspec.structs.replace(asked, params=penalised)
    assert engine.run([behind(asked, "a", 3)]).replies[1].token_ids == [0]


def test_a_step_without_adapters_is_that_of_an_engine_without(engine: Engine) -> None:
    plain = load(Path(engine.config.model.model), prompts=PromptAdapterConfig())
    asked = [request(i, ids_of(i, 9 + i)) for i in range(3)]
    assert engine.run(asked).replies == plain.run(asked).replies
    refused = plain.scheduler().add(behind(asked[0], "a", 3))
    assert refused is not None and "--enable-prompt-adapter" in (refused.error or "")
    only_prompts = load(Path(engine.config.model.model))
    assert only_prompts.run(asked).replies == plain.run(asked).replies
    refused = only_prompts.scheduler().add(with_adapter(asked[0], "lora"))
    assert refused is not None and "--enable-lora" in (refused.error or "")


def test_models_whose_layers_want_token_ids_are_refused(tmp_path: Path) -> None:
    config = transformers.Gemma3nTextConfig(
        **COMMON, **SIZES, head_dim=8, hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB,
        laurel_rank=4, num_kv_shared_layers=0, activation_sparsity_pattern=[0.0, 0.0],
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    transformers.Gemma3nForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(InvalidConfig, match="--enable-prompt-adapter: models whose layers have inputs of their own"):
        load(tmp_path)
