"""Vectors, classes and scores, compared with transformers; and that no company changes them."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import numpy as np
import pytest
import torch
import transformers

from octavo.base.config import EngineConfig, ModelConfig
from octavo.base.errors import CheckpointError, DeviceError, InvalidConfig
from octavo.base.host import FreeMemory
from octavo.base.params import PoolingParams, SamplingParams
from octavo.core.scheduler.scheduler import Scheduler
from octavo.models.loader import load_model
from octavo.models.pooling import gives_vectors
from octavo.models.registry import FAMILIES
from octavo.ops.cpu.linear import LinearWeight
from octavo.ops.table import bind
from octavo.wire.messages import AddRequest, EngineCoreOutput
from octavo.worker.encoder import EncoderRunner
from octavo.worker.worker import Worker
from support.pooled import CLASSES, DECODER, DISTIL, SMALL, TEXTS, Pooled, unit

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def one_torch_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", SMALL),
    "roberta": ("RobertaModel", {**SMALL, "type_vocab_size": 1, "pad_token_id": 1}),
    "xlm-roberta": ("XLMRobertaModel", {**SMALL, "type_vocab_size": 1, "pad_token_id": 1}),
    "distilbert": ("DistilBertModel", DISTIL),
    "bert classes": ("BertForSequenceClassification", {**SMALL, **CLASSES}),
    "roberta score": (
        "RobertaForSequenceClassification", {**SMALL, "type_vocab_size": 1, "pad_token_id": 1, "num_labels": 1}
    ),
    "distilbert classes": ("DistilBertForSequenceClassification", {**DISTIL, **CLASSES}),
    "qwen3": ("Qwen3Model", DECODER),
    "mistral": ("MistralModel", {**DECODER, "sliding_window": None}),
    "llama classes": ("LlamaForSequenceClassification", {**DECODER, **CLASSES, "pad_token_id": 0}),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    known: dict[str, Pooled] = {}

    def make(name: str) -> Pooled:
        if name not in known:
            known[name] = Pooled(tmp_path_factory.mktemp("pooled"), *MODELS[name])
        return known[name]

    return make


@pytest.mark.parametrize("name", MODELS)
def test_what_comes_out_is_transformers_and_depends_on_no_company(made: Any, name: str) -> None:
    model = made(name)
    together = model.run(TEXTS)
    for number, (ids, found) in enumerate(zip(TEXTS, together, strict=True)):
        if model.info.pooling.classes:
            logits = model.logits(ids)
            expected = (torch.sigmoid(logits) if len(logits) == 1 else torch.softmax(logits, -1)).numpy()
            assert np.abs(found - expected).max() < 1e-5
        else:
            row = model.hidden(ids)[0 if model.is_encoder else -1]
            assert 1 - float(found @ unit(row)) < 1e-6
        assert np.array_equal(model.run([ids])[0], found), number
    shuffled = [3, 0, 4, 2, 1]
    for place, found in zip(shuffled, model.run([TEXTS[place] for place in shuffled]), strict=True):
        assert np.array_equal(found, together[place])


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_every_kind_of_pooling_however_a_prompt_is_cut(made: Any, name: str) -> None:
    model = made(name)
    kinds = [PoolingParams(kind=kind, normalize=False) for kind in ("cls", "last", "mean", "all")]
    ids = TEXTS[2]
    found = model.run([ids] * 4, *kinds)
    rows = model.hidden(ids)
    for got, expected in zip(found, (rows[0], rows[-1], rows.mean(0), rows.flatten()), strict=True):
        assert np.abs(got - expected.numpy()).max() < 2e-5
    if name == "qwen3":
        for step in (1, 7, 64):
            for one, again in zip(model.run([ids] * 4, *kinds, step=step), found, strict=True):
                assert np.array_equal(one, again), step
    [cut] = model.run([ids], PoolingParams(dimensions=16))
    [whole] = model.run([ids], PoolingParams(normalize=False))
    assert np.abs(cut - unit(torch.tensor(whole[:16]))).max() < 1e-6


def test_two_texts_are_told_apart_by_their_types(made: Any) -> None:
    model = made("bert classes")
    ids, second = TEXTS[3], 8
    types = torch.tensor([[0] * second + [1] * (len(ids) - second)])
    expected = torch.softmax(model.logits(ids, token_type_ids=types), -1).numpy()
    pair, plain = model.run([ids, ids], PoolingParams(second_from=second), PoolingParams())
    assert np.abs(pair - expected).max() < 1e-5
    assert np.abs(plain - expected).max() > 1e-4
    [values] = model.run([ids], PoolingParams(activation=False))
    assert np.abs(values - model.logits(ids).numpy()).max() < 1e-4


def test_files_of_sentence_transformers_and_the_flag(made: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = Pooled(tmp_path, "BertModel", SMALL)
    modules = ["Transformer", "Pooling", "Dense", "Normalize"]
    listed = [{"idx": i, "name": str(i), "path": f"{i}_{name}", "type": f"sentence_transformers.models.{name}"}
              for i, name in enumerate(modules)]  # fmt: skip
    listed[0]["path"] = ""
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    for i, name in enumerate(modules[1:], 1):
        (tmp_path / f"{i}_{name}").mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    dense = {
        "in_features": 64,
        "out_features": 24,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (tmp_path / "2_Dense" / "config.json").write_text(json.dumps(dense))
    weight, bias = torch.randn(24, 64), torch.randn(24)
    save_file({"linear.weight": weight, "linear.bias": bias}, tmp_path / "2_Dense" / "model.safetensors")
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 40}')
    (tmp_path / "config_sentence_transformers.json").write_text('{"prompts": {"query": "q: "}}')
    model.load()
    pooling_info = model.info.pooling
    assert pooling_info is not None and model.info.max_model_len == 40
    assert (pooling_info.kind, pooling_info.dimension, pooling_info.prompts) == ("mean", 24, {"query": "q: "})
    [found] = model.run(TEXTS[:1])
    assert np.abs(found - unit(torch.tanh(weight @ model.hidden(TEXTS[0]).mean(0) + bias))).max() < 1e-6

    model.load(pooler_config='{"pooling_type": "CLS", "normalize": false}', max_model_len=128)
    assert model.info.max_model_len == 128
    [found] = model.run(TEXTS[:1])
    assert np.abs(found - torch.tanh(weight @ model.hidden(TEXTS[0])[0] + bias).numpy()).max() < 1e-5
    for given, told in (('{"pooling_type": "MAX"}', "pooling_type"), ('{"step_tag_id": 3}', "step_tag_id")):
        with pytest.raises(InvalidConfig, match=told):
            model.load(pooler_config=given)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(CheckpointError, match="pooling_mode_max_tokens"):
        model.load()
    listed[1]["path"] = "../elsewhere"
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match="outside"):
        model.load()


def test_a_decoder_whose_tokens_see_all_of_their_text(tmp_path: Path) -> None:
    model = Pooled(tmp_path, "Qwen2Model", {**SMALL, "num_key_value_heads": 2}, hf_overrides='{"is_causal": false}')
    assert model.info.pooling is not None and model.info.pooling.is_whole
    mask = torch.zeros(1, 1, len(TEXTS[2]), len(TEXTS[2]))
    [found] = model.run([TEXTS[2]])
    assert 1 - float(found @ unit(model.hidden(TEXTS[2], attention_mask=mask)[-1])) < 1e-6


def test_a_model_that_generates_may_give_vectors(tmp_path: Path) -> None:
    model = Pooled(tmp_path, "Qwen3ForCausalLM", DECODER, task="embed")
    [found] = model.run(TEXTS[:1])
    assert 1 - float(found @ unit(model.hidden(TEXTS[0])[-1])) < 1e-6
    with pytest.raises(CheckpointError, match="--task classify"):
        model.load(task="classify")
    model.load()
    assert model.info.pooling is None


def test_room_for_weights_is_told_of_what_they_become(tmp_path: Path) -> None:
    """Files of float32 take half of their bytes."""
    Pooled(tmp_path, "BertModel", SMALL)
    free = FreeMemory((tmp_path / "model.safetensors").stat().st_size * 3 // 4, "here")
    for options in ({}, {"float32_matmul_precision": "highest"}):
        config = ModelConfig(model=str(tmp_path), **options)
        with pytest.raises(DeviceError, match="weights take") if options else nullcontext():
            load_model(config, bind(), 64, lambda name, detail: None, free=free)


def test_steps_of_whole_texts_run_while_the_next_is_planned(made: Any) -> None:
    model = made("bert")
    alone = [model.run([ids])[0] for ids in TEXTS]
    model.load()  # with no room yet: the second step is the larger one, and finds the first under way
    assert model.info.plans_ahead
    info = msgspec.structs.replace(model.info, max_num_batched_tokens=max(map(len, TEXTS)))
    scheduler = Scheduler(model.config, info)
    for number, ids in enumerate(TEXTS):
        scheduler.add(AddRequest(number, ids, SamplingParams(max_tokens=1), pooling=PoolingParams()))
    found, under_way = {}, []
    while scheduler.has_work:
        plan = scheduler.schedule() if not under_way or scheduler.can_plan_ahead else None
        if plan is not None and plan.total_num_scheduled_tokens:
            under_way.append((plan, model.worker.submit(plan)))
        if len(under_way) == 2 or plan is None or not plan.total_num_scheduled_tokens:
            plan, step = under_way.pop(0)
            for output in scheduler.update(plan, model.worker.collect(step)):
                found[output.request_id] = np.frombuffer(output.pooled, "<f4")
    assert all(np.array_equal(found[number], one) for number, one in enumerate(alone))


def test_a_step_that_finds_no_memory_fails_its_own_texts(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("bert")
    [expected] = model.run(TEXTS[:1])
    scheduler = Scheduler(model.config, model.info)

    def outputs() -> list[EngineCoreOutput]:
        scheduler.add(AddRequest(1, TEXTS[0], SamplingParams(max_tokens=1), pooling=PoolingParams()))
        plan = scheduler.schedule()
        return scheduler.update(plan, model.worker.execute(plan))

    with monkeypatch.context() as patch:
        patch.setattr(EncoderRunner, "run", Mock(side_effect=MemoryError("no 4 bytes")))
        [failed] = outputs()
    assert failed.finish_reason == "error" and "no 4 bytes" in str(failed.error)
    [output] = outputs()
    assert output.pooled is not None and np.array_equal(np.frombuffer(output.pooled, "<f4"), expected)


@pytest.mark.parametrize("name", ["minilm_hf", "mpnet_hf"])
def test_real_weights_are_transformers_vectors(name: str, request: pytest.FixtureRequest) -> None:
    """A fine-tune of all-MiniLM-L6, and all-mpnet-base-v2, with sentence-transformers' files."""
    path: Path = request.getfixturevalue(name)
    worker = Worker(EngineConfig(model=ModelConfig(model=str(path))), lambda name, detail: None)
    info = worker.load()
    assert info.pooling is not None and (info.pooling.kind, info.pooling.normalizes) == ("mean", True)
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(1000, 30000, (length,), generator=generator).tolist() for length in (3, 250, 40)]
    reference = transformers.AutoModel.from_pretrained(path).eval().float()
    scheduler = Scheduler(EngineConfig(), info)
    for number, ids in enumerate(texts):
        scheduler.add(AddRequest(number, ids, SamplingParams(max_tokens=1), pooling=PoolingParams()))
    plan = scheduler.schedule()
    for output in scheduler.update(plan, worker.execute(plan)):
        with torch.no_grad():
            rows = reference(input_ids=torch.tensor([texts[output.request_id]])).last_hidden_state[0]
        assert output.pooled is not None
        assert 1 - float(np.frombuffer(output.pooled, "<f4") @ unit(rows.mean(0))) < 1e-6


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_products_may_be_rounded_where_nobody_asked_for_float32(made: Any, name: str) -> None:
    model = made(name)
    exact = model.run(TEXTS)
    model.load(float32_matmul_precision="high")
    rounded = model.run(TEXTS)
    for number, (one, other) in enumerate(zip(exact, rounded, strict=True)):
        assert not np.array_equal(one, other)
        assert 1 - float(one @ other) < 1e-6
        assert np.array_equal(model.run([TEXTS[number]])[0], other), "the company counts"
    model.load(dtype="auto")
    assert all(map(np.array_equal, model.run(TEXTS), rounded))
    model.load(dtype="auto", float32_matmul_precision="highest")
    assert all(map(np.array_equal, model.run(TEXTS), exact))


