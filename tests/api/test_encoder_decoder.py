"""Models with an encoder, as programs and servers have them: the prompt is the encoder's input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.base.errors import ContextLengthExceeded, InvalidRequest
from octavo.base.params import BeamParams
from support.server_process import ServerProcess
from support.tiny_bart import MAX_POSITIONS, make_bart, save_tokenizer

NUM_TOKENS = 8
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
IDS = [0, *range(10, 40), 2]
TEXT = " ".join(f"w{i}" for i in range(10, 40))
START = [2, 0]  # decoder_start_token_id, and bos_token_id behind it


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    path = tmp_path_factory.mktemp("bart")
    model = make_bart(path)
    save_tokenizer(path)
    return model, path


@pytest.fixture(scope="module")
def llm(bart: tuple[Any, Path]) -> Iterator[LLM]:
    with LLM(str(bart[1]), dtype="float32", kv_cache_memory_bytes=64 << 20) as llm:
        yield llm


def continued(model: Any, decoder_ids: list[int], encoder_ids: list[int] = IDS, num_beams: int = 1) -> list[int]:
    """As transformers generates, without an end."""
    with torch.no_grad():
        found = model.generate(
            input_ids=torch.tensor([encoder_ids]), decoder_input_ids=torch.tensor([decoder_ids]), do_sample=False,
            max_new_tokens=NUM_TOKENS, num_beams=num_beams, eos_token_id=None, pad_token_id=1, forced_bos_token_id=None,
        )  # fmt: skip
    ids: list[int] = found[0, len(decoder_ids) :].tolist()
    return ids


def test_a_prompt_is_the_input_of_the_encoder(llm: LLM, bart: tuple[Any, Path]) -> None:
    expected = continued(bart[0], START)
    for prompt in (TEXT, {"prompt": TEXT}, {"encoder_prompt": TEXT}, IDS, {"encoder_prompt": IDS}):
        [result] = llm.generate(prompt, GREEDY, use_tqdm=False)
        assert result.outputs[0].token_ids == expected
        assert (result.prompt, result.prompt_token_ids) == (None, START)
        assert result.encoder_prompt_token_ids == IDS
        assert result.encoder_prompt == (TEXT if TEXT in str(prompt) else None)


def test_the_decoder_goes_on_with_its_own_prompt(llm: LLM, bart: tuple[Any, Path]) -> None:
    ids = [*START, 50, 51]
    for decoder in ("w50 w51", {"prompt": "w50 w51"}, ids, {"prompt_token_ids": ids}, ids[1:]):
        [result] = llm.generate({"encoder_prompt": TEXT, "decoder_prompt": decoder}, GREEDY, use_tqdm=False)
        assert result.prompt_token_ids == ids
        assert result.outputs[0].token_ids == continued(bart[0], ids)


def test_samples_beams_and_scores(llm: LLM, bart: tuple[Any, Path]) -> None:
    params = SamplingParams(temperature=1.0, seed=3, n=3, max_tokens=6, prompt_logprobs=1)
    [together] = llm.generate(TEXT, params, use_tqdm=False)
    assert len({tuple(each.token_ids) for each in together.outputs}) == 3
    assert together.prompt_logprobs is not None and together.prompt_logprobs[0] is None
    assert len(together.prompt_logprobs) == len(START)
    beams = BeamParams(width=2)
    [best] = llm.generate(TEXT, GREEDY, use_tqdm=False, beams=beams)
    assert best.outputs[0].token_ids == continued(bart[0], START, num_beams=2)


def test_what_cannot_be_is_refused_by_name(llm: LLM) -> None:
    for prompt, error, told in (
        ([5] * (MAX_POSITIONS + 1), ContextLengthExceeded, f"At most {MAX_POSITIONS} tokens fit the model's encoder"),
        ({"encoder_prompt": TEXT, "decoder_prompt": [5] * MAX_POSITIONS}, ContextLengthExceeded, "context"),
        ({"encoder_prompt": "", "decoder_prompt": "w5"}, InvalidRequest, "cannot be empty"),
        ({"encoder_prompt": TEXT, "decoder_prompt": [99_999]}, InvalidRequest, "Token ids"),
        ({"encoder_prompt": TEXT, "prompt": "w5"}, InvalidRequest, "goes into the prompt of the encoder"),
        ({"prompt": TEXT, "decoder_prompt": "w5"}, InvalidRequest, "goes into the prompt of the encoder"),
        ({"decoder_prompt": "w5"}, InvalidRequest, "A prompt is a text"),
        ({"encoder_prompt": {"prompt": TEXT, "multi_modal_data": {"image": "a"}}}, InvalidRequest, "Media cannot"),
    ):
        with pytest.raises(error, match=told) as raised:
            llm.generate([prompt], GREEDY, use_tqdm=False)
        assert (raised.value.param or "").startswith("prompts.0")


def test_over_http(bart: tuple[Any, Path]) -> None:
    model, path = bart
    with ServerProcess(path, "--dtype", "float32", "--kv-cache-memory-bytes", str(64 << 20)) as server:
        server.wait_ready()
        asked = {"prompt": TEXT, "temperature": 0, "max_tokens": NUM_TOKENS, "ignore_eos": True}
        reply = server.complete(**asked, return_token_ids=True).json
        assert reply["choices"][0]["token_ids"] == continued(model, START)
        assert reply["usage"]["prompt_tokens"] == len(START) + len(IDS)
        text = "".join(
            event["choices"][0]["text"] for event in server.stream("/v1/completions", asked) if event != "[DONE]"
        )
        assert text == reply["choices"][0]["text"]
        for keep, of_encoder in ((5, IDS[-5:]), (-1, IDS)):
            cut = server.complete(**asked, truncate_prompt_tokens=keep, return_token_ids=True).json
            assert cut["choices"][0]["token_ids"] == continued(model, START, of_encoder)
        refused = server.complete(**asked, echo=True)
        assert refused.status == 400 and refused.json["error"]["param"] == "echo"
        chat = server.request("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "w5"}]})
        assert chat.status == 400 and "chat template" in chat.json["error"]["message"]
