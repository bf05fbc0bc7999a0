"""Processors of sounds: which frames go to the encoder, how many tokens a sound is, and what is refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from octavo.base.errors import CheckpointError, InvalidRequest
from octavo.base.media import MediaTensor
from octavo.media.decoding.refused import Refused
from octavo.media.decoding.sounds import decode_sound
from octavo.served.media_text import Mark, MediaText
from octavo.text.media.files import sound_settings
from octavo.text.media.mel import resampled
from octavo.text.media.sound_table import sound_processor
from octavo.text.media.sounds import SoundProcessor
from octavo.text.templates.chat_template import ChatTemplate
from octavo.text.templates.conversation import render_conversation

ULTRAVOX: dict[str, Any] = {
    "architectures": ["UltravoxModel"], "text_config": {"vocab_size": 128_256}, "stack_factor": 8,
    "audio_config": {"num_mel_bins": 128, "max_source_positions": 1500},
}  # fmt: skip
QWEN: dict[str, Any] = {"architectures": ["Qwen2AudioForConditionalGeneration"], "audio_token_index": 151_646}
VOXTRAL: dict[str, Any] = {"architectures": ["VoxtralForConditionalGeneration"], "audio_token_id": 24}
IDS = {"<|reserved_special_token_0|>": 128_002, "<|audio|>": 128_256}


def processor(config: dict[str, Any], settings: dict[str, Any] | None = None) -> SoundProcessor:
    found = sound_processor(config, settings or {}, IDS.get)
    assert found is not None
    return found


def array(tensor: MediaTensor) -> np.ndarray:
    return np.frombuffer(tensor.data, tensor.dtype).reshape(tensor.shape)


@pytest.mark.parametrize(
    ("config", "num_samples", "pieces"),
    [
        (ULTRAVOX, 0, [(2, 1, 1)]),
        (ULTRAVOX, 1, [(2, 1, 1)]),
        (ULTRAVOX, 16_001, [(101, 51, 51)]),
        (ULTRAVOX, 480_000, [(3000, 1500, 1500)]),
        (ULTRAVOX, 480_001, [(3000, 1500, 1500), (16, 1, 8)]),
        (ULTRAVOX, 959_999, [(3000, 1500, 1500), (3000, 1500, 1500)]),
        (QWEN, 1, [(6, 2, 2)]),
        (QWEN, 16_000, [(102, 50, 50)]),
        (QWEN, 15_841, [(102, 50, 50)]),
        (QWEN, 15_840, [(102, 50, 50)]),
        (QWEN, 15_680, [(100, 49, 48)]),
        (QWEN, 480_000, [(3000, 1500, 1500)]),
        (VOXTRAL, 1, [(3000, 1500, 1500)]),
        (VOXTRAL, 480_001, [(3000, 1500, 1500)] * 2),
    ],
)
def test_a_sound_is_cut_in_pieces(config: dict[str, Any], num_samples: int, pieces: list[tuple[int, ...]]) -> None:
    own = processor(config)
    media = own.audio(np.full(num_samples, 0.01, np.float32), 16_000, {})
    assert array(media.tensors["pieces"]).tolist() == list(map(list, pieces))
    assert array(media.tensors["frames"]).shape == (sum(frames for frames, _, _ in pieces), 128)
    assert media.rows == sum(-(-kept // own.merge) for _, _, kept in pieces) == media.text.count(own.row_text)


@pytest.mark.parametrize("num_samples", [480, 481, 7_777, 16_000, 123_456, 479_999])
def test_qwen2_audio_counts_tokens_as_transformers(num_samples: int) -> None:
    frames = -(-num_samples // 160)
    tokens = ((frames - 1) // 2 + 1 - 2) // 2 + 1
    assert processor(QWEN).audio(np.zeros(num_samples, np.float32), 16_000, {}).rows == tokens


def test_a_sound_is_brought_to_the_rate_of_the_encoder() -> None:
    own = processor(ULTRAVOX)
    assert own.audio(np.zeros(48_000, np.float32), 48_000, {}) == own.audio(np.zeros(16_000, np.float32), 16_000, {})


def test_equal_sounds_have_equal_digests() -> None:
    own = processor(ULTRAVOX)
    first, same, other = (own.audio(np.full(900, value, np.float32), 16_000, {}) for value in (0.1, 0.1, 0.2))
    assert first.digest == same.digest != other.digest


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at most 30 s"):
        processor(QWEN).audio(np.zeros(480_001, np.float32), 16_000, {})
    with pytest.raises(InvalidRequest, match="no option `speed`"):
        processor(ULTRAVOX).audio(np.zeros(900, np.float32), 16_000, {"speed": 2})
    for key, value in (("feature_size", 80), ("sampling_rate", 8_000), ("hop_length", 100), ("do_normalize", True)):
        with pytest.raises(CheckpointError, match=f"`{key}` is {value}"):
            processor(ULTRAVOX, {key: value})
    with pytest.raises(CheckpointError, match="no token that could stand for a row"):
        sound_processor({**ULTRAVOX, "text_config": {"vocab_size": 100}}, {}, IDS.get)
    assert sound_processor({"architectures": ["LlamaForCausalLM"]}, {}, IDS.get) is None


def test_settings_stand_in_the_newer_file_or_the_older() -> None:
    old, new = {"feature_size": 80}, {"feature_extractor": {"feature_size": 128}}
    assert sound_settings(new, old) == {"feature_size": 128}
    assert sound_settings({}, old) == sound_settings(None, old) == old
    assert sound_settings(None, None) == {}


def test_marks_stand_around_a_sound_whether_the_template_knows_sounds_or_not() -> None:
    from transformers import Qwen2AudioProcessor

    own = processor(QWEN)
    media = own.audio(np.zeros(16_000, np.float32), 16_000, {})
    text = MediaText({"audio": (own.audio_placeholder, own.audio_placeholder_id)}, shown={"audio": own.audio_mark})
    messages = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What?"}]}]
    around = f"<|audio_bos|>{'<|AUDIO|>' * media.rows}<|audio_eos|>\n"
    theirs = Qwen2AudioProcessor.default_chat_template.fget(None)
    plain = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    for template, before in ((theirs, "Audio 1: "), (plain, "")):
        shown = render_conversation(
            ChatTemplate(template, {}), messages, "auto", media=text.placeholders, shown_media=text.shown
        )
        expanded = text.expanded(shown, [Mark("audio", media)], "messages")
        assert f"<|im_start|>user\n{before}{around}What?<|im_end|>\n" in expanded


@pytest.mark.parametrize("loudest", [np.nan, np.inf, 3e38, 2.0**33])
def test_samples_that_cannot_be_resampled_are_refused(loudest: float) -> None:
    soundfile = pytest.importorskip("soundfile")
    samples = np.linspace(-1, 1, 800, dtype=np.float32)
    for factor, is_taken in ((1.0, True), (2.0**31, True), (loudest, False)):
        out = io.BytesIO()
        soundfile.write(out, samples * np.float32(factor), 8_000, format="WAV", subtype="FLOAT")
        if not is_taken:
            with pytest.raises(Refused, match="no numbers, or far beyond"):
                decode_sound(out.getvalue(), {"max_seconds": 1.0})
            continue
        made = decode_sound(out.getvalue(), {"max_seconds": 1.0})
        assert np.isfinite(resampled(np.frombuffer(made["blobs"][0], np.float32), made["rate"])).all()
