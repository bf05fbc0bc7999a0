"""Models that also see or hear: what their files and configurations have beside those of their text part."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from octavo.base.config import ModelConfig
from octavo.base.config.media import is_wanted
from octavo.base.errors import CheckpointError
from octavo.models.config_reader import ConfigReader
from octavo.models.families import mllama
from octavo.models.hearing import qwen2_audio, ultravox, voxtral
from octavo.models.hearing import whisper as whisper_tower
from octavo.models.layout import QKV, Layout, Split
from octavo.models.spec import ModelSpec, PicturesSpec, TowerSpec
from octavo.models.tower import ROOM
from octavo.models.vision import (
    blip2,
    fuyu,
    glm4v,
    idefics3,
    internvl,
    llava,
    minicpm_v,
    phi3_v,
    pixtral,
    qwen2_vl,
    qwen3_vl,
)
from octavo.models.vision import chameleon as chameleon_vision
from octavo.models.vision import gemma3 as gemma3_vision
from octavo.models.vision import llama4 as llama4_vision
from octavo.models.vision import mllama as mllama_vision
from octavo.models.vision.vit import FLATTENED

logger = logging.getLogger("octavo.models")


#: From the configuration of a text part to it.
TextSpec = Callable[[ConfigReader], ModelSpec]


@dataclass(frozen=True)
class Seeing:
    """What a model that also sees has beside its text part. `tower`: from the configuration and the text part to the
    tower, and patterns of tensors that it has no use for."""

    tower: Callable[[ConfigReader, ModelSpec], tuple[TowerSpec | PicturesSpec, tuple[str, ...]]]
    renames: tuple[tuple[str, str], ...]
    splits: tuple[Split, ...] = ()
    #: The text part as the model has it, from the text part's configuration; None: as it is.
    text: Callable[[ConfigReader, ModelSpec], ModelSpec] | None = None
    transposed: str = ""  # of the tower's matrices those that stand as [in, out]
    either_way: str = ""  # `Layout.either_way`, of the text part
    interleaved: bool = False  # `Layout.interleaved`, of the tower
    #: From a whole configuration to that of the text part, where it does not stand under `text_config` alone.
    text_config: Callable[[dict[str, Any]], Any] | None = None


SEEING: Final[dict[str, Seeing]] = {
    "LlavaForConditionalGeneration": Seeing(llava.tower, llava.HF),
    "Idefics3ForConditionalGeneration": Seeing(idefics3.tower, idefics3.HF),
    "SmolVLMForConditionalGeneration": Seeing(idefics3.tower, idefics3.HF),
    "Qwen2VLForConditionalGeneration": Seeing(
        qwen2_vl.tower, qwen2_vl.HF, (QKV,), qwen2_vl.text, text_config=qwen2_vl.text_config
    ),
    "Qwen2_5_VLForConditionalGeneration": Seeing(
        qwen2_vl.tower_2_5, qwen2_vl.HF, (QKV,), qwen2_vl.text, text_config=qwen2_vl.text_config
    ),
    "Qwen3VLForConditionalGeneration": Seeing(qwen3_vl.tower, qwen3_vl.HF, (QKV,), qwen3_vl.text),
    "Qwen3VLMoeForConditionalGeneration": Seeing(
        qwen3_vl.tower, qwen3_vl.HF, (QKV,), qwen3_vl.text, either_way=qwen3_vl.EXPERTS
    ),
    **dict.fromkeys(
        ("Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration", "Glm46VForConditionalGeneration"),
        Seeing(glm4v.tower, glm4v.HF, (QKV,), glm4v.text, text_config=glm4v.text_config),
    ),
    "Gemma3ForConditionalGeneration": Seeing(
        gemma3_vision.tower, gemma3_vision.HF, text=gemma3_vision.text, transposed=gemma3_vision.TRANSPOSED
    ),
    "Mistral3ForConditionalGeneration": Seeing(pixtral.merging_tower, pixtral.HF),
    "InternVLForConditionalGeneration": Seeing(internvl.tower, internvl.HF),
    "MiniCPMV": Seeing(
        minicpm_v.tower,
        minicpm_v.HF,
        (minicpm_v.SPLIT,),
        transposed=minicpm_v.TRANSPOSED,
        text_config=minicpm_v.text_config,
    ),
    "MiniCPMV4_6ForConditionalGeneration": Seeing(minicpm_v.tower_4_6, minicpm_v.HF_4_6),
    "Phi3VForCausalLM": Seeing(phi3_v.tower, phi3_v.HF, text_config=phi3_v.text_config),
    "PaliGemmaForConditionalGeneration": Seeing(
        gemma3_vision.paligemma,
        gemma3_vision.PALIGEMMA_HF,
        text=gemma3_vision.text,
        text_config=gemma3_vision.paligemma_text_config,
    ),
    "LlavaNextForConditionalGeneration": Seeing(llava.next_tower, llava.HF_NEXT),
    "Llama4ForConditionalGeneration": Seeing(llama4_vision.tower, llama4_vision.HF, interleaved=True),
    "MllamaForConditionalGeneration": Seeing(mllama_vision.tower, mllama_vision.HF, text=mllama.seeing),
    "FuyuForCausalLM": Seeing(fuyu.tower, fuyu.HF, text_config=fuyu.text_config),
    "ChameleonForConditionalGeneration": Seeing(
        chameleon_vision.tower, chameleon_vision.HF, text_config=chameleon_vision.text_config
    ),
    "Blip2ForConditionalGeneration": Seeing(blip2.tower, blip2.HF, (QKV,)),
    # These hear.
    "UltravoxModel": Seeing(ultravox.tower, ultravox.HF, (ultravox.GATED,)),
    "Qwen2AudioForConditionalGeneration": Seeing(qwen2_audio.tower, qwen2_audio.HF),
    "VoxtralForConditionalGeneration": Seeing(voxtral.tower, voxtral.HF),
}
_LLAVA: Final = "LlavaForConditionalGeneration"
#: A LLaVA by its name.
PIXTRAL: Final = Seeing(pixtral.tower, pixtral.HF)
#: Models that also see, of which at least the text part is served.
_WITH_TEXT: Final = frozenset(
    {
        "Gemma3nForConditionalGeneration", "Gemma4ForConditionalGeneration",
        "VipLlavaForConditionalGeneration", *SEEING,
        "Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration",
    }
)  # fmt: skip
#: What files call the tensors of the text part, and those of the rest.
_TEXT_RENAMES: Final = (
    (r"^(?:language_model|llm)\.(model|lm_head)\.", r"\1."), (r"^model\.language_model\.", "model."),
)  # fmt: skip
_NOT_TEXT: Final = (
    r"(model\.)?(vision_tower|vision_model|visual|multi_modal_projector|audio_tower|embed_vision|embed_audio)\..*",
    r"(model\.)?(vision_embed_tokens|qformer|language_projection|vqmodel)\..*",
    r"query_tokens",
    r"(model\.)?image_newline",
    r"(vpm|resampler)\..*",
)
#: Text parts that are another family's.
_TEXT_TYPES: Final = {
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
    "glm4v_text": "glm4",
    "glm4v_moe_text": "glm4_moe",
}
#: What configurations of a text part leave out, since it is transformers' default.
_TEXT_DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "llama": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "hidden_act": "silu",
    },
    "mistral": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "hidden_act": "silu",
    },
    "qwen2": {
        "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "hidden_act": "silu",
    },
    "gemma3_text": {"num_attention_heads": 8, "num_key_value_heads": 4},
    "persimmon": {
        "vocab_size": 262144, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 36,
        "num_attention_heads": 64,
    },
    "qwen3_vl_moe_text": {"norm_topk_prob": True},
    "glm4v_text": {"rms_norm_eps": 1e-5, "partial_rotary_factor": 1.0},
    "glm4v_moe_text": {"attention_bias": True, "use_qk_norm": False},
}  # fmt: skip


def text_part(config: dict[str, Any]) -> dict[str, Any] | None:
    """The configuration of the text part of a model that also sees; None for other models, which are all text."""
    names, seeing = config.get("architectures"), _seeing(config)
    text = config.get("text_config")
    if seeing is not None and seeing.text_config is not None:
        text = seeing.text_config(config)
    if not isinstance(names, list) or not _WITH_TEXT.intersection(map(str, names)) or not isinstance(text, dict):
        return None
    kept = {key: config[key] for key in ("tie_word_embeddings", "quantization_config") if key in config}
    defaults = _TEXT_DEFAULTS.get(str(text.get("model_type")), {})
    kind = _TEXT_TYPES.get(str(text.get("model_type")), text.get("model_type"))
    # What a model has as a whole, its text part may tell otherwise by a default of its own.
    return {**defaults, **text, **kept, "model_type": kind, "architectures": None}


def with_tower(layout: Layout, config: dict[str, Any], text_spec: TextSpec, *, sees: bool) -> Layout:
    """The layout of the files of a model that also sees, from that of its text part. `sees`: with the tower."""
    seeing = _seeing(config)
    try:
        if seeing is not None:
            _joined(seeing, config, text_spec(_text_reader(config)))
    except CheckpointError:
        seeing = None
    if seeing is None:
        return replace(layout, ignored=(*layout.ignored, *_NOT_TEXT), renames=(*_TEXT_RENAMES, *layout.renames))
    return replace(
        layout,
        renames=(*_TEXT_RENAMES, *layout.renames),
        transposed="|".join(each for each in (layout.transposed, seeing.transposed) if each),
        either_way=seeing.either_way,
        flattened=f"{FLATTENED}|{whisper_tower.FLATTENED}",
        surplus=layout.surplus if sees else (*layout.surplus, rf"{ROOM}\..*"),
        apart=f"{ROOM}.",
        renames_apart=seeing.renames,
        splits_apart=seeing.splits,
        interleaved_apart=seeing.interleaved,
    )


def seeing_spec(spec: ModelSpec, config: dict[str, Any], source: str, model: ModelConfig) -> ModelSpec:
    """The text part `spec` with the model's tower, or as it is where no tower is served, which the log then says of
    `source`. Raises CheckpointError for a tower that is not implemented where a file of it is named."""
    seeing, why = _seeing(config), ""
    if seeing is not None:
        try:
            joined = _joined(seeing, config, spec)
        except CheckpointError as error:
            if model.mmproj is not None:
                raise CheckpointError(f"{model.mmproj}: {error.message}") from None
            why = f": {error.message}"
        else:
            if joined.tower is None or not _is_idle(joined.tower, model):
                return joined
            why = ": --limit-mm-per-prompt allows no media"
    logger.info("%s: only the text part of the model is served%s", source, why)
    return spec


def _seeing(config: dict[str, Any]) -> Seeing | None:
    names, vision = config.get("architectures"), config.get("vision_config")
    if names == [_LLAVA] and isinstance(vision, dict) and vision.get("model_type") == "pixtral":
        return PIXTRAL
    return SEEING.get(str(names[0])) if isinstance(names, list) and len(names) == 1 else None


def _text_reader(config: dict[str, Any]) -> ConfigReader:
    text = text_part(config)
    assert text is not None
    return ConfigReader(text)


def _joined(seeing: Seeing, config: dict[str, Any], spec: ModelSpec) -> ModelSpec:
    """The model with its tower. Raises CheckpointError for one that is not implemented."""
    tower, unused = seeing.tower(ConfigReader(config), spec)
    spec = replace(spec if seeing.text is None else seeing.text(_text_reader(config), spec), unused=unused)
    return replace(spec, pictures=tower) if isinstance(tower, PicturesSpec) else replace(spec, tower=tower)


def _is_idle(tower: TowerSpec, model: ModelConfig) -> bool:
    """Whether no request may use it. How prompts see themselves would go with a tower that says so."""
    return not tower.whole_prompts and not any(is_wanted(kind, model) for kind in tower.kinds)
