"""`LLM.transcribe` with the real tiny.en; times of words against transformers in float32."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers.models.whisper.generation_whisper import _dynamic_time_warping

from octavo import LLM
from octavo.base.errors import InvalidRequest
from octavo.media.decoding.sounds import decode_sound
from octavo.text.media.mel import HOP, RATE, log_mel, resampled
from octavo.text.words import TimedToken, first_moments, words_of


@pytest.fixture(scope="module")
def llm(whisper_hf: Path) -> Iterator[LLM]:
    with LLM(str(whisper_hf), dtype="float32", kv_cache_memory_bytes=256 << 20) as llm:
        yield llm


@pytest.fixture(scope="module")
def samples(speech_clip: Path) -> np.ndarray:
    """float32, at `RATE`."""
    decoded = decode_sound(speech_clip.read_bytes(), {"max_seconds": 60.0})
    return resampled(np.frombuffer(decoded["blobs"][0], np.float32), decoded["rate"])


def test_words_are_said_when_transformers_says_so(
    llm: LLM, whisper_hf: Path, speech_clip: Path, samples: np.ndarray
) -> None:
    [found] = llm.transcribe(speech_clip, word_timestamps=True)
    words = [word for segment in found.segments for word in segment.words or ()]
    assert "".join(word.word for word in words).strip() == found.text
    assert all(word.start <= word.end for word in words)
    assert all(a.start <= b.start for a, b in itertools.pairwise(words))

    model = transformers.WhisperForConditionalGeneration.from_pretrained(
        whisper_hf, attn_implementation="eager", dtype=torch.float32
    )
    settings = model.generation_config
    settings.no_timestamps_token_id, settings.max_initial_timestamp_index = 50_362, 50
    settings.max_length = 448
    settings.decoder_start_token_id, settings.eos_token_id, settings.pad_token_id = 50_257, 50_256, 50_256
    frames = log_mel(np.pad(samples, (0, 30 * RATE - len(samples))), 80)
    is_sound = torch.arange(len(frames))[None] < -(-len(samples) // HOP)
    expected = model.generate(
        input_features=torch.from_numpy(frames.T.copy())[None],
        return_timestamps=True,
        return_token_timestamps=True,
        attention_mask=is_sound.long(),
    )
    ids = [token for segment in found.segments for token in segment.token_ids]
    told = expected["sequences"][0].tolist()
    first = len(told) - len(ids) - 1 if told[-1] == settings.eos_token_id else len(told) - len(ids)
    assert told[first : first + len(ids)] == ids
    ends = expected["token_timestamps"][0].tolist()[first : first + len(ids)]
    tokens = [TimedToken(*each) for each in zip(ids, [0.0, *ends], ends, strict=False)]
    text = [token for token in tokens if token.token_id < settings.eos_token_id]
    wanted = words_of(text, lambda token: llm.tokenizer.token_bytes(token) or b"", "en")
    assert [word.word for word in words] == [word.word for word in wanted] and len(words) > 60
    for word, other in zip(words, wanted, strict=True):
        assert abs(word.start - other.start) < 0.021 and abs(word.end - other.end) < 0.021, (word, other)
    # The same as bytes, as samples and by a name, and in company.
    [again, same, bare] = llm.transcribe([speech_clip.read_bytes(), (samples, RATE), str(speech_clip)])
    assert again.text == same.text == bare.text == found.text and again.segments[0].words is None


def test_silence_and_noise_are_what_the_reference_takes_them_for(llm: LLM) -> None:
    """transformers with the same thresholds leaves the noise out, and hears `you` in silence: it is likely enough."""
    noise = 0.05 * np.random.default_rng(0).standard_normal(8 * RATE).astype(np.float32)
    [nothing, silence] = llm.transcribe([(noise, RATE), (np.zeros(5 * RATE, np.float32), RATE)])
    assert (nothing.text, nothing.segments) == ("", [])
    [segment] = silence.segments
    assert (segment.text, segment.temperature) == (" you", 0.0)
    assert segment.avg_logprob == pytest.approx(-0.7001, abs=2e-3) and segment.no_speech_prob > 0.6


def test_a_path_is_that_of_transformers() -> None:
    for seed, shape in enumerate([(1, 5), (5, 1), (7, 7), (12, 60), (30, 20)]):
        looks = np.random.default_rng(seed).standard_normal(shape).astype(np.float32).round(1)
        tokens, moments = _dynamic_time_warping(-looks.astype(np.float64))
        jumps = np.pad(np.diff(tokens), (1, 0), constant_values=1).astype(bool)
        assert first_moments(looks).tolist() == moments[jumps].tolist()


def test_what_cannot_be_is_refused_by_name(llm: LLM, tmp_path: Path) -> None:
    for audio, options, param in (
        (tmp_path / "none.wav", {}, "audio.0"),
        ([b"no sound"], {}, "audio.0"),
        ([3], {}, "audio.0"),
        (b"", {"task": "sing"}, "task"),
        (b"", {"task": "translate"}, "model"),
        (b"", {"language": "de"}, "language"),
        (b"", {"temperature": 2.0}, "temperature"),
    ):
        with pytest.raises(InvalidRequest) as raised:
            llm.transcribe(audio, **options)  # type: ignore[arg-type]
        assert raised.value.param == param
