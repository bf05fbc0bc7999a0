"""A model whose layers see rows of pictures beside the text, against transformers in float32."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.harness import Engine, check_any_company, run
from octavo.base.config import LoraConfig
from octavo.base.errors import InvalidConfig
from octavo.base.params import SamplingParams
from octavo.cache.pictures import Picture, picture_rows
from octavo.ops.run import Runner
from octavo.ops.table import Ops, bind
from octavo.wire.messages import AddRequest
from octavo.worker import pictures
from octavo.worker import worker as worker_module
from support.pictures import pixels
from support.tiny_mllama import IMAGE, asking, logprobs_of, make_mllama

#: Pictures of two tiles, one, four and three.
A, B, C, D = pixels(30, 20, 1), pixels(16, 16, 2), pixels(40, 40, 3), pixels(10, 60, 4)
PROMPTS: list[tuple[list[int], list[np.ndarray]]] = [
    ([3, 4, 5, IMAGE, 7, 8, 9], [A]),
    ([IMAGE, 3, 4, 5], [B]),
    ([3, 4, 5], []),
    ([3, IMAGE, 5, 6, IMAGE, 7, 8], [A, B]),
    ([IMAGE, IMAGE, 4, 5, IMAGE, 6], [B, A, C]),
    ([3, 5, IMAGE, IMAGE, 7, IMAGE], [D, C, B]),
    ([IMAGE], [A]),
]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Engine]:
    path = tmp_path_factory.mktemp("mllama")
    return make_mllama(path), Engine(path, dtype="float32")


def requests(**params: Any) -> list[AddRequest]:
    return [asking(number, *prompt, **params) for number, prompt in enumerate(PROMPTS)]


def test_tokens_and_their_probabilities_are_those_of_transformers(both: tuple[Any, Engine]) -> None:
    model, engine = both
    replies = run(engine, requests(prompt_logprobs=0))
    for number, (ids, images) in enumerate(PROMPTS):
        reply = replies[number]
        assert reply.error is None
        expected = logprobs_of(model, [*ids, *reply.token_ids], images)
        rows = expected[len(ids) - 1 : -1]
        assert reply.token_ids == rows.argmax(-1).tolist()
        found = torch.tensor([entry.logprob for entry in reply.logprobs])
        torch.testing.assert_close(found, rows.max(-1).values, rtol=1e-5, atol=1e-5)
        scored = [(at, token) for at, token in enumerate(ids[1:]) if token != IMAGE]
        scores = torch.tensor([reply.prompt_logprobs[at].logprob for at, _ in scored])
        wanted = torch.tensor([float(expected[at, token]) for at, token in scored])
        torch.testing.assert_close(scores, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "sampled"])
def test_the_same_text_in_any_company(both: tuple[Any, Engine], params: dict[str, Any]) -> None:
    """Alone, beside requests with pictures and without, with prompts in pieces, few slots, and preempted."""
    _, engine = both
    asked = requests(**params)
    replies = check_any_company(engine, asked, max_num_batched_tokens=5, max_num_prefill_tokens=3)
    assert run(engine, asked, max_num_seqs=2) == replies


def test_preempted_requests_see_their_pictures_again(both: tuple[Any, Engine]) -> None:
    _, engine = both
    asked = [asking(number, [3, IMAGE, 4], [image], max_tokens=90) for number, image in enumerate((A, B, C))]
    expected = run(engine, asked)
    size, groups = engine.info.block_size, engine.info.num_encoder_groups
    encoders = groups * sum(-(-len(picture_rows([Picture(1, seen)], 68, size).source) // size) for seen in (34, 17, 68))
    own = len(engine.info.kv_group_windows)
    scheduler = engine.scheduler(num_kv_blocks=1 + encoders + own * (3 + -(-90 // size)), max_media_items=1)
    tight = engine.run(asked, scheduler=scheduler)
    assert tight.num_preemptions > 0 and tight.replies == expected
    assert scheduler.kv.num_blocks_used == 0


def test_a_picture_is_encoded_once_for_all_who_ask_about_it(
    both: tuple[Any, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, engine = both
    images = [pixels(20, 20, seed) for seed in range(50, 56)]
    encoded: list[bytes] = []
    encode = pictures._Tower.encode
    monkeypatch.setattr(
        pictures._Tower, "encode", lambda self, item: (encoded.append(item.digest), encode(self, item))[1]
    )
    asked = [asking(number, [IMAGE, number], [images[number % 2]], max_tokens=1) for number in range(4)]
    first = run(engine, asked)
    assert len(encoded) == len(set(encoded)) == 2
    assert run(engine, asked) == first and len(encoded) == 2
    for image in images[2:]:
        run(engine, [asking(9, [IMAGE], [image], max_tokens=1)])
    assert run(engine, asked) == first and len(encoded) == 2 + 4 + 2, "four are kept"


def test_operations_one_by_one_are_the_native_program(
    both: tuple[Any, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, engine = both

    def bound(*args: Any, **options: Any) -> Ops:
        return dataclasses.replace(bind(*args, **options), program_runner=Runner)

    expected = run(engine, requests())
    monkeypatch.setattr(worker_module, "bind", bound)
    assert run(Engine(Path(engine.config.model.model), dtype="float32"), requests()) == expected


def test_what_cannot_be_shown_is_refused(both: tuple[Any, Engine]) -> None:
    _, engine = both
    scheduler, prompt = engine.scheduler(), [IMAGE] * 5
    output = scheduler.add(asking(1, prompt, [B] * 5))
    assert output is not None and output.error == "The request has 5 pictures, and the engine takes 4."
    item = asking(1, [IMAGE], [B]).media[0]
    embeds = type(item)("embeds", b"1", {}, item.spans)
    output = scheduler.add(AddRequest(1, [IMAGE], SamplingParams(max_tokens=1), media=(embeds,)))
    assert output is not None and output.error is not None and "no media of the kind 'embeds'" in output.error
    with pytest.raises(InvalidConfig, match="--enable-lora"):
        Engine(Path(engine.config.model.model), lora=LoraConfig(enable_lora=True))


def test_without_a_tower_that_is_known_the_text_alone_is_served(both: tuple[Any, Engine], tmp_path: Path) -> None:
    _, engine = both
    source = Path(engine.config.model.model)
    config = json.loads((source / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "unheard of"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    blind = Engine(tmp_path, dtype="float32")
    assert blind.info.media_kinds == () and blind.info.num_encoder_groups == 0
    asked = [asking(1, [3, 4, 5], [])]
    assert run(blind, asked) == run(engine, asked)


@pytest.mark.parametrize("size", [1, 4, 16, 64])
@pytest.mark.parametrize("tokens", [[0], [2], [0, 5], [3, 4, 9], [0, 1, 2], [1, 3, 4]])
def test_tokens_see_the_pictures_before_them_back_to_the_last_text(tokens: list[int], size: int) -> None:
    seen = [11, 20, 4][: len(tokens)]
    pictures = [Picture(token, count) for token, count in zip(tokens, seen, strict=True)]
    laid = picture_rows(pictures, 20, size)
    of_view = {}
    for view in laid.views:
        assert len(view.blocks) == -(-view.num_rows // size)
        places = [block * size + offset for block in view.blocks for offset in range(size)][: view.num_rows]
        of_view[view.first_token] = sorted(laid.source[place] for place in places)
    for token in range(12):
        before = [number for number, at in enumerate(tokens) if at <= token]
        run = before[-1:]
        while run and run[0] and tokens[run[0] - 1] == tokens[run[0]] - 1:
            run.insert(0, run[0] - 1)
        wanted = [20 * number + row for number in run for row in range(seen[number])]
        view = max(first for first in of_view if first <= token)
        assert of_view[view] == (wanted if before else list(range(20 * len(tokens))))
