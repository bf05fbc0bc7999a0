"""Models with an encoder, through scheduler and worker, against transformers in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.harness import Engine, check_any_company, run
from octavo.base.params import SamplingParams
from octavo.wire.messages import AddRequest
from support.tiny_bart import VOCAB, logits_of, make_bart, random_ids

NUM_TOKENS = 12
#: Lengths of the encoder's input and of the decoder's prompt.
SIZES = [(40, 1), (3, 2), (130, 30), (1, 1), (77, 9), (64, 64)]


@pytest.fixture(scope="module", params=["Bart", "MBart"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Engine]:
    path = tmp_path_factory.mktemp("bart")
    model = make_bart(path, request.param, max_position_embeddings=2048)
    return model, Engine(Path(path), dtype="float32")


def requests(**params: Any) -> list[AddRequest]:
    sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": NUM_TOKENS, "logprobs": 3, **params})
    return [
        AddRequest(
            request_id=i,
            prompt_token_ids=[2, *random_ids(num_decoder - 1, 100 + i)],
            params=sampling,
            encoder_token_ids=random_ids(num_encoder, i),
        )
        for i, (num_encoder, num_decoder) in enumerate(SIZES)
    ]


def test_greedy_tokens_and_their_probabilities_are_those_of_transformers(both: tuple[Any, Engine]) -> None:
    model, engine = both
    asked = requests(prompt_logprobs=0)
    replies = run(engine, asked)
    for request in asked:
        reply, prompt = replies[request.request_id], request.prompt_token_ids
        expected = logits_of(model, request.encoder_token_ids, [*prompt, *reply.token_ids]).log_softmax(-1)
        rows = expected[len(prompt) - 1 : -1]
        assert reply.token_ids == rows.argmax(-1).tolist()
        found = torch.tensor([entry.logprob for entry in reply.logprobs])
        torch.testing.assert_close(found, rows.max(-1).values, rtol=1e-4, atol=1e-4)
        scores = torch.tensor([entry.logprob for entry in reply.prompt_logprobs])
        wanted = expected[torch.arange(len(prompt) - 1), torch.tensor(prompt[1:], dtype=torch.int64)]
        torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "sampled"])
def test_the_same_text_in_any_company(both: tuple[Any, Engine], params: dict[str, Any]) -> None:
    """Alone, arriving one by one, with decoders' prompts in pieces, few slots, and preempted for want of blocks."""
    _, engine = both
    asked = requests(**params)
    replies = check_any_company(engine, asked, max_num_batched_tokens=8, max_num_prefill_tokens=5)
    assert run(engine, asked, max_num_seqs=2) == replies


def test_preempted_requests_are_encoded_again(both: tuple[Any, Engine]) -> None:
    _, engine = both
    asked = [
        AddRequest(
            request_id=i,
            prompt_token_ids=[2],
            params=SamplingParams(temperature=0.0, max_tokens=60),
            encoder_token_ids=random_ids(20 + i, i),
        )
        for i in range(4)
    ]
    expected = run(engine, asked)
    size = engine.info.block_size
    scheduler = engine.scheduler(num_kv_blocks=1 + 4 * (1 + -(-30 // size)) + 1, max_encoder_len=24)
    tight = engine.run(asked, scheduler=scheduler)
    assert tight.num_preemptions > 0 and tight.replies == expected
    assert scheduler.kv.num_blocks_used == 0


def test_blocks_come_back_and_wrong_inputs_are_refused(both: tuple[Any, Engine]) -> None:
    _, engine = both
    scheduler = engine.scheduler()
    asked = requests()
    engine.run(asked, scheduler=scheduler)
    assert scheduler.kv.num_blocks_used == 0 and scheduler.stats().prefix_cache_hits == 0
    for ids, told in (
        ([], "no input for the model's encoder"),
        ([VOCAB], "token id outside"),
        ([5] * 2049, "2049 tokens, but the encoder takes 2048"),
    ):
        output = scheduler.add(AddRequest(9, [2], SamplingParams(max_tokens=1), encoder_token_ids=ids))
        assert output is not None and output.error is not None and told in output.error
