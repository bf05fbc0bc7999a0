"""Ultravox, Qwen2-Audio, Voxtral: a sound becomes frames of mel spectra, in pieces that Whisper's encoder takes whole.

Two frames are a row of the encoder, and `merge` of these a row of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from octavo.base.errors import CheckpointError, InvalidRequest
from octavo.base.media import PreparedMedia
from octavo.text.media.images import prepared
from octavo.text.media.mel import HOP, RATE, log_mel, resampled

#: Of a sound at `RATE`: frames float32 [frames of all pieces, channels], and int32 [pieces, 3]: the frames of each, the
#: rows of the encoder that are the sound's own, and those that are kept.
Cut = Callable[[np.ndarray, "SoundProcessor"], tuple[np.ndarray, np.ndarray]]
#: What a feature extractor of another kind would make otherwise.
_EXTRACTED: Final = {"sampling_rate": RATE, "hop_length": HOP, "n_fft": 400, "do_normalize": False}


class SoundProcessor:
    """`served.parts.SoundProcessor`. `settings`: of the feature extractor.

    `most_rows`: of the encoder in a piece. `row_text`: what stands for a row, a token; `around`: what stands before and
    behind them. `cut`: how the family's processor pads a sound and cuts it. `mark`: what templates write for a sound,
    the placeholder among it.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        placeholder: str,
        row_text: str,
        row_id: int,
        channels: int,
        most_rows: int,
        merge: int,
        cut: Cut,
        around: tuple[str, str] = ("", ""),
        mark: str | None = None,
    ) -> None:
        for key, value in {**_EXTRACTED, "feature_size": channels}.items():
            if settings.get(key) not in (None, value):
                raise CheckpointError(f"The feature extractor's `{key}` is {settings[key]!r}, and should be {value!r}.")
        self.audio_placeholder = placeholder
        self.audio_mark = mark or placeholder
        self.audio_placeholder_id = row_id
        self.row_text = row_text
        self.channels, self.most_frames, self.merge = channels, 2 * most_rows, merge
        self._around, self._cut = around, cut

    def audio(self, samples: np.ndarray, rate: int, options: Mapping[str, Any]) -> PreparedMedia:
        for name in options:
            raise InvalidRequest(f"The model's feature extractor has no option `{name}`.", "mm_processor_kwargs")
        frames, pieces = self._cut(resampled(samples, rate), self)
        rows = int(np.sum(-(-pieces[:, 2] // self.merge)))
        before, behind = self._around
        text = f"{before}{self.row_text * rows}{behind}"
        return prepared("audio", {"frames": frames, "pieces": pieces.astype(np.int32)}, rows, text)

    @property
    def most_samples(self) -> int:
        """Of a piece."""
        return self.most_frames * HOP


def cut_ultravox(samples: np.ndarray, own: SoundProcessor) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of all frames. The last of several is as long as the others, with zeros behind its own frames: of these
    some rows fill up what becomes one row in the end. A sound that is one piece has none behind it."""
    size = max(2 * HOP, -(-len(samples) // HOP) * HOP)
    frames = log_mel(np.pad(samples, (0, size - len(samples))), own.channels)
    full, rest = divmod(len(frames), own.most_frames)
    pieces = [(own.most_frames, own.most_frames // 2, own.most_frames // 2)] * full
    if rest and full:
        kept = min(-(-rest // (2 * own.merge)) * own.merge, own.most_frames // 2)
        pieces.append((2 * kept, -(-rest // 2), kept))
        frames = np.pad(frames, ((0, 2 * kept - rest), (0, 0)))
    elif rest:
        pieces.append((rest, -(-rest // 2), -(-rest // 2)))
    return frames, np.array(pieces)


def cut_qwen2(samples: np.ndarray, own: SoundProcessor) -> tuple[np.ndarray, np.ndarray]:
    """One piece, with silence behind it. Rows are whole pairs: a sound that is shorter than one has silence in it."""
    if len(samples) > own.most_samples:
        raise InvalidRequest(f"The model hears at most {own.most_samples / RATE:g} s of a sound.")
    num_frames = max(3, -(-len(samples) // HOP))
    frames = log_mel(np.pad(samples, (0, own.most_samples - len(samples))), own.channels)
    rows = -(-num_frames // 2)
    # The convolutions see two frames behind the last row's.
    frames = frames[: 2 * (rows + 1)]
    return frames, np.array([(len(frames), rows, rows // own.merge * own.merge)])


def cut_voxtral(samples: np.ndarray, own: SoundProcessor) -> tuple[np.ndarray, np.ndarray]:
    """Whole pieces, with silence behind the sound, which counts as a part of it."""
    count = max(1, -(-len(samples) // own.most_samples))
    frames = log_mel(np.pad(samples, (0, count * own.most_samples - len(samples))), own.channels)
    return frames, np.array([(own.most_frames, own.most_frames // 2, own.most_frames // 2)] * count)
