"""A tiny random model that also sees: transformers' own on the disk, the engine that serves it, and its processor."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from engine.harness import Engine
from models.tower_cases import CASES, IMAGE, TEXT, TEXTS
from octavo.base.media import MediaItem, PreparedMedia, place_media
from octavo.base.params import SamplingParams
from octavo.text.media.table import media_processor
from octavo.wire.messages import AddRequest
from support.pictures import pixels


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

    def check_scored(self, images: Sequence[np.ndarray]) -> None:
        """A prompt with these pictures is scored, and goes on, as the reference says."""
        ids, media = self.prompt(images)
        found, tokens = self.reply(ids, media)
        logprobs = self.expected(ids, images)
        expected = logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=2e-3)
        assert tokens[0] == int(logprobs[-1].argmax())

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
