"""`octavo.LLM` with the fake model's engine: batches, checks, threads, and its end."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import octavo
from octavo import LLM, SamplingParams
from octavo.base.errors import (
    ContextLengthExceeded,
    EngineDead,
    InvalidConfig,
    InvalidRequest,
    RequestError,
    ShuttingDown,
    StartupError,
)
from octavo.launch import engine_process
from support.client_fakes import EOS, TOKENIZER
from support.server_process import eventually

TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    TOKENIZER._backend.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text("{}")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "chat_template": template}))
    return directory


@pytest.fixture(autouse=True, scope="module")
def fake_engine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_process, "ENGINE_COMMAND", (sys.executable, str(TESTS / "support" / "fake_engine.py")))
        yield


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM(str(model), max_num_seqs=4, max_num_queued_reqs=6) as llm:
        yield llm


def params(max_tokens: int = 5, **fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, seed=1, **fields)


def test_results_come_in_the_order_of_the_prompts_whatever_the_batch(llm: LLM) -> None:
    prompts = [f"prompt {i}" for i in range(40)]  # more than run and wait at once
    together = llm.generate(prompts, params(), use_tqdm=False)
    assert [r.prompt for r in together] == prompts
    assert [r.prompt_token_ids for r in together] == [list(p.encode()) for p in prompts]
    alone = [llm.generate(p, params(), use_tqdm=False)[0] for p in prompts[::7]]
    assert [r.outputs for r in together[::7]] == [r.outputs for r in alone]
    assert {len(r.outputs[0].token_ids) for r in together} == {5}
    assert {r.outputs[0].finish_reason for r in together} == {"length"}
    assert all(r.finished for r in together)


def test_every_shape_of_a_prompt_means_the_same(llm: LLM) -> None:
    ids = list(b"abc")
    shapes: list[Any] = ["abc", ids, [ids], ["abc"], {"prompt": "abc"}, [{"prompt_token_ids": ids}]]
    results = [llm.generate(shape, params(), use_tqdm=False) for shape in shapes]
    assert all(len(r) == 1 and r[0].prompt_token_ids == ids for r in results)
    assert len({tuple(r[0].outputs[0].token_ids) for r in results}) == 1
    assert llm.generate([], params(), use_tqdm=False) == []


def test_parameters_for_each_prompt_and_samples_in_order(llm: LLM) -> None:
    first, second = llm.generate(["a", "b"], [params(3), params(4, n=3)], use_tqdm=False)
    assert [len(o.token_ids) for o in first.outputs] == [3]
    assert [o.index for o in second.outputs] == [0, 1, 2]
    assert len({tuple(o.token_ids) for o in second.outputs}) == 3
    assert len(llm.generate("a", use_tqdm=False)[0].outputs[0].token_ids) == 16
    assert first.outputs[0].logprobs is None and first.outputs[0].cumulative_logprob is None


def test_best_of_and_prompt_logprobs(llm: LLM) -> None:
    (result,) = llm.generate("abc", params(4, n=2, best_of=3, prompt_logprobs=1), use_tqdm=False)
    assert [o.index for o in result.outputs] == [0, 1]
    assert result.outputs[0].logprobs is None
    assert result.prompt_logprobs is not None and result.prompt_logprobs[0] is None
    assert [ord("b") in (result.prompt_logprobs[1] or {}), len(result.prompt_logprobs)] == [True, 3]


def test_a_stop_string_may_be_one_string_or_a_list(llm: LLM) -> None:
    whole = llm.generate("stop here", params(40), use_tqdm=False)[0].outputs[0]
    word = whole.text[10:12]
    for stop in (word, [word], (word,)):
        output = llm.generate("stop here", params(40, stop=stop), use_tqdm=False)[0].outputs[0]
        assert (output.finish_reason, output.stop_reason) == ("stop", word)
        assert output.text == whole.text[: whole.text.index(word)]


def test_chat_renders_the_template(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "Hi"}]
    (one,) = llm.chat(conversation, params(), use_tqdm=False)
    assert one.prompt == "user: Hi\n"
    both = llm.chat([conversation, conversation], params(), use_tqdm=False)
    assert [r.outputs for r in both] == [one.outputs] * 2
    with pytest.raises(InvalidRequest):
        llm.chat(conversation, continue_final_message=True, add_generation_prompt=True)


WRONG: list[tuple[Any, Any, str | None]] = [
    ("a", params(0), "max_tokens"),
    ("a", SamplingParams(temperature=3.0), "temperature"),
    ("a", SamplingParams(temperature="hot"), "temperature"),  # type: ignore[arg-type]
    ("a", SamplingParams(n=2, temperature=0.0), "n"),
    ("a", SamplingParams(stop=5), "stop"),  # type: ignore[arg-type]
    ("a", params(min_tokens=9), "min_tokens"),
    ("a", SamplingParams(min_tokens=10_000), "min_tokens"),
    ("a", SamplingParams(n=129), "n"),
    ("a", SamplingParams(logprobs=21), "logprobs"),
    ("", params(), "prompts.0"),
    ([[300]], params(), "prompts.0"),
    ([[-1]], params(), "prompts.0"),
    (["a", 1.5], params(), "prompts.1"),
    (["a", None], params(), "prompts.1"),
    (5, params(), "prompts"),
    ({}, params(), "prompts.0"),
    ({"prompt": 5}, params(), "prompts.0"),
    ({"prompt_token_ids": ["a"]}, params(), "prompts.0"),
    ({"prompt_token_ids": [True]}, params(), "prompts.0"),
    ({"prompt_token_ids": 5}, params(), "prompts.0"),
    ([[2**70]], params(), "prompts.0"),
    ("a", "greedy", "sampling_params"),
    ("a", [5], "sampling_params"),
    ("a", SamplingParams(n=True), "n"),
    ("a", SamplingParams(logit_bias={"x": 1}), "logit_bias"),  # type: ignore[dict-item]
    ("a", SamplingParams(stop_token_ids=(1, "2")), "stop_token_ids[1]"),  # type: ignore[arg-type]
    ("a", SamplingParams(seed=2**70), "seed"),
    ("a", SamplingParams(max_tokens=2**70), "max_tokens"),
    (["a", "b"], [params()], "sampling_params"),
    ("a", params(grammar='start: "a"'), "grammar"),
]


@pytest.mark.parametrize("row", WRONG, ids=lambda row: str(row)[:60])
def test_what_is_wrong_is_named_before_anything_is_started(llm: LLM, row: Any) -> None:
    prompts, given, param = row
    with pytest.raises(RequestError) as caught:
        llm.generate(prompts, given, use_tqdm=False)
    assert caught.value.param == param
    with pytest.raises(ContextLengthExceeded):
        llm.generate(["a", "x" * 5000], params(), use_tqdm=False)
    assert llm._model.engine.num_unfinished == 0


@pytest.mark.parametrize("priority", [[2**70], [-(2**70)], ["x"], [1.0], [None], [True], []], ids=str)
def test_a_priority_that_cannot_cross_to_the_engine_is_refused(llm: LLM, priority: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        llm.generate("a", params(), use_tqdm=False, priority=priority)
    assert caught.value.param == "priority"
    assert llm.generate("a", params(), use_tqdm=False, priority=[3])[0].finished


def test_a_bar_on_stderr_unless_it_is_turned_off(llm: LLM, capfd: pytest.CaptureFixture[str]) -> None:
    llm.generate(["a", "b"], params(), use_tqdm=False)
    assert capfd.readouterr().err == ""
    llm.generate(["a", "b"], params())
    shown = capfd.readouterr().err
    assert "2/2" in shown and "tokens/s out" in shown


def test_it_works_in_a_running_event_loop_and_from_many_threads(llm: LLM) -> None:
    expected = llm.generate("abc", params(), use_tqdm=False)[0].outputs

    async def inside() -> Any:
        return llm.generate("abc", params(), use_tqdm=False)[0].outputs

    assert asyncio.run(inside()) == expected
    results: list[Any] = []

    def ask() -> None:
        results.append([r.outputs for r in llm.generate(["abc"] * 20, params(), use_tqdm=False)])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[expected] * 20] * 4


def children() -> set[psutil.Process]:
    return set(psutil.Process().children())


def test_it_ends_with_close_with_its_scope_and_with_its_last_reference(model: Path) -> None:
    before = children()
    llm = LLM(str(model))
    assert len(children() - before) == 1
    llm.close()
    llm.close()
    assert children() == before
    with pytest.raises(ShuttingDown):
        llm.generate("a")
    with LLM(str(model)):
        pass
    assert children() == before
    llm = LLM(str(model))
    del llm
    gc.collect()
    assert children() == before


def test_it_may_be_made_in_a_thread_that_ends(model: Path) -> None:
    made: list[LLM] = []
    thread = threading.Thread(target=lambda: made.append(LLM(str(model))))
    thread.start()
    thread.join()
    with made[0] as llm:
        assert len(llm.generate("abc", params(), use_tqdm=False)) == 1


def test_a_dead_engine_is_an_error_and_not_a_wait(model: Path) -> None:
    before = children()
    with LLM(str(model)) as llm:
        (engine,) = children() - before
        engine.kill()
        eventually(lambda: llm._model.engine.dead_reason, 10, "word of the death")
        with pytest.raises(EngineDead):
            llm.generate("a", use_tqdm=False)


def test_wrong_settings_are_named_and_leave_nothing(model: Path, tmp_path: Path) -> None:
    before = children()
    with pytest.raises(InvalidConfig, match="max_model_len"):
        LLM(str(model), max_model_length=5)
    with pytest.raises(InvalidConfig, match="max-num-seqs"):
        LLM(str(model), max_num_seqs=0)
    with pytest.raises(InvalidConfig, match="block_size"):
        LLM(str(model), block_size="16")
    with pytest.raises(InvalidConfig, match="'api_key'"):  # nothing a program without a server has
        LLM(str(model), api_key=["k"])
    with pytest.raises(InvalidConfig, match=r"top_q.*did you mean top_p"):
        LLM(str(model), override_generation_config={"top_q": 1})
    with pytest.raises(InvalidConfig, match="temperature"):
        LLM(str(model), override_generation_config='{"temperature": 9}')
    with pytest.raises(InvalidConfig, match="nowhere"):
        LLM(str(model), generation_config="nowhere")
    with pytest.raises(StartupError):
        LLM(str(tmp_path / "nothing"))
    assert children() == before


def test_a_script_that_closes_nothing_ends_and_leaves_nothing(model: Path) -> None:
    script = (
        "import sys; from octavo.launch import engine_process; from octavo import LLM, SamplingParams\n"
        f"engine_process.ENGINE_COMMAND = (sys.executable, {str(TESTS / 'support' / 'fake_engine.py')!r})\n"
        f"llm = LLM({str(model)!r})\n"
        "print(len(llm.generate('abc', SamplingParams(max_tokens=3))[0].outputs[0].token_ids), llm._thread._engine.pid)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    count, pid = run.stdout.split()
    assert count == "3"
    assert not psutil.pid_exists(int(pid))


def test_the_public_name_costs_no_http_server() -> None:
    code = "import sys, octavo; octavo.LLM; print('uvicorn' in sys.modules, 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False", "False"]
    assert octavo.LLM is LLM and EOS == 256