@pytest.mark.parametrize(
    ("options", "kinds"),
    [({}, {"f32"}), ({"float32_matmul_precision": "high"}, {"f32", "fixed16"}), ({"dtype": "bfloat16"}, {"bf16"})],
)
def test_what_generates_is_rounded_where_somebody_asked(tmp_path: Path, options: Any, kinds: set[str]) -> None:
    """The output matrix never."""
    Pooled(tmp_path, "Qwen3ForCausalLM", DECODER, task="embed")
    loaded = load_model(ModelConfig(model=str(tmp_path), **options), bind(), 64, lambda name, detail: None)
    found = {weight.kind for weight in loaded.weights.values() if isinstance(weight, LinearWeight)}
    assert found == kinds and loaded.weights["lm_head"].kind in ("f32", "bf16")


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("QWenLMHeadModel", False), ("JAISLMHeadModel", False), ("GPT2LMHeadModel", False), ("ChatGLMModel", False),
        ("AquilaModel", False), ("LlamaForCausalLM", False), ("GPT2Model", True), ("Qwen3Model", True),
        ("MistralModel", True), ("LlamaForSequenceClassification", True),
    ],
)  # fmt: skip
def test_what_generates_is_not_taken_for_a_model_of_vectors(name: str, is_one: bool) -> None:
    values = {"architectures": [name]}
    assert gives_vectors(values, ModelConfig(model="m"), FAMILIES, has_modules=False) is is_one
