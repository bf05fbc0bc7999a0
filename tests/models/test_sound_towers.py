"""Models that hear, against transformers in float32 (Ultravox against what its authors publish), on tiny random ones.

Sounds come through octavo's processors and the worker; the reference reads them with transformers' feature extractor.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from engine.harness import Engine
from octavo.base.errors import CheckpointError
from octavo.base.media import MediaItem, place_media
from octavo.base.params import SamplingParams
from octavo.files.parts import with_part_configs
from octavo.models.registry import model_spec
from octavo.ops.run import Runner
from octavo.ops.table import Ops, bind
from octavo.text.media.sound_table import sound_processor
from octavo.text.media.sounds import SoundProcessor
from octavo.wire.messages import AddRequest
from octavo.worker import worker as worker_module
from support.tiny_ultravox import AUDIO, CHANNELS, ROWS, Ultravox, widen

SOUND = 90
TEXT: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "tie_word_embeddings": False,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
ENCODER: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "num_mel_bins": CHANNELS,
    "max_source_positions": ROWS,
}  # fmt: skip


def sound(seconds: float, seed: int) -> np.ndarray:
    """float32 [samples] at 16 kHz."""
    rng = np.random.default_rng(seed)
    at = np.arange(int(seconds * 16_000)) / 16_000
    tone = np.sin(2 * np.pi * rng.uniform(200, 3000) * at) * np.sin(2 * np.pi * 3 * at)
    return (0.3 * tone + 0.05 * rng.standard_normal(len(at))).astype(np.float32)


class UltravoxReference:
    """`options`: of `Ultravox`."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.model = Ultravox(TEXT, **options).eval()
        widen(self.model)
        self.model.save(path)

    def logits(self, ids: list[int], sounds: Sequence[np.ndarray]) -> torch.Tensor:
        return self.model.logits(ids, SOUND, list(sounds))


class Reference:
    """A class of transformers, which reads sounds of whole seconds."""

    def __init__(self, path: Path, family: str, **options: Any) -> None:
        config = getattr(transformers, f"{family}Config")(text_config=TEXT, audio_token_id=SOUND, **options)
        config._attn_implementation = "eager"
        self.family = family
        self.model = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval().float()
        widen(self.model)
        self.model.save_pretrained(path)
        self.extractor = transformers.WhisperFeatureExtractor(feature_size=CHANNELS, chunk_length=1)

    def logits(self, ids: list[int], sounds: Sequence[np.ndarray]) -> torch.Tensor:
        values: dict[str, torch.Tensor] = {}
        pieces = [np.pad(each, (0, -len(each) % 16_000)) for each in sounds]
        if pieces:
            found = [self.extractor._np_extract_fbank_features(each[None], "cpu")[0] for each in pieces]
            frames = [each.reshape(CHANNELS, -1, 2 * ROWS).transpose(1, 0, 2) for each in found]
            values["input_features"] = torch.from_numpy(np.concatenate(frames).astype(np.float32))
        if pieces and self.family == "Qwen2Audio":
            options = {"sampling_rate": 16_000, "return_attention_mask": True, "return_tensors": "pt"}
            masks = self.extractor(list(sounds), padding="max_length", **options)["attention_mask"]
            values["feature_attention_mask"] = masks
            values["attention_mask"] = torch.ones(1, len(ids), dtype=torch.long)
        with torch.no_grad():
            return self.model(input_ids=torch.tensor([ids]), **values).logits[0].float()


CASES: dict[str, Any] = {
    "ultravox": lambda path: UltravoxReference(path),
    "ultravox-of-older-files": lambda path: UltravoxReference(path, norm_inside=False, stack=4),
    "qwen2-audio": lambda path: Reference(path, "Qwen2Audio", audio_config=ENCODER),
    "voxtral": lambda path: Reference(
        path,
        "Voxtral",
        audio_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
            "num_mel_bins": CHANNELS, "max_source_positions": ROWS,
        },
    ),
}  # fmt: skip
#: Of a token's text, as a processor asks for it.
IDS = {"<|reserved_special_token_0|>": SOUND}.get


