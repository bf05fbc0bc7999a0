"""Encoders and rerankers: what comes out is what their authors have, alone and in company."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.base.errors import CheckpointError
from octavo.base.params import PoolingParams
from support.encoder_gguf import write_gguf
from support.plain_encoders import jina_v2_rows, make_jina_v2, make_nomic_moe, nomic_moe_rows
from support.pooled import CLASSES, DECODER, SMALL, TEXTS, VOCAB, Pooled, Served, unit

GEMMA = {
    **DECODER, "num_hidden_layers": 3, "sliding_window": 16, "use_bidirectional_attention": True,
    "query_pre_attn_scalar": 16, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}  # fmt: skip
MODERN = {
    **SMALL, "num_hidden_layers": 4, "local_attention": 16, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    "cls_token_id": 2, "sep_token_id": 1,
}  # fmt: skip
BIASED = {"norm_bias": True, "classifier_bias": True, "mlp_bias": True, "attention_bias": True}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "embeddinggemma": ("Gemma3TextModel", GEMMA, "mean"),
    "modernbert": ("ModernBertModel", MODERN, "cls"),
    "modernbert classes": ("ModernBertForSequenceClassification", {**MODERN, **CLASSES}, "cls"),
    "modernbert score": (
        "ModernBertForSequenceClassification", {**MODERN, **BIASED, "num_labels": 1, "classifier_pooling": "mean"},
        "mean",
    ),
    "mpnet": ("MPNetModel", SMALL, "cls"),
    "mpnet classes": ("MPNetForSequenceClassification", {**SMALL, **CLASSES}, "cls"),
    "gte": ("GteModel", SMALL, "cls"),
    "gte classes": ("GteForSequenceClassification", {**SMALL, **CLASSES}, "cls"),
    "jina v3": ("JinaEmbeddingsV3Model", SMALL, "mean"),
    "jina v3 classes": ("JinaEmbeddingsV3ForSequenceClassification", {**SMALL, **CLASSES}, "cls"),
    "nomic": ("NomicBertModel", SMALL, "mean"),
    "nomic classes": ("NomicBertForSequenceClassification", {**SMALL, **CLASSES}, "cls"),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    known: dict[str, Pooled] = {}

    def make(name: str) -> Pooled:
        if name not in known:
            known[name] = Pooled(tmp_path_factory.mktemp("encoder"), *MODELS[name][:2])
        return known[name]

    return make


def check_vectors(model: Served, rows_of: Callable[[list[int]], torch.Tensor], kind: str) -> None:
    """And that no company changes them, bit for bit."""
    together = model.run(TEXTS)
    for ids, found in zip(TEXTS, together, strict=True):
        rows = rows_of(ids)
        assert 1 - float(found @ unit(rows[0] if kind == "cls" else rows.mean(0))) < 1e-6
        assert np.array_equal(model.run([ids])[0], found)


def check_values(model: Served, logits_of: Callable[[list[int]], torch.Tensor]) -> None:
    together = model.run(TEXTS, PoolingParams(activation=False))
    for ids, found in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(torch.tensor(found), logits_of(ids), rtol=1e-4, atol=1e-4)
        assert np.array_equal(model.run([ids], PoolingParams(activation=False))[0], found)


@pytest.mark.parametrize("name", MODELS)
def test_what_comes_out_is_transformers(made: Any, name: str) -> None:
    model = made(name)
    pooling = model.info.pooling
    assert pooling.kind == MODELS[name][2] and pooling.is_whole
    if pooling.classes:
        check_values(model, model.logits)
    else:
        check_vectors(model, model.hidden, pooling.kind)


def test_the_files_of_embeddinggemma(tmp_path: Path) -> None:
    """The mean, two matrices and the length 1; prompts by name."""
    model = Pooled(tmp_path, "Gemma3TextModel", GEMMA)
    wide, narrow = torch.randn(80, 64), torch.randn(24, 80)
    kinds = ("Transformer", "Pooling", "Dense", "Dense", "Normalize")
    paths = ["" if kind == "Transformer" else f"{number}_{kind}" for number, kind in enumerate(kinds)]
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in zip(kinds, paths, strict=True)
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true, "include_prompt": true}')
    dense: dict[str, Any] = {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"}
    for path, weight in ((paths[2], wide), (paths[3], narrow)):
        (tmp_path / path).mkdir()
        sizes = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
        (tmp_path / path / "config.json").write_text(json.dumps({**dense, **sizes}))
        save_file({"linear.weight": weight}, tmp_path / path / "model.safetensors")
    prompts = {"query": "task: search result | query: ", "document": "title: none | text: "}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    model.load()
    pooling = model.info.pooling
    assert pooling is not None
    assert (pooling.dimension, pooling.normalizes, pooling.prompts) == (24, True, prompts)
    for ids, found in zip(TEXTS, model.run(TEXTS), strict=True):
        assert 1 - float(found @ unit(narrow @ (wide @ model.hidden(ids).mean(0)))) < 1e-6
    for given in ({"use_residual": True}, {"module_input_name": "token_embeddings"}):
        (tmp_path / paths[3] / "config.json").write_text(json.dumps({**dense, **sizes, **given}))
        with pytest.raises(CheckpointError, match="use_residual"):
            model.load()


def test_two_texts_are_told_apart_by_their_types_without_a_table_of_positions(made: Any) -> None:
    model = made("nomic classes")
    ids, second = TEXTS[3], 8
    types = torch.tensor([[0] * second + [1] * (len(ids) - second)])
    raw = PoolingParams(activation=False)
    pair, plain = model.run([ids, ids], msgspec.structs.replace(raw, second_from=second), raw)
    torch.testing.assert_close(torch.tensor(pair), model.logits(ids, token_type_ids=types), rtol=1e-4, atol=1e-4)
    assert np.abs(pair - plain).max() > 1e-3


#: What transformers calls tensors of files whose authors call them otherwise, in part.
NAMES = {
    "gte": {
        "attention.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "mlp.up_gate_proj": ("mlp.up_proj", "mlp.gate_proj"),
    },
    "jina v3": {"mixer.Wqkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")},
    "nomic": {"attn.Wqkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")},
}


@pytest.mark.parametrize("name", NAMES)
def test_files_of_either_author_are_the_same_model(made: Any, name: str, tmp_path: Path) -> None:
    """Which of the two transformers writes is its own affair."""
    model = made(name)
    values = model.reference.state_dict()
    save_file({key: value.contiguous() for key, value in values.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((model.directory / "config.json").read_text())
    written = load_file(model.directory / "model.safetensors")
    assert written.keys() != values.keys() and any(whole in key for key in written for whole in NAMES[name])
    for one, other in zip(Served(tmp_path).run(TEXTS), model.run(TEXTS), strict=True):
        assert np.array_equal(one, other)


def test_gte_of_its_authors(made: Any, tmp_path: Path) -> None:
    model = made("gte")
    values = load_file(model.directory / "model.safetensors")
    save_file(
        {f"new.{name.removeprefix('new.')}": value for name, value in values.items()}, tmp_path / "model.safetensors"
    )
    own = {
        "architectures": ["NewModel"], "model_type": "new", "position_embedding_type": "rope", "rope_theta": 160000,
        "layer_norm_type": "layer_norm", "pack_qkv": True, "type_vocab_size": 1, "layer_norm_eps": 1e-12,
        "hidden_act": "gelu", **SMALL,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(own))
    plain = Served(tmp_path)
    for one, other in zip(plain.run(TEXTS), model.run(TEXTS), strict=True):
        assert np.array_equal(one, other)
    # Stretched: theta times the factor, and each frequency divided by its root of half a head.
    (tmp_path / "config.json").write_text(json.dumps({**own, "rope_scaling": {"type": "ntk", "factor": 2.0}}))
    stretched = Served(tmp_path)
    frequencies = (2 * 160000.0) ** (-torch.arange(0, 16, 2) / 16) / 2 ** (2 / 16)
    before = model.reference.rotary_emb.inv_freq
    model.reference.rotary_emb.inv_freq = frequencies
    try:
        check_vectors(stretched, model.hidden, "cls")
    finally:
        model.reference.rotary_emb.inv_freq = before
    for given, told in (({"logn_attention_scale": True}, "logn_attention_scale"), ({"pack_qkv": False}, "pack_qkv")):
        (tmp_path / "config.json").write_text(json.dumps({**own, **given}))
        with pytest.raises(CheckpointError, match=told):
            Served(tmp_path)


PLAIN = {"jina v2": (make_jina_v2, jina_v2_rows), "nomic experts": (make_nomic_moe, nomic_moe_rows)}


@pytest.mark.parametrize("name", PLAIN)
def test_what_comes_out_is_the_published_rule(name: str, tmp_path: Path) -> None:
    make, rows_of = PLAIN[name]
    values = make(tmp_path)
    check_vectors(Served(tmp_path), lambda ids: rows_of(values, ids), "mean")


TASKS = ["retrieval.query", "retrieval.passage", "text-matching"]


def test_one_task_of_adapters_within_the_model(tmp_path: Path) -> None:
    """As the authors of Jina's v3 write it: a low rank for each task beside each matrix."""
    model = Pooled(tmp_path / "plain", "JinaEmbeddingsV3Model", SMALL)
    reference = model.reference
    generator = torch.Generator().manual_seed(5)
    task, rank, stored = 1, 4, {}
    written = load_file(tmp_path / "plain" / "model.safetensors")
    changed = dict(written)
    for name, value in written.items():
        if not name.endswith(".weight") or value.dim() != 2:
            stored[name] = value
            continue
        rows, columns = value.shape
        is_table = "embeddings" in name
        first, second = ((rows, rank), (rank, columns)) if is_table else ((rank, columns), (rows, rank))
        a, b = (0.3 * torch.randn(len(TASKS), *shape, generator=generator) for shape in (first, second))
        stem = name.removesuffix(".weight") + ".parametrizations.weight"
        stored |= {f"{stem}.original": value, f"{stem}.0.lora_A": a, f"{stem}.0.lora_B": b}
        changed[name] = value + 0.25 * (a[task] @ b[task] if is_table else b[task] @ a[task])
    authors = tmp_path / "authors"
    authors.mkdir()
    save_file({f"roberta.{name.removeprefix('roberta.')}": value for name, value in stored.items()},
              authors / "model.safetensors")  # fmt: skip
    save_file(changed, tmp_path / "plain" / "model.safetensors", {"format": "pt"})
    reference = type(reference).from_pretrained(tmp_path / "plain").eval()
    config = {
        **SMALL, "architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", "hidden_act": "gelu",
        "position_embedding_type": "rotary", "rotary_emb_base": 20000.0, "type_vocab_size": 1, "pad_token_id": 1,
        "layer_norm_eps": 1e-5, "lora_adaptations": TASKS, "lora_rank": rank, "lora_alpha": 1,
    }  # fmt: skip
    (authors / "config.json").write_text(json.dumps(config))
    served = Served(authors, hf_overrides=json.dumps({"lora_adaptation": TASKS[task]}))

    def rows_of(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            rows: torch.Tensor = reference(input_ids=torch.tensor([ids])).last_hidden_state[0]
        return rows

    check_vectors(served, rows_of, "mean")
    for overrides, told in ((None, "lora_adaptation"), ('{"lora_adaptation": "tea"}', "text-matching")):
        with pytest.raises(CheckpointError, match=told):
            Served(authors, hf_overrides=overrides)


# ------------------------------------------------------------ GGUF
MEAN, CLS, RANK = gguf.PoolingType.MEAN, gguf.PoolingType.CLS, gguf.PoolingType.RANK


@pytest.mark.parametrize(
    ("arch", "name", "pooling"),
    [
        ("modern-bert", "modernbert", CLS),
        ("jina-bert-v3", "jina v3", MEAN),
        ("gemma-embedding", "embeddinggemma", MEAN),
    ],
)
def test_gguf_holds_the_same_model(made: Any, arch: str, name: str, pooling: Any, tmp_path: Path) -> None:
    model = made(name)
    write_gguf(tmp_path / "model.gguf", arch, model.directory, pooling)
    for one, other in zip(Served(tmp_path / "model.gguf").run(TEXTS), model.run(TEXTS), strict=True):
        assert 1 - float(one @ other) < 1e-6


def test_gguf_has_matrices_behind_the_pooling(made: Any, tmp_path: Path) -> None:
    model = made("embeddinggemma")
    wide, narrow = torch.randn(80, 64), torch.randn(24, 80)
    extra = {"dense_2.weight": wide, "dense_3.weight": narrow}
    write_gguf(tmp_path / "model.gguf", "gemma-embedding", model.directory, MEAN, extra)
    served = Served(tmp_path / "model.gguf")
    assert served.info.pooling is not None and served.info.pooling.dimension == 24
    [found] = served.run(TEXTS[:1])
    assert 1 - float(found @ unit(narrow @ (wide @ model.hidden(TEXTS[0]).mean(0)))) < 1e-6


@pytest.mark.parametrize(("arch", "name"), [("jina-bert-v2", "jina v2"), ("nomic-bert-moe", "nomic experts")])
def test_gguf_of_the_published_rule(arch: str, name: str, tmp_path: Path) -> None:
    make, rows_of = PLAIN[name]
    values = make(tmp_path)
    for key in [key for key in values if key.endswith("experts.bias")]:
        values[key].zero_()  # files have none
    write_gguf(tmp_path / "model.gguf", arch, tmp_path, MEAN)
    check_vectors(Served(tmp_path / "model.gguf"), lambda ids: rows_of(values, ids), "mean")


@pytest.mark.parametrize("kind", ["modern-bert", "bert"])
def test_gguf_of_rerankers(made: Any, kind: str, tmp_path: Path) -> None:
    """A head of two matrices, of which the first has a norm behind it or not."""
    if kind == "modern-bert":
        model = made("modernbert score")
    else:
        model = Pooled(tmp_path, "RobertaForSequenceClassification", {**SMALL, "type_vocab_size": 1, "num_labels": 1})
    write_gguf(tmp_path / "model.gguf", kind, model.directory, RANK)
    served = Served(tmp_path / "model.gguf")
    assert served.info.pooling is not None and served.info.pooling.reads_pairs
    check_values(served, model.logits)


# ------------------------------------------------------------ scores of tokens
YES, NO = 9, 5


def tokenizer_of(directory: Path) -> None:
    words = {f"w{i}": i for i in range(VOCAB) if i not in (YES, NO)} | {"yes": YES, "no": NO}
    (directory / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": words}}))


@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_scores_of_yes_and_no(is_tied: bool, tmp_path: Path) -> None:
    tmp_path /= "Qwen3-Reranker-tiny"
    tmp_path.mkdir()
    tokenizer_of(tmp_path)
    values = {**DECODER, "tie_word_embeddings": is_tied}
    overrides = {
        "architectures": ["Qwen3ForSequenceClassification"], "classifier_from_token": ["no", "yes"],
        "is_original_qwen3_reranker": True,
    }  # fmt: skip
    model = Pooled(tmp_path, "Qwen3ForCausalLM", values, hf_overrides=json.dumps(overrides))

    def score(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits = model.reference(input_ids=torch.tensor([ids])).logits[0, -1]
        return (logits[YES] - logits[NO])[None]

    pooling = model.info.pooling
    assert pooling is not None and pooling.reads_pairs and "{document}" in pooling.pair_template
    check_values(model, score)
    [probability] = model.run(TEXTS[:1])
    assert abs(float(probability[0]) - float(torch.sigmoid(score(TEXTS[0])))) < 1e-5

    # The same from one key, by its name, from sentence-transformers' files, and from a file of GGUF.
    expected = model.run(TEXTS)
    for options in ({"hf_overrides": '{"is_original_qwen3_reranker": true}'}, {"task": "score"}):
        model.load(**options)
        assert all(map(np.array_equal, model.run(TEXTS), expected))
    module = {"type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore", "path": "1_LogitScore"}
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "x.Transformer", "path": ""}, module]))
    (tmp_path / "1_LogitScore").mkdir()
    (tmp_path / "1_LogitScore" / "config.json").write_text(json.dumps({"true_token_id": YES, "false_token_id": NO}))
    model.load()
    assert all(map(np.array_equal, model.run(TEXTS), expected))
    model.load(task="generate")
    assert model.info.pooling is None
    if is_tied:
        rows = model.reference.lm_head.weight.detach()
        file = tmp_path / "model.gguf"
        write_gguf(file, "qwen3", tmp_path, RANK, {"cls.output.weight": rows[[YES, NO]]}, ["yes", "no"])
        served = Served(file)
        assert served.info.pooling is not None and "{query}" in served.info.pooling.pair_template
        for one, other in zip(served.run(TEXTS), expected, strict=True):
            assert abs(float(one[0]) - float(other[0])) < 1e-5
        write_gguf(file, "qwen3", tmp_path, gguf.PoolingType.LAST)
        served = Served(file)
        assert served.info.pooling is not None and served.info.pooling.dimension == DECODER["hidden_size"]

    model.load(hf_overrides=json.dumps({"classifier_from_token": ["w3", "w4", "w6"]}))
    assert model.info.pooling is not None and model.info.pooling.labels == ("w3", "w4", "w6")
    with pytest.raises(CheckpointError, match="'maybe' is no token"):
        model.load(hf_overrides='{"classifier_from_token": ["maybe"]}')
