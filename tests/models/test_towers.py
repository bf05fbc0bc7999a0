"""Towers and what becomes of their rows, against transformers in float32, on tiny random models that also see.

Pictures come through octavo's processors and the worker; the reference is transformers' model with the processor that
resizes with Pillow.
"""

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
from models import tower_cases
from octavo.base.errors import CheckpointError
from octavo.base.media import MediaItem, PreparedMedia, place_media
from octavo.base.params import SamplingParams
from octavo.models.config_reader import ConfigReader
from octavo.models.families import llama
from octavo.models.vision import llama4, mllama
from octavo.ops.run import Runner
from octavo.ops.table import Ops, bind
from octavo.text.media.table import media_processor
from octavo.wire.messages import AddRequest
from octavo.worker import worker as worker_module
from support.tiny_mllama import VISION as MLLAMA

IMAGE = 90
TEXT: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
QWEN: dict[str, Any] = {
    "model_type": "qwen2_vl_text",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
}
GEMMA: dict[str, Any] = {
    "model_type": "gemma3_text", "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
QWEN_TOWER: dict[str, Any] = {
    "depth": 2, "embed_dim": 48, "num_heads": 3, "mlp_ratio": 2, "patch_size": 4, "hidden_size": 64,
}  # fmt: skip
QWEN_ANY: dict[str, Any] = {
    "depth": 4, "hidden_size": 48, "intermediate_size": 80, "num_heads": 3, "patch_size": 4, "out_hidden_size": 64,
}  # fmt: skip
TURNS: dict[str, Any] = {
    "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True,
}  # fmt: skip
#: Of a family's text part, beside or in the place of `TEXT`.
TEXTS: dict[str, dict[str, Any]] = {
    "Qwen2VL": QWEN,
    "Qwen2_5_VL": {**QWEN, "model_type": "qwen2_5_vl_text"},
    "Qwen3VL": {
        "model_type": "qwen3_vl_text", "head_dim": 16, "num_hidden_layers": 3,
        "rope_parameters": TURNS,
    },
    "Qwen3VLMoe": {
        "model_type": "qwen3_vl_moe_text", "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "rope_parameters": TURNS,
    },
    **tower_cases.TEXTS,
    "Gemma3": GEMMA,
    "PaliGemma": {"model_type": "gemma", "head_dim": 16},
    "Llama4": {
        "model_type": "llama4_text", "head_dim": 16, "intermediate_size_mlp": 96, "num_local_experts": 4,
        "interleave_moe_layer_step": 2, "no_rope_layers": [1, 0], "attention_chunk_size": 64, "bos_token_id": 1,
        "pad_token_id": 2,
    },
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
LLAVA = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
IDEFICS = {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 16}}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llava": ("Llava", {"vision_config": {"model_type": "clip_vision_model", **VISION}}, LLAVA),
    "llava-full-first-layers-no-bias": (
        "Llava",
        {
            "vision_config": {"model_type": "clip_vision_model", **VISION, "hidden_act": "gelu"},
            "vision_feature_select_strategy": "full", "vision_feature_layer": 1, "multimodal_projector_bias": False,
        },
        LLAVA,
    ),
    "llava-siglip": (
        "Llava",
        {
            "vision_config": {"model_type": "siglip_vision_model", **VISION},
            "vision_feature_select_strategy": "full", "vision_feature_layer": -1,
        },
        LLAVA,
    ),
    "llava-siglip-inner": (
        "Llava",
        {
            "vision_config": {"model_type": "siglip_vision_model", **VISION},
            "vision_feature_select_strategy": "full", "vision_feature_layer": -2,
        },
        LLAVA,
    ),
    "idefics3": ("Idefics3", {"vision_config": VISION, "scale_factor": 2}, IDEFICS),
    "qwen2-vl": (
        "Qwen2VL",
        {
            "vision_config": QWEN_TOWER,
        },
        {"min_pixels": 64, "max_pixels": 1024},
    ),
    "qwen2.5-vl": (
        "Qwen2_5_VL",
        {"vision_config": {**QWEN_ANY, "window_size": 16, "fullatt_block_indexes": [1, 3]}},
        {"min_pixels": 64, "max_pixels": 2048},
    ),
    "qwen2.5-vl-windows-last": (
        "Qwen2_5_VL",
        {"vision_config": {**QWEN_ANY, "window_size": 16, "fullatt_block_indexes": [0]}},
        {"min_pixels": 64, "max_pixels": 2048},
    ),
    "qwen3-vl": (
        "Qwen3VL",
        {"vision_config": {**QWEN_ANY, "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]}},
        {"min_pixels": 64, "max_pixels": 2048, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    ),
    "qwen3-vl-moe": (
        "Qwen3VLMoe",
        {"vision_config": {**QWEN_ANY, "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]}},
        {"min_pixels": 64, "max_pixels": 2048, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    ),
    **tower_cases.CASES,
    "gemma3": (
        "Gemma3",
        {"vision_config": {"model_type": "siglip_vision_model", **VISION}, "mm_tokens_per_image": 4},
        {"size": {"height": 16, "width": 16}},
    ),
    "gemma3-pan-and-scan": (
        "Gemma3",
        {"vision_config": {"model_type": "siglip_vision_model", **VISION}, "mm_tokens_per_image": 4},
        {
            "size": {"height": 16, "width": 16}, "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8,
            "pan_and_scan_max_num_crops": 4, "pan_and_scan_min_ratio_to_activate": 1.2,
        },
    ),
    "pixtral": (
        "Llava",
        {
            "vision_config": {"model_type": "pixtral", **VISION, "image_size": 64}, "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        {"size": {"longest_edge": 24}},
    ),
    "mistral3": (
        "Mistral3",
        {"vision_config": {"model_type": "pixtral", **VISION, "image_size": 64}, "spatial_merge_size": 2},
        {"size": {"longest_edge": 24}},
    ),
    "internvl": (
        "InternVL",
        {"vision_config": {**VISION, "attention_bias": True, "image_size": [16, 16], "patch_size": [4, 4]}},
        {"size": {"height": 16, "width": 16}},
    ),
    "internvl-normed": (
        "InternVL",
        {
            "vision_config": {
                **VISION, "use_qk_norm": True, "norm_type": "rms_norm", "use_mean_pooling": False,
                "image_size": [16, 16], "patch_size": [4, 4],
            },
        },
        {"size": {"height": 16, "width": 16}},
    ),
    "paligemma": (
        "PaliGemma",
        {"vision_config": {"model_type": "siglip_vision_model", **VISION}, "projection_dim": 64},
        {"size": {"height": 16, "width": 16}},
    ),
    "granite-vision": (
        "LlavaNext",
        {
            "vision_config": {"model_type": "siglip_vision_model", **VISION}, "vision_feature_layer": [-3, -1],
            "vision_feature_select_strategy": "full", "image_grid_pinpoints": [[16, 32], [32, 16]],
            # Without `logits_scaling`, which transformers leaves out of a Granite that sees.
            "text": {
                "model_type": "granite", "embedding_multiplier": 3.0, "residual_multiplier": 0.5,
                "attention_multiplier": 0.2,
            },
        },
        {
            "size": {"height": 16, "width": 16}, "crop_size": {"height": 16, "width": 16},
            "image_grid_pinpoints": [[16, 32], [32, 16]],
        },
    ),
    "llava-class-of-two-layers": (
        "Llava",
        {"vision_config": {"model_type": "clip_vision_model", **VISION}, "vision_feature_layer": [1, -2]},
        LLAVA,
    ),
    "llava-next": (
        "LlavaNext",
        {
            "vision_config": {"model_type": "clip_vision_model", **VISION},
            "image_grid_pinpoints": [[16, 32], [32, 16], [32, 32], [48, 16]],
        },
        {**LLAVA, "image_grid_pinpoints": [[16, 32], [32, 16], [32, 32], [48, 16]]},
    ),
    "llama4": (
        "Llama4",
        {
            "vision_config": {
                **VISION, "intermediate_size": 192, "projector_input_dim": 40, "projector_output_dim": 40,
                "vision_output_dim": 40,
            },
        },
        {"size": {"height": 16, "width": 16}},
    ),
    "smolvlm": ("SmolVLM", {"vision_config": VISION, "scale_factor": 4}, IDEFICS),
}  # fmt: skip


def pixels(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _turn_experts(path: Path) -> None:
    """Have those of the first layer as [in, out], as released files have all."""
    tensors = load_file(path)
    for name in [name for name in tensors if "layers.0.mlp.experts" in name]:
        tensors[name] = tensors[name].transpose(1, 2).contiguous()
    save_file(tensors, path)


def _shown(media: PreparedMedia, patch: int, side: int) -> torch.Tensor:
    """float32 [tiles, 3, side, side], of an item whose patches have positions of three parts."""
    tensors = {
        name: np.frombuffer(each.data, each.dtype).reshape(each.shape).copy() for name, each in media.tensors.items()
    }
    patches, (_, columns, lines) = tensors["patches"], tensors["positions"]
    shown = np.empty((len(patches), 3, side, side), np.float32)
    for tile, at in np.ndindex(patches.shape[:2]):
        x, y = columns[tile, at] * patch, lines[tile, at] * patch
        values = patches[tile, at].reshape(3, patch, patch)
        shown[tile, :, y : y + patch, x : x + patch] = [tensors["levels"][c][values[c]] for c in range(3)]
    return torch.from_numpy(shown)


class Case:
    """A model of transformers on the disk, the engine that serves it, and its processor."""

    def __init__(self, path: Path, name: str, engine: Callable[[Path], Engine] = Engine) -> None:
        import transformers

        family, options, self.settings = CASES[name]
        torch.manual_seed(0)
        options = dict(options)
        text = {**TEXT, **TEXTS.get(family, {}), **options.pop("text", {})}
        config = getattr(transformers, f"{family}Config")(
            text_config=text, image_token_id=IMAGE, tie_word_embeddings=False, **options
        )
        self.model = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval().float()
        for parameter in self.model.parameters():  # wide, so that a wrong row shows
            parameter.data = torch.randn_like(parameter) * (0.6 if parameter.dim() > 1 else 0.3) * 0.5
        self.model.save_pretrained(path)
        if family == "Qwen3VLMoe":
            _turn_experts(path / "model.safetensors")
        self.family = family
        self.path, self.engine = path, engine(path)
        written = json.loads((path / "config.json").read_text())
        found = media_processor(written, self.settings, lambda text: None)
        assert found is not None
        self.processor = found

    def prompt(self, images: Sequence[np.ndarray], text: Sequence[int] = (3, 4, 5)) -> tuple[list[int], Any]:
        """Token ids with some text before, between and behind the images; and the media among them."""
        media = [self.processor.image(image, {}) for image in images]
        ids = list(text)
        for number, each in enumerate(media):
            ids += [7 + number, *self.tokens(each), 8, 9]
        return [*ids, 11, 12], place_media([*ids, 11, 12], IMAGE, media)

    def tokens(self, media: PreparedMedia) -> list[int]:
        """Of an item's text: its placeholders, and one token for what stands between two runs of them."""
        runs = media.text.split(getattr(self.processor, "row_text", self.processor.placeholder))
        ids: list[int] = []
        for number, between in enumerate(runs):
            ids += [20 + len(between) % 40] if between else []
            ids += [IMAGE] if number < len(runs) - 1 else []
        return ids

    def expected(self, ids: list[int], images: Sequence[np.ndarray]) -> torch.Tensor:
        """Log probabilities of all tokens behind the first, [T - 1]."""
        values = self.inputs(images)
        types = torch.tensor([[int(token == IMAGE) for token in ids]])
        if "image_grid_thw" in values:
            values["mm_token_type_ids"] = types
        elif self.family == "Gemma3":
            values["token_type_ids"] = types
        elif self.family == "PaliGemma":
            values["token_type_ids"] = torch.zeros_like(types)
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids]), **values).logits[0]
        return logits.float().log_softmax(-1)

    def inputs(self, images: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        if self.family == "MiniCPMV4_6":
            from transformers.models.minicpmv4_6 import image_processing_pil_minicpmv4_6 as slicing

            processor = slicing.MiniCPMV4_6ImageProcessorPil(**self.settings)
            found = processor(list(images), return_tensors="pt")
            return {name: found[name] for name in ("pixel_values", "target_sizes")}
        if self.family.startswith("Glm4"):
            from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

            return dict(Glm4vImageProcessorPil(patch_size=4, **self.settings)(list(images), return_tensors="pt"))
        if self.family in ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL", "Qwen3VLMoe"):
            from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

            processor = Qwen2VLImageProcessorPil(patch_size=4, **self.settings)
            return dict(processor(list(images), return_tensors="pt"))
        if self.family == "Mistral3" or ("longest_edge" in self.settings.get("size", {}) and self.family == "Llava"):
            from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

            side = 8 if self.family == "Mistral3" else 4
            processor = PixtralImageProcessorPil(patch_size={"height": side, "width": side}, **self.settings)
            return dict(processor(list(images), return_tensors="pt"))
        if self.family == "InternVL":
            from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

            processor = GotOcr2ImageProcessorPil(crop_to_patches=True, **self.settings)
            return {"pixel_values": processor(list(images), return_tensors="pt")["pixel_values"]}
        if self.family == "LlavaNext":
            from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

            return dict(LlavaNextImageProcessorPil(**self.settings)(list(images), return_tensors="pt"))
        if self.family == "Llama4":  # whose processor resizes with torchvision: what it sees is octavo's
            shown = [self.processor.image(image, {}) for image in images]
            return {"pixel_values": torch.cat([_shown(each, 4, 16) for each in shown])}
        return {"pixel_values": self.pixel_values(images)}

    def pixel_values(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        if self.family == "Llava":
            from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

            found = LlavaImageProcessorPil(**self.settings)(list(images), return_tensors="pt")
            return found["pixel_values"]
        if self.family == "PaliGemma":
            from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

            return SiglipImageProcessorPil(**self.settings)(list(images), return_tensors="pt")["pixel_values"]
        if self.family == "Gemma3":
            from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

            return Gemma3ImageProcessorPil(**self.settings)(list(images), return_tensors="pt")["pixel_values"]
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

        return Idefics3ImageProcessorPil(**self.settings)([list(images)], return_tensors="pt")["pixel_values"]

    def company(self) -> None:
        """What prompts give alone they give beside each other, bit for bit."""
        params = SamplingParams(temperature=0.0, max_tokens=3, prompt_logprobs=0)
        prompts = [
            self.prompt([pixels(30, 20, 1)]),
            self.prompt([pixels(40, 40, 2), pixels(16, 16, 3)]),
            ([3, 4, 5], ()),
        ]
        requests = [AddRequest(i, ids, params, media=media) for i, (ids, media) in enumerate(prompts)]

        def replies(asked: list[AddRequest]) -> list[Any]:
            found = self.engine.run(asked, scheduler=self.engine.scheduler(prefix_caching=False)).replies
            return [found[each.request_id] for each in asked]

        assert replies(requests) == [reply for each in requests for reply in replies([each])]

    def reply(
        self, ids: list[int], media: tuple[MediaItem, ...], *, engine: Engine | None = None, **info: Any
    ) -> tuple[list[float], list[int]]:
        """Log probabilities of the prompt's tokens behind the first, and three tokens that follow."""
        params = SamplingParams(temperature=0.0, max_tokens=3, prompt_logprobs=0)
        request = AddRequest(1, ids, params, media=media)
        engine = engine or self.engine
        scheduler = engine.scheduler(prefix_caching=False, **info)
        reply = engine.run([request], scheduler=scheduler).replies[1]
        assert reply.error is None, reply.error
        return [each.logprob for each in reply.prompt_logprobs], reply.token_ids


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("tower"), request.param)


def test_a_prompt_with_pictures_is_scored_as_transformers_scores_it(case: Case) -> None:
    images = [pixels(30, 20, 1), pixels(16, 16, 2)]
    ids, media = case.prompt(images)
    found, tokens = case.reply(ids, media)
    logprobs = case.expected(ids, images)
    expected = logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=2e-3)
    assert tokens[0] == int(logprobs[-1].argmax())


def test_a_picture_in_chunks_is_the_same_bit_for_bit(case: Case) -> None:
    ids, media = case.prompt([pixels(30, 20, 1), pixels(40, 40, 2)])
    whole = case.reply(ids, media)
    if case.family != "PaliGemma":  # whose prompts are computed in one step
        assert case.reply(ids, media, max_num_batched_tokens=7, max_num_prefill_tokens=7) == whole
    assert case.reply(ids, media, media_step_rows=1, media_cache_rows=1) == whole


@pytest.mark.parametrize("case", ["glm4v", "minicpm-v-4.6"], indirect=True)
def test_prompts_give_the_same_alone_and_in_company(case: Case) -> None:
    case.company()


@pytest.mark.parametrize("case", ["llava", "qwen2-vl", "gemma3"], indirect=True)
def test_a_prompt_may_end_with_a_picture(case: Case) -> None:
    image = pixels(16, 16, 2)
    ids, media = case.prompt([image])
    ids = ids[: media[-1].end]
    found, tokens = case.reply(ids, media)
    logprobs = case.expected(ids, [image])
    expected = logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=2e-3)
    assert tokens[0] == int(logprobs[-1].argmax())


@pytest.mark.parametrize(
    "case", ["llava", "idefics3", "qwen3-vl", "glm4v", "minicpm-v-4.6", "gemma3", "mistral3", "internvl"], indirect=True
)
def test_operations_one_by_one_are_the_native_program(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def bound(*args: Any, **options: Any) -> Ops:
        return dataclasses.replace(bind(*args, **options), program_runner=Runner)

    monkeypatch.setattr(worker_module, "bind", bound)
    engine = Engine(case.path)
    ids, media = case.prompt([pixels(30, 20, 1), pixels(16, 16, 2)])
    assert case.reply(ids, media, engine=engine) == case.reply(ids, media)


@pytest.mark.parametrize(
    ("family", "vision", "told"),
    [
        ("Llama4", {"pixel_shuffle_ratio": 0.4}, "pixel_shuffle_ratio = '0.4'"),
        ("Llama4", {"intermediate_size": 65}, "intermediate_size = '65'"),
        ("Llama4", {"vision_output_dim": 41}, "vision_output_dim = '41'"),
        ("Llama4", {"hidden_act": "silu"}, "hidden_act = 'silu'"),
        ("Llama4", {"vision_feature_layer": -2}, "vision_feature_layer = '-2'"),
        ("Llama4", {"num_attention_heads": 8}, "num_attention_heads = '8'"),
        ("Mllama", {"intermediate_layers_indices": [2, 0]}, "is not in rising order"),
        ("Mllama", {"intermediate_layers_indices": [4]}, "numbers of the 4 layers"),
        ("Mllama", {"vision_output_dim": 7}, "vision_output_dim = '7'"),
        ("Mllama", {"supported_aspect_ratios": [[1, 1]]}, "supported_aspect_ratios = "),
        ("Mllama", {"image_size": [16, 32]}, "is not the side of a square"),
        ("Mllama", {"num_channels": 1}, "num_channels = '1'"),
    ],
)
def test_towers_that_are_not_implemented_are_refused_by_key_and_value(
    family: str, vision: dict[str, Any], told: str
) -> None:
    made, usual = {"Llama4": (llama4.tower, CASES["llama4"][1]["vision_config"]), "Mllama": (mllama.tower, MLLAMA)}[
        family
    ]
    text = llama.spec(ConfigReader({**TEXT, "hidden_act": "silu"}))
    made(ConfigReader({"vision_config": usual}), text)
    with pytest.raises(CheckpointError, match=re.escape(told)):
        made(ConfigReader({"vision_config": {**usual, **vision}}), text)
