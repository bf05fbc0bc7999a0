"""The whole engine on a GPU's kernels, in the interpreter: plans ahead, captured steps, swapping, against the CPU."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from engine.drafters import Oracle
from engine.harness import Engine, Reply, Run, request
from models.test_early_towers import CASES as EARLY
from models.test_early_towers import EarlyCase
from models.test_sound_towers import Case as SoundCase
from models.test_sound_towers import sound
from models.towers import Case
from octavo.base.config import (
    CacheConfig,
    EngineConfig,
    LoraConfig,
    ModelConfig,
    ParallelConfig,
    PromptAdapterConfig,
    SchedulerConfig,
)
from octavo.base.errors import InvalidConfig
from octavo.base.params import SamplingParams, SpeechAlignment, SpeechRules
from octavo.core.grammar.structured import LLGuidanceCompiler
from octavo.device.aside import tensors_of
from octavo.ops.triton import fuse_attention
from octavo.wire.messages import AddRequest
from octavo.worker import worker as worker_module
from octavo.worker.worker import Worker
from support.adapters import random_adapter, write_adapter, write_prompt_adapter
from support.interpreted_device import InterpretedDevice
from support.pictures import pixels
from support.tiny_bart import logits_of, make_bart, random_ids
from support.tiny_mllama import IMAGE, asking, make_mllama
from support.tiny_whisper import END, FIRST_TIME, NO_SPEECH, ROWS, START, make_whisper, random_frames, tensor_of

VOCAB = 96


class TinyEngine(Engine):
    """A random model on one device, without a tokenizer."""

    def __init__(
        self,
        model: Path,
        device: Any,
        monkeypatch: pytest.MonkeyPatch,
        num_kv_blocks: int | None = 60,
        lora: LoraConfig | None = None,
        prompts: PromptAdapterConfig | None = None,
        **parallel: Any,
    ) -> None:
        self.device = device
        self.config = EngineConfig(
            model=ModelConfig(model=str(model), max_model_len=96),
            cache=CacheConfig(num_kv_blocks_override=num_kv_blocks),
            scheduler=SchedulerConfig(max_num_seqs=6, max_num_batched_tokens=48),
            parallel=ParallelConfig(**parallel),
            lora=lora or LoraConfig(),
            prompt_adapter=prompts or PromptAdapterConfig(),
        )
        with monkeypatch.context() as patch:
            if device is not None:
                patch.setattr(worker_module, "make_device", lambda config: device)
            self.worker = Worker(self.config, lambda name, detail: None)
            self.info = self.worker.load()
        self.grammars = LLGuidanceCompiler(self.info.vocab_size)
        self._has_vocabulary = False


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("tiny")
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


def requests_under_test() -> list[AddRequest]:
    rng = random.Random(5)
    settings: list[dict[str, Any]] = [
        {},
        {"temperature": 0.9, "seed": 5},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.5},
        {"temperature": 1.2, "top_k": 10, "top_p": 0.8, "seed": 6},
        {"logit_bias": {7: 4.0}, "bad_word_token_ids": ((7, 7), (9,)), "temperature": 0.7},
        {"prompt_logprobs": 1, "min_tokens": 4, "presence_penalty": 1.0},
    ]
    return [
        request(i, [rng.randrange(VOCAB) for _ in range(rng.choice((1, 14, 15, 20)))], max_tokens=9, **fields)
        for i, fields in enumerate(settings)
    ]


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[int, Reply]:
    """What the CPU's kernels say."""
    with pytest.MonkeyPatch.context() as patch:
        return TinyEngine(model, None, patch).run(requests_under_test()).replies


def check(run: Run, expected: dict[int, Reply]) -> None:
    """Equal tokens; equal log probabilities as far as float32 in another order goes."""
    for request_id, reply in expected.items():
        found = run.replies[request_id]
        assert found.error is None
        assert found.token_ids == reply.token_ids, f"request {request_id}"
        for mine, other in zip(
            [*found.logprobs, *found.prompt_logprobs], [*reply.logprobs, *reply.prompt_logprobs], strict=True
        ):
            assert mine.rank == other.rank and mine.top_ids == other.top_ids
            assert mine.logprob == pytest.approx(other.logprob, abs=1e-3)


