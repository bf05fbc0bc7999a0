"""Fuyu, BLIP-2 and Chameleon, against transformers in float32, on tiny random models: `test_towers` of models whose
pictures become rows in a way of their own."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.harness import Engine
from models.tower_cases import IMAGE
from models.towers import Case
from octavo.base.config import ModelConfig
from octavo.base.errors import CheckpointError
from octavo.base.params import SamplingParams
from octavo.models.loader import load_model
from octavo.models.registry import model_spec
from octavo.ops.cpu.linear import LinearWeight
from octavo.ops.run import Runner
from octavo.ops.table import Ops, bind
from octavo.text.media.table import media_processor
from octavo.wire.messages import AddRequest
from octavo.worker import worker as worker_module
from support.pictures import pixels

PERSIMMON: dict[str, Any] = {
    "model_type": "persimmon", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 2048, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
BLIP2: dict[str, Any] = {
    "num_query_tokens": 5,
    "text_config": {
        "model_type": "opt", "vocab_size": 96, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 2048, "word_embed_proj_dim": 64, "bos_token_id": None,
        "eos_token_id": None, "pad_token_id": 1,
    },
    "vision_config": {
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
        "patch_size": 4,
    },
    "qformer_config": {
        "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2,
        "encoder_hidden_size": 48,
    },
}  # fmt: skip
BLIP = {"size": {"height": 16, "width": 16}}
LETTERS = str.maketrans("0123456789", "ABCDEFGHIJ")
CHAMELEON: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "bos_token_id": None, "eos_token_id": None,
    "vq_config": {
        "embed_dim": 12, "num_embeddings": 24, "latent_channels": 16, "resolution": 16, "base_channels": 32,
        "channel_multiplier": [1, 2, 1], "num_res_blocks": 1,
    },
    # Codes in another order than their tokens.
    "vocabulary_map": {
        "<image>": IMAGE, **{f"IMGIMG{code:04d}Z".translate(LETTERS): 95 + (5 * code) % 24 for code in range(24)},
    },
}  # fmt: skip
CROPPED = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
#: Architecture, configuration, settings of the image processor.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "fuyu": (
        "FuyuForCausalLM",
        {"text_config": PERSIMMON, "image_token_id": IMAGE, "patch_size": 6},
        {"size": {"height": 18, "width": 36}, "patch_size": {"height": 6, "width": 6}},
    ),
    "blip2": ("Blip2ForConditionalGeneration", {**BLIP2, "image_token_index": IMAGE}, BLIP),
    "blip2-all-layers-cross-no-bias": (
        "Blip2ForConditionalGeneration",
        {
            **BLIP2, "image_token_index": IMAGE, "num_query_tokens": 70,
            "vision_config": {**BLIP2["vision_config"], "qkv_bias": False, "hidden_act": "quick_gelu"},
            "qformer_config": {**BLIP2["qformer_config"], "cross_attention_frequency": 1},
        },
        BLIP,
    ),
    "chameleon": ("ChameleonForConditionalGeneration", CHAMELEON, CROPPED),
    "chameleon-swin-attention-in-levels": (
        "ChameleonForConditionalGeneration",
        {
            **CHAMELEON, "swin_norm": True, "attention_bias": True, "num_key_value_heads": 4,
            "vq_config": {**CHAMELEON["vq_config"], "attn_resolutions": [8], "attn_type": "vanilla"},
        },
        CROPPED,
    ),
    "chameleon-no-attention": (
        "ChameleonForConditionalGeneration",
        {**CHAMELEON, "mlp_bias": True, "vq_config": {**CHAMELEON["vq_config"], "attn_type": "none"}},
        CROPPED,
    ),
}  # fmt: skip


class EarlyCase(Case):
    """As `Case`, of models whose configurations are of another form."""

    def __init__(self, path: Path, name: str, engine: Callable[[Path], Engine] = Engine) -> None:
        import transformers

        self.family, options, self.settings = CASES[name]
        torch.manual_seed(0)
        model = getattr(transformers, self.family)
        self.model = model(model.config_class(**options)).eval().float()
        for parameter in self.model.parameters():  # wide, so that a wrong row shows
            parameter.data = torch.randn_like(parameter) * (0.6 if parameter.dim() > 1 else 0.3) * 0.5
        self.model.save_pretrained(path)
        self.path, self.engine = path, engine(path)
        found = media_processor(json.loads((path / "config.json").read_text()), self.settings, lambda text: None)
        assert found is not None
        self.processor = found

    def inputs(self, images: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        if self.family == "ChameleonForConditionalGeneration":
            from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

            found = ChameleonImageProcessorPil(**self.settings)(list(images), return_tensors="pt")
            return {"pixel_values": found["pixel_values"]}
        if self.family == "Blip2ForConditionalGeneration":
            from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

            found = BlipImageProcessorPil(**self.settings)(list(images), return_tensors="pt")
            return {"pixel_values": found["pixel_values"]}
        return {"pixel_values": torch.cat([_fuyu_patches(image, self.settings) for image in images])}


def _fuyu_patches(image: np.ndarray, settings: dict[str, Any]) -> torch.Tensor:
    """As `FuyuProcessor` makes them of what its image processor gives."""
    from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil

    processor = FuyuImageProcessorPil(**settings)
    found = processor([image], return_tensors="pt")
    side = settings["patch_size"]["height"]
    canvas = found["images"][0][0]
    height, width = (
        min(limit, -(-int(found[f"image_unpadded_{name}s"][0][0]) // side) * side)
        for limit, name in zip(canvas.shape[-2:], ("height", "width"), strict=True)
    )
    return torch.as_tensor(processor.patchify_image(np.asarray(canvas[..., :height, :width])))


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EarlyCase:
    return EarlyCase(tmp_path_factory.mktemp("tower"), request.param)


def test_a_prompt_with_pictures_is_scored_as_transformers_scores_it(case: EarlyCase) -> None:
    images = [pixels(30, 20, 1), pixels(16, 16, 2), pixels(7, 50, 3)]
    case.check_scored(images)


def test_a_picture_in_chunks_is_the_same_bit_for_bit(case: EarlyCase) -> None:
    ids, media = case.prompt([pixels(30, 20, 1), pixels(40, 40, 2)])
    whole = case.reply(ids, media)
    assert case.reply(ids, media, max_num_batched_tokens=7, max_num_prefill_tokens=7) == whole
    assert case.reply(ids, media, media_step_rows=1, media_cache_rows=1) == whole


def test_pictures_are_the_same_alone_and_in_company(case: EarlyCase) -> None:
    prompts = [case.prompt([pixels(30, 20 + 3 * n, n)], range(3, 3 + n)) for n in (1, 2, 3)]
    params = SamplingParams(temperature=0.0, max_tokens=3, prompt_logprobs=0)
    requests = [AddRequest(n, ids, params, media=media) for n, (ids, media) in enumerate(prompts, 1)]
    replies = case.engine.run(requests, scheduler=case.engine.scheduler(prefix_caching=False)).replies
    for number, (ids, media) in enumerate(prompts, 1):
        found = [each.logprob for each in replies[number].prompt_logprobs]
        assert (found, replies[number].token_ids) == case.reply(ids, media)


@pytest.mark.parametrize("case", ["fuyu", "blip2", "chameleon"], indirect=True)
def test_operations_one_by_one_are_the_native_program(case: EarlyCase, monkeypatch: pytest.MonkeyPatch) -> None:
    def bound(*args: Any, **options: Any) -> Ops:
        return dataclasses.replace(bind(*args, **options), program_runner=Runner)

    monkeypatch.setattr(worker_module, "bind", bound)
    engine = Engine(case.path)
    ids, media = case.prompt([pixels(30, 20, 1), pixels(16, 16, 2)])
    assert case.reply(ids, media, engine=engine) == case.reply(ids, media)


@pytest.mark.parametrize("case", ["fuyu"], indirect=True)
def test_fuyus_files_may_be_of_one_part_and_have_newer_names(case: EarlyCase, tmp_path: Path) -> None:
    config = json.loads((case.path / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    flat = {**text, **config, "rope_theta": rope["rope_theta"], "rope_scaling": None}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    tensors = load_file(case.path / "model.safetensors")
    assert "language_model.model.layers.0.input_layernorm.bias" in tensors  # as transformers writes them, too
    newer = {re.sub(r"^language_model\.model\.", "model.language_model.", name): each for name, each in tensors.items()}
    save_file(newer, tmp_path / "model.safetensors")
    ids, media = case.prompt([pixels(30, 20, 1)])
    assert case.reply(ids, media, engine=Engine(tmp_path)) == case.reply(ids, media)


def test_a_blip2_whose_language_model_is_a_t5_is_refused_by_name() -> None:
    config = {
        "architectures": ["Blip2ForConditionalGeneration"],
        "text_config": {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
    }
    with pytest.raises(CheckpointError, match="'t5' is not supported"):
        model_spec(config, "a model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vq_config": {"double_latent": True}}, "double_latent"),
        ({"vq_config": {"base_channels": 40}}, "base_channels"),
        ({"vq_config": {"num_embeddings": 25}}, "the code 24 has no token"),
    ],
)
def test_a_chameleon_whose_pictures_cannot_be_read_is_served_without(
    changes: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    changed = {**CHAMELEON, "vq_config": {**CHAMELEON["vq_config"], **changes["vq_config"]}}
    with caplog.at_level("INFO", "octavo.models"):
        spec = model_spec({"architectures": ["ChameleonForConditionalGeneration"], **changed}, "a model")
    assert spec.tower is None and len(spec.unused_ids) == 24
    assert message in caplog.text


def test_a_chameleon_without_tokens_of_codes_is_refused() -> None:
    config = {**CHAMELEON, "architectures": ["ChameleonForConditionalGeneration"], "vocabulary_map": None}
    with pytest.raises(CheckpointError, match="vocabulary_map"):
        model_spec(config, "a model")


def test_products_of_towers_are_rounded_where_nobody_asked_for_float32(case: EarlyCase) -> None:
    """Of Chameleon's, which makes codes of pictures, no matrix has such products: another could be the nearest then."""
    loaded = load_model(ModelConfig(model=str(case.path)), bind(), 64, lambda name, detail: None)
    tower = loaded.model.definition.tower
    assert tower is not None
    matrices = {param.weight.name for param in tower.params if param.packing == "linear"}
    kinds = {name: each.kind for name, each in loaded.weights.items() if isinstance(each, LinearWeight)}
    rounded = {name for name, kind in kinds.items() if kind == "fixed16"}
    assert rounded == matrices and bool(matrices) == (tower.codes is None)
