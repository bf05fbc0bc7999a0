"""Sounds to samples of one channel."""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from octavo.media.decoding.refused import Refused

try:
    import soundfile
except (ImportError, OSError):  # OSError: its library does not load
    soundfile = None

_FORMATS: Final = frozenset({"WAV", "WAVEX", "RF64", "FLAC", "MP3", "MPEG", "OGG"})
_MAX_CHANNELS: Final = 16
#: Samples a second.
RATES: Final = range(1_000, 384_001)
_LOUDEST: Final = 2.0**32


def decode_sound(data: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
    """{rate, blobs: [float32 samples in -1..1]}. Raises `Refused`."""
    if not data:
        raise Refused("it is empty")
    samples, rate = (_with_library if soundfile is not None else _wav)(data, options["max_seconds"])
    if not len(samples):
        raise Refused("it has no samples")
    mono = np.ascontiguousarray(samples.mean(axis=1, dtype=np.float32))
    if not are_samples(mono):
        raise Refused("it has samples that are no numbers, or far beyond -1..1")
    return {"rate": rate, "blobs": [mono.tobytes()]}


def are_samples(samples: np.ndarray) -> bool:
    """Whether they can be resampled in float32, which those of files of floats need not be. Some have those of 32 bits
    as they are."""
    return bool((np.abs(samples) <= _LOUDEST).all())  # never of NaN


def _checked(rate: int, channels: int, frames: int, max_seconds: float) -> int:
    """Most frames that are read."""
    if rate not in RATES or not 0 < channels <= _MAX_CHANNELS:
        raise Refused(f"it has {channels} channels of {rate} Hz")
    if frames > rate * max_seconds:
        raise Refused(f"it is longer than {max_seconds:g} s (--max-audio-seconds)")
    return int(rate * max_seconds)


def _with_library(data: bytes, max_seconds: float) -> tuple[np.ndarray, int]:
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format not in _FORMATS:
                raise Refused("it is of a kind that is not read; WAV, FLAC, MP3 and Ogg are")
            most = _checked(file.samplerate, file.channels, file.frames, max_seconds)
            # One more than may be: what a header says of the length need not be so.
            samples = file.read(most + 1, dtype="float32", always_2d=True)
            rate = int(file.samplerate)
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, OSError):
        raise Refused("it is no sound, or damaged; WAV, FLAC, MP3 and Ogg are read") from None
    _checked(rate, samples.shape[1], len(samples), max_seconds)
    return samples, rate


def _wav(data: bytes, max_seconds: float) -> tuple[np.ndarray, int]:
    try:
        with wave.open(io.BytesIO(data)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            most = _checked(rate, channels, file.getnframes(), max_seconds)
            raw = file.readframes(most)
    except (wave.Error, EOFError, ValueError, OverflowError):
        raise Refused("it is no WAV file of integers; octavo[media] is needed to read others") from None
    samples: np.ndarray
    raw = raw[: len(raw) // (width * channels) * width * channels]
    if width == 1:
        samples = (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / 128
    elif width == 3:
        parts = np.frombuffer(raw, np.uint8).reshape(-1, 3).astype(np.int32)
        samples = (((parts[:, 0] << 8 | parts[:, 1] << 16 | parts[:, 2] << 24) >> 8) / (1 << 23)).astype(np.float32)
    elif width in (2, 4):
        samples = np.frombuffer(raw, f"<i{width}").astype(np.float32) / float(1 << (8 * width - 1))
    else:
        raise Refused(f"its samples have {8 * width} bits")
    return samples.reshape(-1, channels), rate