@pytest.fixture(scope="module")
def engine(model: Path) -> TinyEngine:
    with pytest.MonkeyPatch.context() as patch:
        return TinyEngine(model, InterpretedDevice(), patch)


def test_every_operation_is_native(engine: TinyEngine) -> None:
    assert set(engine.info.ops.values()) == {"triton"}
    assert engine.info.plans_ahead and engine.info.num_swap_blocks > 0


def test_rows_that_are_shaped_on_the_host_give_the_tokens_of_the_cpu(
    engine: TinyEngine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a plain and a penalised one, whose counts stay on the device."""
    settings: list[dict[str, Any]] = [
        {"temperature": 0.8, "seed": 5},
        {"frequency_penalty": 0.8},
        {"temperature": 1.0, "mirostat": 2, "mirostat_tau": 3.0},
        {"dry_multiplier": 2.0, "dry_allowed_length": 1, "repetition_penalty": 1.4, "repeat_last_n": 5},
        {"temperature": 1.0, "typical_p": 0.8, "xtc_probability": 0.5, "logprob_token_ids": (4, 2)},
    ]
    requests = [request(i, [1 + i, 2, 3], max_tokens=7, **fields) for i, fields in enumerate(settings)]
    wanted = TinyEngine(model, None, monkeypatch).run(requests).replies
    check(engine.run(requests, ahead=True), wanted)


def test_steps_planned_ahead_and_replayed_give_the_tokens_of_the_cpu(
    engine: TinyEngine, expected: dict[int, Reply]
) -> None:
    before = engine.device.num_replays
    run = engine.run(requests_under_test(), ahead=True, per_step=1)
    check(run, expected)
    assert run.num_ahead > 5  # although one has bad words of several tokens
    greedy = [message for message in requests_under_test() if not message.params.bad_word_token_ids]
    run = engine.run(greedy, ahead=True)
    assert run.num_ahead > 5
    assert engine.device.num_replays > before
    check(run, {message.request_id: expected[message.request_id] for message in greedy})


def test_a_step_takes_one_upload(engine: TinyEngine) -> None:
    """But where requests came or went: then the parameters of sampling come too."""
    before, device = engine.device.num_uploads, engine.device
    requests = [request(i, [5, 6, 7], max_tokens=15, temperature=0.8, logprobs=None, seed=i) for i in range(2)]
    scheduler = engine.scheduler()
    engine.run(requests, scheduler=scheduler, ahead=True)
    assert scheduler.stats().num_steps >= 15
    assert device.num_uploads - before <= scheduler.stats().num_steps + 2


def test_preemption_to_the_host_gives_the_tokens_of_the_cpu(engine: TinyEngine, expected: dict[int, Reply]) -> None:
    scheduler = engine.scheduler(num_kv_blocks=7, prefix_caching=False)
    run = engine.run(requests_under_test(), scheduler=scheduler, ahead=True)
    assert run.num_preemptions > 0 and run.num_swapped > 0
    check(run, expected)


def test_eager_steps_give_the_tokens_of_the_cpu(
    model: Path, expected: dict[int, Reply], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TinyEngine(model, InterpretedDevice(), monkeypatch, enforce_eager=True)
    check(engine.run(requests_under_test(), ahead=True), expected)
    assert engine.device.num_replays == 0


def test_captured_steps_with_prompts_have_the_bits_of_those_that_are_not(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt that is cut into steps, beside a request that is decoding."""
    asked = [request(0, [7] * 5, max_tokens=7), request(1, [9, 8] * 13, max_tokens=2, temperature=0.9)]
    replies = []
    for is_eager in (False, True):
        engine = TinyEngine(model, InterpretedDevice(), monkeypatch, batch_invariant=True, enforce_eager=is_eager)
        scheduler = engine.scheduler(max_num_batched_tokens=8, max_num_prefill_tokens=8)
        replies.append(engine.run(asked, scheduler=scheduler, ahead=True, per_step=1).replies)
        graphs = engine.worker._runner._graphs
        assert is_eager == (graphs is None)
        if graphs is not None:
            assert graphs.num_with_prompts > 0 and engine.device.num_replays > 2
    assert replies[0] == replies[1]


def test_a_finished_request_whose_step_ahead_was_in_vain_does_not_disturb_the_next_in_its_slot(
    engine: TinyEngine, expected: dict[int, Reply]
) -> None:
    """Requests that end by a stop token end one step later than planned."""
    stops = [
        msgspec.structs.replace(
            message,
            params=msgspec.structs.replace(message.params, stop_token_ids=(expected[message.request_id].token_ids[4],)),
        )
        for message in requests_under_test()[:2]
    ]
    others = requests_under_test()
    run = engine.run([*stops, *[msgspec.structs.replace(m, request_id=m.request_id + 100) for m in others]],
                     scheduler=engine.scheduler(max_num_seqs=2), ahead=True)  # fmt: skip
    for message in stops:
        ids = expected[message.request_id].token_ids
        assert run.replies[message.request_id].token_ids == ids[: ids.index(ids[4]) + 1]
    check(run, {request_id + 100: reply for request_id, reply in expected.items()})


def test_n19_after_sleep_every_bit_is_as_before(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights go to the host and come back to the same tensors; captured steps are made anew."""
    engine = TinyEngine(model, InterpretedDevice(), monkeypatch)
    prompts = [request(1, [5, 6, 7], max_tokens=3), request(2, [8, 9], max_tokens=3, temperature=0.9, seed=5)]
    before = engine.run(prompts, ahead=True).replies
    weights = list(tensors_of(engine.worker._residence._weights))
    sizes = [tensor.untyped_storage().nbytes() for tensor in weights]
    assert sum(sizes) > 50_000
    engine.worker.sleep(1)
    assert {tensor.untyped_storage().nbytes() for tensor in weights} == {0}
    engine.worker.wake_up()
    assert [tensor.untyped_storage().nbytes() for tensor in weights] == sizes
    assert engine.run(prompts, ahead=True).replies == before


def test_drafts_change_no_bit_of_a_reply(
    model: Path, expected: dict[int, Reply], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a draft are decoded like any others, in steps that are replayed like any others."""
    engine = TinyEngine(model, InterpretedDevice(), monkeypatch, batch_invariant=True)
    alone = engine.run(requests_under_test()).replies
    for _ in range(2):  # the first meets each size of a step once or twice, as often as it takes to capture it
        drafter, before = Oracle(alone), engine.device.num_replays
        run = engine.run(requests_under_test(), scheduler=engine.scheduler(drafter=drafter), ahead=True, per_step=1)
        assert run.replies == alone
        check(run, expected)
        assert drafter.num_accepted > 10 and drafter.num_rejected > 5
        assert run.num_ahead == 0
    assert engine.device.num_replays > before


def test_attention_rotates_in_captured_steps_and_not_where_a_draft_sees_its_own_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads so wide that decoding writes the newest key itself, while it reads those before."""
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=72, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    requests = [request(i, list(range(i + 3, i + 6)), max_tokens=7) for i in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr("octavo.ops.triton.fuse.is_on", lambda switch: False)
        wanted = TinyEngine(tmp_path, InterpretedDevice(), monkeypatch).run(requests).replies
    engine = TinyEngine(tmp_path, InterpretedDevice(), monkeypatch)
    rotated: list[bool] = []
    can_rotate = fuse_attention.can_rotate
    monkeypatch.setattr(fuse_attention, "can_rotate", lambda plan: rotated.append(can_rotate(plan)) or rotated[-1])
    check(engine.run(requests, ahead=True), wanted)
    assert rotated == [False] + [True] * (len(rotated) - 1) and engine.device.num_replays > 0
    rotated.clear()
    drafter = Oracle(wanted)
    check(engine.run(requests, scheduler=engine.scheduler(drafter=drafter), ahead=True, per_step=1), wanted)
    assert drafter.num_accepted > 3 and False in rotated[2:]


@pytest.fixture(scope="module")
def windowed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers that see six keys, and one that sees all."""
    torch.manual_seed(4)
    path = tmp_path_factory.mktemp("windowed")
    config = transformers.Gemma3TextConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, initializer_range=0.3, sliding_window=6,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip
    transformers.Gemma3ForCausalLM(config).save_pretrained(path)
    return path


def test_layers_with_a_window_have_blocks_of_their_own(windowed_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups with tables of their own, planned ahead, in captured steps, through the host's memory and prefix hits."""
    expected = TinyEngine(windowed_model, None, monkeypatch).run(requests_under_test()).replies
    engine = TinyEngine(windowed_model, InterpretedDevice(), monkeypatch)
    assert engine.info.kv_group_windows == (0, 6, 6)
    run = engine.run(requests_under_test(), ahead=True, per_step=1)
    check(run, expected)
    assert engine.device.num_replays > 0
    scheduler = engine.scheduler(num_kv_blocks=16, prefix_caching=False)
    run = engine.run(requests_under_test(), scheduler=scheduler, ahead=True)
    assert run.num_preemptions > 0 and run.num_swapped > 0
    check(run, expected)


STATES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
OTHER_CACHES = {
    "states": transformers.Lfm2Config(
        vocab_size=VOCAB, **STATES, num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
        layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False,
    ),
    "latents": transformers.DeepseekV2Config(
        vocab_size=VOCAB, **STATES, max_position_embeddings=128, initializer_range=0.3, q_lora_rank=None,
        kv_lora_rank=16, qk_rope_head_dim=16, qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_CACHES)
def test_states_and_latents_in_captured_steps_and_through_preemption(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States of sequences that only fill up a step belong to nobody; those of preempted requests are computed again."""
    torch.manual_seed(4)
    transformers.AutoModelForCausalLM.from_config(OTHER_CACHES[kind]).save_pretrained(tmp_path)
    expected = TinyEngine(tmp_path, None, monkeypatch).run(requests_under_test()).replies
    engine = TinyEngine(tmp_path, InterpretedDevice(), monkeypatch)
    check(engine.run(requests_under_test(), ahead=True, per_step=1), expected)
    assert engine.device.num_replays > 0
    scheduler = engine.scheduler(num_kv_blocks=8, prefix_caching=False)
    run = engine.run(requests_under_test(), scheduler=scheduler, ahead=True)
    assert run.num_preemptions > 0 and (run.num_swapped > 0) == (kind == "latents")
    check(run, expected)


def test_states_alone_need_no_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    config = transformers.MambaConfig(
        vocab_size=VOCAB, hidden_size=32, state_size=8, num_hidden_layers=1, initializer_range=0.3
    )
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
    requests = requests_under_test()[:4]
    expected = TinyEngine(tmp_path, None, monkeypatch, None).run(requests).replies
    engine = TinyEngine(tmp_path, InterpretedDevice(), monkeypatch, None)
    assert engine.info.kv_group_windows == () and engine.info.kv_cache_bytes == engine.info.num_swap_blocks == 0
    check(engine.run(requests, ahead=True, per_step=1), expected)
    assert engine.device.num_replays > 0
    with pytest.raises(InvalidConfig, match="--num-kv-blocks-override 60: no layer of this model has attention"):
        TinyEngine(tmp_path, None, monkeypatch)


def test_a_model_with_an_encoder_gives_the_tokens_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch of several lengths, also where a decoder's prompt comes in pieces."""
    model = make_bart(tmp_path, d_model=32, encoder_layers=1, decoder_layers=1, decoder_attention_heads=4)
    engine = TinyEngine(tmp_path, InterpretedDevice(), monkeypatch)
    assert engine.info.num_swap_blocks == 0, "a preempted request is encoded again"
    asked = [
        AddRequest(
            request_id=i,
            prompt_token_ids=[2, *random_ids(num_decoder - 1, 9 + i)],
            params=SamplingParams(temperature=0.0, max_tokens=3),
            encoder_token_ids=random_ids(num_encoder, i),
        )
        for i, (num_encoder, num_decoder) in enumerate([(21, 1), (33, 7), (1, 2)])
    ]
    scheduler = engine.scheduler(max_num_batched_tokens=5, max_num_prefill_tokens=5)
    run = engine.run(asked, scheduler=scheduler, ahead=True)
    graphs = engine.worker._runner._graphs
    assert graphs is not None and graphs.num_with_prompts > 0 and engine.device.num_replays > 0
    for each in asked:
        ids, prompt = run.replies[each.request_id].token_ids, each.prompt_token_ids
        logits = logits_of(model, each.encoder_token_ids, [*prompt, *ids])
        assert ids == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


def test_speech_and_when_it_was_said_are_those_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_whisper(tmp_path, encoder_layers=1, decoder_layers=2, max_target_positions=128)
    alignment = SpeechAlignment(heads=((0, 1), (1, 0)), first_token=1, num_rows=ROWS - 2)
    rules = SpeechRules(forbidden_ids=(5, 7), end_id=END, first_time=FIRST_TIME, no_speech_id=NO_SPEECH)
    asked = [
        AddRequest(
            request_id=i,
            prompt_token_ids=[START, 5, 9, 11],
            params=SamplingParams(temperature=0.0, max_tokens=3, **fields),
            encoder_token_ids=[0] * ROWS,
            encoder_frames=tensor_of(random_frames(i)),
        )
        for i, fields in enumerate([{"speech": rules, "logprobs": 0}, {"alignment": alignment}])
    ]
    expected = TinyEngine(tmp_path, None, monkeypatch).run(asked).replies
    run = TinyEngine(tmp_path, InterpretedDevice(), monkeypatch).run(asked, ahead=True)
    check(run, {0: expected[0]})
    [silence], [other] = run.replies[0].logprobs[0].top_logprobs, expected[0].logprobs[0].top_logprobs
    assert silence == pytest.approx(other, abs=1e-3)
    mine, others = (np.frombuffer(each.pooled or b"", np.float32) for each in (run.replies[1], expected[1]))
    assert len(mine) == 3 * (ROWS - 2)
    np.testing.assert_allclose(mine, others, atol=2e-3)


@pytest.mark.parametrize("name", ["smolvlm", "gemma3", "qwen3-vl", "blip2"])
def test_prompts_with_pictures_give_the_tokens_of_the_cpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Towers, rows in the place of tokens, and captured steps behind them."""
    kind = EarlyCase if name in EARLY else Case
    case = kind(tmp_path, name, lambda path: TinyEngine(path, None, monkeypatch))
    requests = []
    for i, pictures in enumerate([[pixels(16, 16, 1)], [pixels(16, 16, 2), pixels(16, 16, 1)]]):
        ids, media = case.prompt(pictures)
        requests.append(AddRequest(i, ids, request(i, ids, max_tokens=3).params, media=media))
    expected = case.engine.run(requests).replies
    engine = TinyEngine(tmp_path, InterpretedDevice(), monkeypatch)
    check(engine.run(requests, ahead=True, per_step=1), expected)
    assert engine.device.num_replays > 0


def test_adapters_of_experts_with_tokens_and_positions_of_their_own_give_the_tokens_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(4)
    config = transformers.MixtralConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3, num_local_experts=3,
    )  # fmt: skip
    base = transformers.MixtralForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    experts = {}
    for expert, name, (rows, columns) in ((0, "w1", (48, 32)), (1, "w2", (32, 48)), (2, "w3", (48, 32))):
        module = f"model.layers.0.block_sparse_moe.experts.{expert}.{name}"
        experts[f"{module}.lora_A.weight"] = torch.randn(4, columns) * 0.2
        experts[f"{module}.lora_B.weight"] = torch.randn(rows, 4)
    dense = random_adapter(base, r".*[qv]_proj", 4, 1)
    for key, tensors, length in (("a", experts, None), ("b", dense, None), ("c", dense, 300)):
        write_adapter(tmp_path / key, tensors, 4, context_length=length)
    rows = {name: torch.randn(2, 32) for name in ("input_embeddings", "output_embeddings")}
    save_file(rows, tmp_path / "b" / "new_embeddings.safetensors")
    requests = []
    for i, key in enumerate(["", "a", "b", "c"]):
        ids = [3, 4 + i, *([VOCAB, VOCAB + 1] if key == "b" else [7, 8])]
        requests.append(msgspec.structs.replace(request(i, ids, max_tokens=3, logprobs=2), adapter=key))
    lora = LoraConfig(enable_lora=True, max_loras=2, max_cpu_loras=3, lora_extra_vocab_size=256,
                      long_lora_scaling_factors=[3.0])  # fmt: skip
    replies: dict[int, Reply] = {}
    for device in (None, InterpretedDevice()):
        engine = TinyEngine(tmp_path / "base", device, monkeypatch, lora=lora)
        for key in "abc":
            engine.worker.read_adapter(key, str(tmp_path / key))
        run = engine.run(requests, ahead=device is not None, per_step=1)
        if device is None:
            replies = run.replies
    check(run, replies)


def test_prompts_with_sounds_give_the_tokens_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = SoundCase(tmp_path, "ultravox", lambda path: TinyEngine(path, None, monkeypatch))
    ids, media = case.prompt([sound(1.03, 2)])
    requests = [AddRequest(1, ids, request(1, ids, max_tokens=2).params, media=media)]
    expected = case.engine.run(requests).replies
    check(TinyEngine(tmp_path, InterpretedDevice(), monkeypatch).run(requests), expected)


def test_adapters_in_captured_steps_give_the_tokens_of_the_cpu(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come and go, and one of them changes the vocabulary's matrices, which no captured step has a place for;
    another puts rows in front of prompts."""
    base = transformers.LlamaForCausalLM.from_pretrained(model)
    for number, key in enumerate("ab"):
        tensors = random_adapter(base, r".*_proj" if key == "a" else r".*(v_proj|lm_head)", 4, number)
        write_adapter(tmp_path / key, tensors, 4)
    write_prompt_adapter(tmp_path / "p", 0.3 * torch.randn(5, 32))
    requests = [
        msgspec.structs.replace(each, adapter=key, num_virtual_tokens=5 if key == "p" else 0)
        for each, key in zip(requests_under_test(), ["", "a", "p", "b", "a", "p"], strict=True)
    ]
    lora, replies = LoraConfig(enable_lora=True, max_loras=1, max_cpu_loras=2), {}
    prompts = PromptAdapterConfig(enable_prompt_adapter=True, max_prompt_adapter_token=8)
    for device in (None, InterpretedDevice()):
        engine = TinyEngine(model, device, monkeypatch, lora=lora, prompts=prompts)
        for key in "abp":
            engine.worker.read_adapter(key, str(tmp_path / key))
        run = engine.run(requests, ahead=device is not None, per_step=1)
        if device is None:
            replies = run.replies
    check(run, replies)
    assert engine.device.num_replays > 0 and set(engine.info.ops.values()) == {"triton"}


def test_layers_that_see_pictures_beside_the_text_give_the_tokens_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind text and in front of it, and beside a request without pictures, also where a prompt comes in pieces."""
    vision = {
        "num_hidden_layers": 1,
        "num_global_layers": 1,
        "intermediate_layers_indices": [],
        "vision_output_dim": 48,
    }
    make_mllama(tmp_path, vision, num_hidden_layers=2, cross_attention_layers=[1])
    asked = [asking(0, [3, IMAGE, 4], [pixels(16, 16, 1)], max_tokens=6), asking(1, [3, 4], [], max_tokens=2)]
    expected = TinyEngine(tmp_path, None, monkeypatch).run(asked).replies
    engine = TinyEngine(tmp_path, InterpretedDevice(), monkeypatch)
    scheduler = engine.scheduler(max_num_batched_tokens=4, max_num_prefill_tokens=4)
    check(engine.run(asked, scheduler=scheduler, ahead=True), expected)
    assert engine.device.num_replays > 0  # when the one without pictures has ended
