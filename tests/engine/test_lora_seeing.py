"""Adapters of models that also see: of their language models, with pictures and without, in any company."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.harness import Engine, request
from engine.test_lora import LORA, with_adapter
from models.towers import Case
from octavo.base.errors import CheckpointError
from octavo.wire.messages import AddRequest
from support.adapters import merged, random_adapter, write_adapter
from support.pictures import pixels

TARGETS = r".*language_model.*\.(q_proj|v_proj|gate_proj|down_proj)"


@pytest.mark.parametrize("name", ["llava", "idefics3", "qwen2-vl", "gemma3", "qwen3-vl"])
def test_adapters_of_the_language_model(tmp_path: Path, name: str) -> None:
    case = Case(tmp_path / "base", name, lambda path: Engine(path, lora=LORA))
    targets = TARGETS if name != "idefics3" else TARGETS.replace("language_model", "text_model")
    for seed, key in enumerate("ab"):
        tensors = random_adapter(case.model, targets, 8, seed)
        assert tensors
        write_adapter(tmp_path / key, tensors, 8)
        # As transformers 4 named it: the language model beside the tower, not within one model.
        older = {each.replace("model.language_model.", "language_model.model."): of for each, of in tensors.items()}
        write_adapter(tmp_path / f"older {key}", older if seed else tensors, 8)
        case.engine.worker.read_adapter(key, str(tmp_path / f"older {key}"))
    base, pictures = case.model, [pixels(24, 36, 1)]
    ids, media = case.prompt(pictures)
    found = {}
    for number, key in enumerate(["", "a", "b"]):
        asked = with_adapter(AddRequest(number, ids, request(0, ids, max_tokens=4, prompt_logprobs=0).params,
                                        media=media), key)  # fmt: skip
        found |= case.engine.run([asked], scheduler=case.engine.scheduler(prefix_caching=False)).replies
        case.model = merged(base, random_adapter(base, targets, 8, number - 1), 2.0) if key else base
        expected = case.expected(ids, pictures)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        scores = torch.tensor([each.logprob for each in found[number].prompt_logprobs])
        torch.testing.assert_close(scores, expected, rtol=2e-3, atol=5e-3)
    assert len({found[i].prompt_logprobs[-1].logprob for i in range(3)}) == 3
    together = [
        with_adapter(AddRequest(i, ids, request(0, ids, max_tokens=4, prompt_logprobs=0).params, media=media), key)
        for i, key in enumerate(["", "a", "b"])
    ]
    assert case.engine.run(together).replies == found


def test_adapters_of_a_tower_are_refused_by_the_tensors_name(tmp_path: Path) -> None:
    case = Case(tmp_path / "base", "llava", lambda path: Engine(path, lora=LORA))
    for number, targets in enumerate((r".*vision_tower.*q_proj", r".*multi_modal_projector.linear_1")):
        write_adapter(tmp_path / str(number), random_adapter(case.model, targets, 8, 1), 8)
        with pytest.raises(CheckpointError, match=r"tensor '.*(vision_tower|projector).*lora_A"):
            case.engine.worker.read_adapter("k", str(tmp_path / str(number)))


def test_an_embedding_is_changed_where_inner_layers_take_rows_too(tmp_path: Path) -> None:
    case = Case(tmp_path / "base", "qwen3-vl", lambda path: Engine(path, lora=LORA))
    embedding, pictures = case.model.get_input_embeddings(), [pixels(24, 36, 1)]
    rows, width = embedding.weight.shape
    a, b = torch.randn(8, rows), 0.1 * torch.randn(width, 8)
    name = "model.language_model.embed_tokens.lora_embedding"
    write_adapter(tmp_path / "k", {f"{name}_A": a, f"{name}_B": b}, 8)
    case.engine.worker.read_adapter("k", str(tmp_path / "k"))
    ids, media = case.prompt(pictures)
    asked = AddRequest(1, ids, request(0, ids, max_tokens=1, prompt_logprobs=0).params, media=media)
    found = case.engine.run([with_adapter(asked, "k")]).replies[1]
    embedding.weight = torch.nn.Parameter(embedding.weight.detach() + 2 * (b @ a).t())
    expected = case.expected(ids, pictures)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    scores = torch.tensor([each.logprob for each in found.prompt_logprobs])
    torch.testing.assert_close(scores, expected, rtol=2e-3, atol=5e-3)
