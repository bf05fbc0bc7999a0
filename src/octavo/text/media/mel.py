"""Sounds to what an encoder of speech reads: logarithmic mel spectra, a frame each hundredth of a second."""

from __future__ import annotations

import math
from functools import cache
from typing import Final

import numpy as np

RATE: Final = 16_000  # samples a second
HOP: Final = 160  # samples from one frame to the next
FRAMES_PER_SECOND: Final = RATE // HOP
_WINDOW: Final = 400
_MAX_HZ: Final = 8_000.0
#: Frames whose spectra are in memory at once.
_CHUNK: Final = 3_000
#: Zero crossings of the filter on each side, and its attenuation (of a Kaiser window).
_CROSSINGS: Final = 24
_BETA: Final = 9.0


def log_mel(samples: np.ndarray, channels: int) -> np.ndarray:
    """float32 [samples] at `RATE` in -1..1 -> float32 [samples // HOP, channels].

    A frame's values are between the loudest of all and eight powers of ten below it, brought to about -1..1.
    """
    half = _WINDOW // 2
    padded = np.pad(samples.astype(np.float64), half, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::HOP][: len(samples) // HOP]
    window = np.hanning(_WINDOW + 1)[:-1]
    filters = mel_filters(channels)
    made = np.empty((len(frames), channels), np.float64)
    for first in range(0, len(frames), _CHUNK):
        spectrum = np.abs(np.fft.rfft(frames[first : first + _CHUNK] * window)) ** 2
        made[first : first + _CHUNK] = np.log10(np.maximum(spectrum @ filters, 1e-10))
    if len(made):
        np.maximum(made, made.max() - 8.0, out=made)
    return ((made + 4.0) / 4.0).astype(np.float32)


@cache
def mel_filters(channels: int) -> np.ndarray:
    """float64 [201, channels]: triangles whose corners are equally far apart on Slaney's scale, of equal area."""
    corners = _hz(np.linspace(0.0, _mel(_MAX_HZ), channels + 2))
    bins = np.linspace(0.0, RATE / 2, _WINDOW // 2 + 1)
    slopes = corners - bins[:, None]
    rising, falling = -slopes[:, :-2] / np.diff(corners)[:-1], slopes[:, 2:] / np.diff(corners)[1:]
    filters: np.ndarray = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (corners[2:] - corners[:-2]))
    return filters


#: Slaney's scale: linear up to 1000 Hz, logarithmic above.
_LINEAR: Final = 200.0 / 3.0
_KNEE_MEL: Final = 1000.0 / _LINEAR
_LOG_STEP: Final = math.log(6.4) / 27.0


def _mel(hz: float) -> float:
    return hz / _LINEAR if hz < 1000.0 else _KNEE_MEL + math.log(hz / 1000.0) / _LOG_STEP


def _hz(mels: np.ndarray) -> np.ndarray:
    linear = mels * _LINEAR
    return np.where(mels < _KNEE_MEL, linear, 1000.0 * np.exp(_LOG_STEP * (mels - _KNEE_MEL)))


def resampled(samples: np.ndarray, rate: int, target: int = RATE) -> np.ndarray:
    """float32 [samples] at `rate` -> float32 at `target`, without what the slower of the two cannot hold.

    Output n is at n * rate / target of the input. Those that lie equally far behind an input sample share a filter.
    """
    if rate == target or not len(samples):
        return samples
    divisor = math.gcd(rate, target)
    up, down = target // divisor, rate // divisor
    num = -(-len(samples) * up // down)
    cutoff = min(1.0, up / down)
    half = math.ceil(_CROSSINGS / cutoff)
    padded = np.pad(samples, (half, half + down))
    offsets = np.arange(-half, half + 1)
    made = np.zeros(num, np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    for phase in range(min(up, num)):
        first, rest = divmod(phase * down, up)
        distance = offsets - rest / up
        taper = np.i0(_BETA * np.sqrt(np.maximum(0.0, 1.0 - (distance / (half + 1)) ** 2))) / np.i0(_BETA)
        taps = (cutoff * np.sinc(cutoff * distance) * taper).astype(np.float32)
        count = len(range(phase, num, up))
        made[phase::up] = windows[first::down][:count] @ taps
    return made