class Case:
    def __init__(self, path: Path, name: str, engine: Callable[[Path], Engine] = Engine) -> None:
        torch.manual_seed(0)
        self.name, self.path = name, path
        self.reference = CASES[name](path)
        self.engine = engine(path)
        self.processor = self.made_processor()

    def made_processor(self) -> SoundProcessor:
        config = with_part_configs(json.loads((self.path / "config.json").read_text()), self.path)
        found = sound_processor(config, {"feature_size": CHANNELS, "sampling_rate": 16_000}, IDS)
        assert found is not None
        return found

    def prompt(
        self, sounds: Sequence[np.ndarray], text: Sequence[int] = (3, 4, 5)
    ) -> tuple[list[int], tuple[MediaItem, ...]]:
        """Token ids with some text before, between and behind the sounds; and these among them."""
        media = [self.processor.audio(each, 16_000, {}) for each in sounds]
        ids = list(text)
        for number, each in enumerate(media):
            assert each.text.count(self.processor.row_text) == each.rows
            ids += [7 + number, *[SOUND] * each.rows, 8, 9]
        ids += [11, 12]
        return ids, place_media(ids, SOUND, media)

    def reply(
        self, ids: list[int], media: tuple[MediaItem, ...], *, engine: Engine | None = None, **info: Any
    ) -> tuple[list[float], list[int]]:
        """Log probabilities of the prompt's tokens behind the first, and three tokens that follow."""
        params = SamplingParams(temperature=0.0, max_tokens=3, prompt_logprobs=0)
        engine = engine or self.engine
        scheduler = engine.scheduler(prefix_caching=False, **info)
        reply = engine.run([AddRequest(1, ids, params, media=media)], scheduler=scheduler).replies[1]
        assert reply.error is None, reply.error
        return [each.logprob for each in reply.prompt_logprobs], reply.token_ids

    def check(self, sounds: Sequence[np.ndarray], engine: Engine | None = None) -> None:
        ids, media = self.prompt(sounds)
        found, tokens = self.reply(ids, media, engine=engine)
        logprobs = self.reference.logits(ids, sounds).log_softmax(-1)
        expected = logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=2e-3)
        assert tokens[0] == int(logprobs[-1].argmax())


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("sounds"), request.param)


@pytest.mark.parametrize("seconds", [0.405, 1.0, 0.037])
def test_a_sound_is_scored_as_the_reference_scores_it(case: Case, seconds: float) -> None:
    case.check([sound(seconds, 1)])


def test_several_sounds_and_none(case: Case) -> None:
    case.check([sound(0.3, 1), sound(0.82, 2), sound(0.3, 3)])
    case.check([])


def test_a_sound_in_chunks_is_the_same_bit_for_bit(case: Case) -> None:
    ids, media = case.prompt([sound(0.99, 1), sound(0.42, 2)])
    whole = case.reply(ids, media)
    assert case.reply(ids, media, max_num_batched_tokens=5, max_num_prefill_tokens=5) == whole
    assert case.reply(ids, media, media_step_rows=1, media_cache_rows=1) == whole


@pytest.mark.parametrize("case", ["ultravox", "qwen2-audio"], indirect=True)
def test_operations_one_by_one_are_the_native_program(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def bound(*args: Any, **options: Any) -> Ops:
        return dataclasses.replace(bind(*args, **options), program_runner=Runner)

    monkeypatch.setattr(worker_module, "bind", bound)
    ids, media = case.prompt([sound(0.99, 1), sound(0.42, 2)])
    assert case.reply(ids, media, engine=Engine(case.path)) == case.reply(ids, media)


@pytest.mark.parametrize("case", ["ultravox", "ultravox-of-older-files", "voxtral"], indirect=True)
@pytest.mark.parametrize("seconds", [1.05, 2.43, 2.999])
def test_a_sound_of_several_pieces(case: Case, seconds: float) -> None:
    case.check([sound(seconds, 4)])


@pytest.mark.parametrize("keeps_audio", [False, True])
def test_weights_may_be_in_the_directories_of_the_parts(tmp_path: Path, keeps_audio: bool) -> None:
    torch.manual_seed(0)
    case = Case.__new__(Case)
    case.name, case.path, case.reference = "ultravox", tmp_path, UltravoxReference(tmp_path)
    case.reference.model.save_in_parts(tmp_path, keeps_audio=keeps_audio)
    case.engine, case.processor = Engine(tmp_path), case.made_processor()
    case.check([sound(0.4, 1)])


def test_a_part_that_is_not_here_is_refused_with_what_to_do(tmp_path: Path) -> None:
    UltravoxReference(tmp_path).model.save_in_parts(tmp_path, keeps_audio=True)
    shutil.rmtree(tmp_path / "some")
    with pytest.raises(CheckpointError, match=r"text_model_id = 'some/llama'.*download it to .*/some/llama"):
        Engine(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"projector_act": "gelu"}, "projector_act = 'gelu'"),
        ({"audio_latency_block_size": 100}, "audio_latency_block_size = '100'"),
        ({"audio_model_lora_config": {"r": 8}}, "audio_model_lora_config: r = '8'"),
        ({"audio_config": {**AUDIO, "model_type": "wav2vec2"}}, "audio_config: model_type = 'wav2vec2'"),
        ({"hidden_size": 25}, "hidden_size = '25'"),
    ],
)
def test_what_is_not_implemented_is_named(
    changes: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The text part is served then, as of models that see."""
    caplog.set_level("INFO", "octavo.models")
    spec = model_spec({**Ultravox(TEXT).config, **changes}, "model")
    assert spec.tower is None and words in caplog.text
