"""Sleep mode on real weights: memory is given back, and the text after waking is the text before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from octavo import LLM, SamplingParams
from octavo.base.errors import Asleep, InvalidRequest

PROMPTS = ["The capital of France is", "One, two, three, " * 120]
PARAMS = SamplingParams(max_tokens=12, logprobs=2, temperature=0.8, seed=5)


@pytest.fixture(scope="module")
def llm(smollm2_gguf: Path) -> Iterator[LLM]:
    with LLM(str(smollm2_gguf), max_model_len=1024, num_kv_blocks_override=128, enable_sleep_mode=True) as llm:
        yield llm


def engine_mib() -> float:
    """What the engine holds that is not pages of files."""
    (engine,) = (child for child in psutil.Process().children() if "octavo.core.process" in child.cmdline())
    status = Path(f"/proc/{engine.pid}/status").read_text()
    lines = [line.split() for line in status.splitlines() if line.startswith(("RssAnon:", "RssShmem:"))]
    return sum(int(line[1]) for line in lines) / 1024


def texts(llm: LLM) -> list[object]:
    results = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    return [(output.token_ids, output.logprobs) for result in results for output in result.outputs]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it is measured as Linux tells it")
@pytest.mark.parametrize("levels", [(1,), (1, 2)], ids=str)
def test_n19_memory_is_given_back_and_every_bit_of_the_text_is_as_before(llm: LLM, levels: tuple[int, ...]) -> None:
    before, awake = texts(llm), engine_mib()
    for level in levels:
        llm.sleep(level)
    asleep = engine_mib()
    # Some 700 tokens of 22 KiB are in the KV cache; the weights are 92 MiB packed.
    assert awake - asleep > (100 if levels[-1] == 2 else 15), (awake, asleep)
    with pytest.raises(Asleep, match="wake"):
        texts(llm)
    llm.wake_up()
    assert texts(llm) == before
    assert engine_mib() < awake + 40


def test_sleep_is_asked_for_when_the_model_is_loaded(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="1 or 2"):
        llm.sleep(3)
    llm.wake_up()  # it is awake
