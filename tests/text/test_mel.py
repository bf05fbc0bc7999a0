"""Sounds as frames, against transformers' feature extractor."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from octavo.text.media.mel import HOP, RATE, log_mel, mel_filters, resampled


def tones(rate: int, seconds: float, *hz: float) -> np.ndarray:
    at = np.arange(int(rate * seconds)) / rate
    return sum(np.sin(2 * np.pi * each * at) for each in hz).astype(np.float32) / len(hz)


@pytest.mark.parametrize("channels", [80, 128])
def test_frames_are_those_of_transformers(channels: int) -> None:
    extractor = WhisperFeatureExtractor(feature_size=channels)
    np.testing.assert_allclose(mel_filters(channels), extractor.mel_filters, rtol=1e-6, atol=1e-9)
    noise = np.random.default_rng(5).standard_normal(7 * RATE + 123).astype(np.float32)
    for samples in (0.1 * noise, tones(RATE, 3.3, 440.0, 3000.0), np.zeros(800, np.float32)):
        padded = np.pad(samples, (0, 30 * RATE - len(samples)))
        found = log_mel(padded, channels)
        assert found.shape == (30 * RATE // HOP, channels)
        [exact] = extractor._np_extract_fbank_features(padded[None], "cpu")
        np.testing.assert_allclose(found, exact.T, atol=1e-5, rtol=0)
        # What it does where torch is there is in float32.
        [expected] = extractor(samples, sampling_rate=RATE, return_tensors="np").input_features
        np.testing.assert_allclose(found, expected.T, atol=5e-5, rtol=0)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 24_000, 44_100, 48_000])
def test_a_sound_at_another_rate_is_the_same_sound(rate: int) -> None:
    found = resampled(tones(rate, 0.5, 300.0, 2100.0), rate)
    expected = tones(RATE, 0.5, 300.0, 2100.0)
    assert abs(len(found) - len(expected)) <= 1
    inner = slice(200, min(len(found), len(expected)) - 200)
    np.testing.assert_allclose(found[inner], expected[inner], atol=2e-3)


def test_what_the_lower_rate_cannot_hold_is_left_out() -> None:
    found = resampled(tones(48_000, 0.5, 11_000.0), 48_000)
    assert np.abs(found[200:-200]).max() < 1e-3
