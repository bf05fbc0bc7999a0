"""Whatever kind of cache layers have, no bit of a reply depends on how its request came to be computed: pages of layers
that differ, latents, and states that belong to a slot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
import torch

from engine.harness import Engine, Reply, request
from models.family_cases import (
    DELTA,
    DELTA_EXPERTS,
    FALCON_H1,
    FALCON_H1_FACTORS,
    HYBRID,
    JAMBA,
    MAMBA,
    SIZES,
)
from models.test_head_shapes import LOCAL_AND_GLOBAL, WITH_LATENTS, configuration, spec
from octavo.core.request import Request
from octavo.core.scheduler.scheduler import Scheduler
from octavo.models import registry
from octavo.wire.messages import AddRequest

LAYERS = {"pages": LOCAL_AND_GLOBAL, "latents": WITH_LATENTS}
STATES: dict[str, dict[str, Any]] = {
    "convolutions": {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "layer_types": ["conv", "full_attention", "conv"],
        "norm_eps": 1e-5,
        "rope_theta": 10_000.0,
    },
    "scans": {
        **JAMBA,
        "architectures": ["JambaForCausalLM"],
        "model_type": "jamba",
        "hidden_act": "silu",
        "num_experts": 4,
    },
    "scans by heads": {
        **HYBRID,
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        "num_local_experts": 4,
    },
    "delta rules": {
        **DELTA,
        **DELTA_EXPERTS,
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
    },
    "scans alone": {**MAMBA, "architectures": ["MambaForCausalLM"], "model_type": "mamba"},
    "scans beside attention": {
        **FALCON_H1,
        **FALCON_H1_FACTORS,
        "architectures": ["FalconH1ForCausalLM"],
        "model_type": "falcon_h1",
        "hidden_act": "silu",
    },
}


@pytest.fixture(
    scope="module",
    params=[
        "pages",
        "latents",
        *STATES,
        "pages in fp8",
        "pages in int8",
        "latents in fp8",
        "latents in int8",
    ],
)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = tmp_path_factory.mktemp("model")
    if request.param in STATES:
        (path / "config.json").write_text(
            json.dumps({**SIZES, **STATES[request.param], "max_position_embeddings": 2048})
        )
        return Engine(path, load_format="dummy", dtype="bfloat16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.FAMILIES, "ManyShapes", registry.Family("many_shapes", spec))
        layers, _, dtype = request.param.partition(" in ")
        configuration(path, LAYERS[layers], max_position_embeddings=2048)
        cache = {"kv_cache_dtype": dtype or "auto", "calculate_kv_scales": dtype == "fp8"}
        return Engine(path, cache, load_format="dummy", dtype="bfloat16")


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    shared = torch.randint(0, 96, (70,), generator=generator).tolist()
    ends = [torch.randint(0, 96, (n,), generator=generator).tolist() for n in (50, 3, 30, 61)]
    return [[*shared, *end] for end in ends[:3]] + [ends[3]]


def test_replies_do_not_depend_on_company_chunks_hits_or_preemption(engine: Engine) -> None:
    requests = [request(i, prompt, max_tokens=30) for i, prompt in enumerate(prompts())]
    alone: dict[int, Reply] = {}
    for one in requests:
        alone |= engine.run([one], scheduler=engine.scheduler(prefix_caching=False)).replies
    in_pieces = engine.scheduler(prefix_caching=False, max_num_prefill_tokens=17)
    assert engine.run(requests, scheduler=in_pieces).replies == alone
    hits = engine.scheduler()
    assert engine.run(requests, scheduler=hits).replies == alone
    again = engine.run(requests, scheduler=hits)
    # A state is that of all tokens computed: none before them is there to go on from.
    assert again.replies == alone and (again.prefix_cache_hits > 200) != engine.info.has_states
    for num_swap_blocks in (0, 10_000):
        scheduler = engine.scheduler(num_swap_blocks=num_swap_blocks)
        assert preempted(engine, scheduler, requests) == {i: reply.token_ids for i, reply in alone.items()}
        assert scheduler.kv.num_blocks_used == 0


def preempted(engine: Engine, scheduler: Scheduler, requests: Sequence[AddRequest]) -> dict[int, list[int]]:
    """The tokens of requests of which the newest gives up its blocks now and then."""
    replies: dict[int, list[int]] = {message.request_id: [] for message in requests}
    for message in requests:
        scheduler.add(message)
    for step in count(1):
        if not scheduler.has_work:
            break
        plan = scheduler.schedule()
        for output in scheduler.update(plan, engine.worker.execute(plan)):
            replies[output.request_id] += output.new_token_ids
        if step in (2, 9, 18, 25) and scheduler.running:
            scheduler.live.preempt(scheduler.running[-1])
    assert scheduler.stats().num_preemptions == 4
    return replies


class Echo:
    """Guesses that the last token comes again."""

    def wants(self, request: Request) -> bool:
        return True

    def propose(self, request: Request) -> list[int]:
        return request.token_ids[-1:] * 3

    def accepted(self, request: Request, num_proposed: int, num_accepted: int) -> None:
        """Nothing is learnt from it."""


def test_drafts_change_nothing_and_are_not_made_where_a_state_could_not_be_taken_back(engine: Engine) -> None:
    requests = [request(i, prompt, max_tokens=12) for i, prompt in enumerate(prompts())]
    plain = engine.run(requests, scheduler=engine.scheduler(prefix_caching=False)).replies
    scheduler = engine.scheduler(prefix_caching=False, drafter=Echo())
    assert engine.run(requests, scheduler=scheduler).replies == plain
