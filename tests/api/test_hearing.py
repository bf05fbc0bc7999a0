"""Sounds from end to end, with a tiny random Ultravox: OpenAI's client, the example, and programs."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openai import BadRequestError, OpenAI

from octavo import LLM, SamplingParams
from octavo.base.errors import InvalidRequest
from support.media_fakes import data_url, image_part, wav
from support.server_process import ServerProcess, bound
from support.tiny_ultravox import CHANNELS, Ultravox, widen

pytestmark = pytest.mark.slow

ROW = "<|reserved_special_token_0|>"
WORDS = ["<unk>", "<s>", "</s>", ROW, *"abcdefghijklmnopqrstuvwxyz:\n ?ABCDEFGHIJKLMNOPQRSTUVWXYZ0123"]
#: As that of the language model, which knows texts alone.
TEMPLATE = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}{% endfor %}a:"
TEXT: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "eos_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
SAY = {"type": "text", "text": "what?"}
FLAGS = [
    "--limit-mm-per-prompt", "audio=2,image=1", "--max-audio-seconds", "40", "--max-model-len", "200",
    "--num-threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def ultravox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tokenizers

    path = tmp_path_factory.mktemp("ultravox")
    torch.manual_seed(0)
    model = Ultravox(TEXT)
    widen(model)
    model.save_in_parts(path, keeps_audio=True)
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({word: i for i, word in enumerate(WORDS)}, [], unk_token="<unk>")
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>", ROW])
    backend.decoder = tokenizers.decoders.Fuse()
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": TEMPLATE}))
    (path / "preprocessor_config.json").write_text(json.dumps({"feature_size": CHANNELS, "sampling_rate": 16_000}))
    return path


@pytest.fixture(scope="module")
def server(ultravox: Path) -> Iterator[ServerProcess]:
    with ServerProcess(ultravox, *FLAGS) as server:
        yield server.wait_ready()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def tone(hz: float, seconds: float = 0.5, rate: int = 16_000) -> np.ndarray:
    """int16 [samples]."""
    at = np.arange(int(seconds * rate)) / rate
    return (8000 * np.sin(2 * np.pi * hz * at)).astype("<i2")


def part(data: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


LOW, HIGH = wav(tone(300), 16_000), wav(tone(2500), 16_000)
#: Two frames are a row of the encoder, eight of these a token; a piece of a second is 50 rows.
TOKENS_OF_HALF_A_SECOND = 4


def asked(client: OpenAI, *parts: Any, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": list(parts)}]
    model = client.models.list().data[0].id
    return client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0, **options)


def heard(reply: Any) -> int:
    tokens: int = reply.usage.prompt_tokens_details.model_dump()["audio_tokens"]
    return tokens


def said(reply: Any) -> list[tuple[str, float]]:
    """Tokens and how likely they were, which tells sounds apart that are answered alike."""
    return [(each.token, each.logprob) for each in reply.choices[0].logprobs.content]


def test_the_reply_depends_on_the_sound_and_its_place(client: OpenAI, server: ServerProcess) -> None:
    low, again, high = (asked(client, SAY, part(each), logprobs=True) for each in (LOW, LOW, HIGH))
    assert said(low) == said(again) != said(high)
    assert low.usage.prompt_tokens == len("u: ") + TOKENS_OF_HALF_A_SECOND + len("\nwhat?a:")
    assert heard(low) == TOKENS_OF_HALF_A_SECOND
    both, turned = (asked(client, SAY, *map(part, pair), logprobs=True) for pair in ((LOW, HIGH), (HIGH, LOW)))
    assert said(both) != said(turned)
    assert heard(both) == 2 * TOKENS_OF_HALF_A_SECOND
    counts = server.metrics()
    assert counts["vllm:mm_cache_hits_total"] >= 4 and counts["octavo:media_seconds_total"] > 0


def test_where_the_text_has_a_placeholder_there_is_the_sound(client: OpenAI) -> None:
    placed = asked(client, {"type": "text", "text": "say <|audio|> what?"}, part(LOW))
    assert placed.usage.prompt_tokens == len("u: say ") + TOKENS_OF_HALF_A_SECOND + len(" what?a:")
    with pytest.raises(BadRequestError, match="2 times"):
        asked(client, {"type": "text", "text": "<|audio|><|audio|>"}, part(LOW))
    with pytest.raises(BadRequestError, match="tokens that stand for media"):
        asked(client, {"type": "text", "text": ROW}, part(LOW))


def test_all_spellings_are_the_same_sound(client: OpenAI, server: ServerProcess) -> None:
    expected = asked(client, SAY, part(LOW)).choices[0].message.content
    assert expected
    url = {"type": "audio_url", "audio_url": {"url": data_url(LOW, "audio/wav")}}
    assert asked(client, SAY, url).choices[0].message.content == expected
    stream = asked(client, SAY, part(LOW), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected
    model = client.models.list().data[0].id
    content: Any = [{"type": "input_text", "text": "what?"}, part(LOW)]
    reply = client.responses.create(
        model=model, input=[{"role": "user", "content": content}], max_output_tokens=12, temperature=0, store=False
    )
    assert reply.output_text == expected
    body = {"model": model, "messages": [{"role": "user", "content": [SAY, part(LOW)]}]}
    counted = server.request("POST", "/tokenize", body).json
    assert counted["count"] == len("u: ") + TOKENS_OF_HALF_A_SECOND + len("\nwhat?a:")


STEREO = wav(np.repeat(tone(300, rate=48_000), 2), 48_000, channels=2)
FORMS: dict[str, tuple[bytes, int]] = {
    "one-sample": (wav(tone(300)[:1], 16_000), 1),
    "8-bit": (wav((tone(300) // 256 + 128).astype(np.uint8), 16_000, width=1), TOKENS_OF_HALF_A_SECOND),
    "48-kHz-stereo": (STEREO, TOKENS_OF_HALF_A_SECOND),
    "8-kHz": (wav(tone(300, rate=8_000), 8_000), TOKENS_OF_HALF_A_SECOND),
    "silence": (wav(np.zeros(8_000, "<i2"), 16_000), TOKENS_OF_HALF_A_SECOND),
    "cut-off": (LOW[: len(LOW) // 2], 2),
    # Two pieces of 50 rows, and one of 25.
    "several-pieces": (wav(tone(300, 2.5), 16_000), 7 + 7 + 4),
}


@pytest.mark.parametrize("form", FORMS)
def test_sounds_of_all_forms_are_heard(client: OpenAI, form: str) -> None:
    data, tokens = FORMS[form]
    reply = asked(client, SAY, part(data))
    assert heard(reply) == tokens and reply.choices[0].message.content is not None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"RIFF", "damaged|no WAV|no sound"),
        (wav(np.zeros(0, "<i2"), 16_000), "no samples"),
        (LOW[:30], "damaged|no WAV|no sound"),
        (wav(np.zeros(41 * 1000, "<i2"), 1000), "longer than 40 s"),
        (wav(np.zeros(10, "<i2"), 1), "channels of 1 Hz"),
        (wav(np.zeros(39_000, np.uint8), 1_000, width=1), "context"),
    ],
    ids=["empty", "a-word", "no-samples", "half-a-header", "too-long", "one-sample-a-second", "too-many-tokens"],
)
def test_what_cannot_be_heard_is_refused_with_a_reason(client: OpenAI, data: bytes, words: str) -> None:
    with pytest.raises(BadRequestError, match=words):
        asked(client, SAY, part(data))


def test_pictures_are_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="This model takes text and audio, and no image"):
        asked(client, SAY, image_part())
    with pytest.raises(BadRequestError, match=r"At most 2 audio\(s\)"):
        asked(client, SAY, *[part(LOW)] * 3)


def test_the_example_runs(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(LOW)
    command = [sys.executable, str(Path(__file__).parents[2] / "examples" / "audio.py"), str(tmp_path / "a.wav")]
    env = os.environ | {"OPENAI_BASE_URL": f"{server.url}/v1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=bound(60), check=False)
    assert done.returncode == 0, done.stderr
    assert f"{TOKENS_OF_HALF_A_SECOND} of them for the sound)" in done.stdout


def test_programs_give_samples(ultravox: Path, client: OpenAI) -> None:
    expected = asked(client, SAY, part(LOW)).choices[0].message.content
    params = SamplingParams(temperature=0, max_tokens=12)
    samples = tone(300).astype(np.float32) / 32768
    with LLM(str(ultravox), num_threads=1, limit_mm_per_prompt={"audio": 1}) as llm:
        [result] = llm.chat([{"role": "user", "content": [SAY, part(LOW)]}], params, use_tqdm=False)
        assert result.outputs[0].text == expected
        text = "u: <|audio|>\nwhat?a:"
        ids = llm.get_tokenizer().encode(text.replace("<|audio|>", ROW))
        prompts: list[Any] = [
            {"prompt": text, "multi_modal_data": {"audio": (samples, 16_000)}},
            {"prompt_token_ids": ids, "multi_modal_data": {"audio": [(tone(300), 16_000)]}},
        ]
        for result in llm.generate(prompts, params, use_tqdm=False):
            assert result.outputs[0].text == expected
        for prompt, words in (
            ({"prompt": "a", "multi_modal_data": {"audio": (samples, 16_000)}}, "0 times"),
            ({"prompt": text, "multi_modal_data": {"audio": samples}}, "pair"),
            ({"prompt": text, "multi_modal_data": {"audio": (samples[:0], 16_000)}}, "floats in -1..1"),
            ({"prompt": text, "multi_modal_data": {"audio": (samples * np.nan, 16_000)}}, "floats in -1..1"),
            ({"prompt": text, "multi_modal_data": {"audio": (samples, 1)}}, "1000 to 384000 samples a second"),
            ({"prompt": text, "multi_modal_data": {"image": data_url(b"")}}, "no image"),
        ):
            with pytest.raises(InvalidRequest, match=words):
                llm.generate(prompt, params, use_tqdm=False)
