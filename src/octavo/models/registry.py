"""Which family reads the configuration of which architecture."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Final

from octavo.base.config import ModelConfig
from octavo.base.config.media import is_wanted
from octavo.base.errors import CheckpointError
from octavo.models.config_reader import ConfigReader
from octavo.models.families import (
    apertus,
    arcee,
    arctic,
    baichuan,
    bamba,
    bart,
    bert,
    bloom,
    chameleon,
    cohere,
    dbrx,
    deci,
    deepseek,
    deepseek_v2,
    deepseek_v3,
    ernie4_5,
    ernie4_5_moe,
    exaone,
    falcon,
    falcon_h1,
    gated_delta,
    gemma,
    gemma2,
    gemma3,
    gemma3n,
    gemma4,
    glm,
    glm4_moe,
    gpt2,
    gpt_bigcode,
    gpt_j,
    gpt_neox,
    gpt_oss,
    granite,
    granite_hybrid,
    granite_moe,
    gte,
    hunyuan,
    internlm,
    jais,
    jamba,
    jina,
    lfm2,
    llama,
    llama4,
    mamba,
    minicpm,
    minicpm3,
    minimax_m2,
    mistral,
    mixtral,
    mllama,
    modernbert,
    mpt,
    nemotron,
    nemotron_h,
    nomic_bert,
    olmo,
    olmo_hybrid,
    olmoe,
    opt,
    orion,
    persimmon,
    phi,
    phi3,
    phi3_small,
    phimoe,
    qwen,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    qwen3_next,
    seed_oss,
    smollm3,
    stablelm,
    starcoder2,
    whisper,
)
from octavo.models.hearing import qwen2_audio, ultravox, voxtral
from octavo.models.hearing import whisper as whisper_tower
from octavo.models.layout import (
    EXPERTS_GGUF,
    EXPERTS_HF,
    EXPERTS_INTERLEAVED_GGUF,
    INTERLEAVED,
    QKV,
    QKV_GGUF,
    Layout,
    Split,
)
from octavo.models.mamba import MAMBA2_GGUF, MAMBA_GGUF
from octavo.models.pooling import causal_name
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


@dataclass(frozen=True)
class Family:
    """`model_type`: of configurations that name no architecture."""

    model_type: str
    spec: Callable[[ConfigReader], ModelSpec]
    hf: Layout = Layout()  # of Hugging Face's checkpoints
    gguf: Layout = Layout()


FAMILIES: Final[dict[str, Family]] = {
    "LlamaForCausalLM": Family("llama", llama.spec, gguf=INTERLEAVED),
    "MistralForCausalLM": Family("mistral", mistral.spec),
    "Qwen2ForCausalLM": Family("qwen2", qwen2.spec),
    "Qwen3ForCausalLM": Family("qwen3", qwen3.spec),
    "Qwen3MoeForCausalLM": Family("qwen3_moe", qwen3_moe.spec, EXPERTS_HF, EXPERTS_GGUF),
    "Qwen3NextForCausalLM": Family("qwen3_next", qwen3_next.spec, gated_delta.HF, gated_delta.GGUF),
    "Qwen3_5ForCausalLM": Family("qwen3_5_text", qwen3_next.spec_3_5, gated_delta.HF, gated_delta.GGUF),
    "Qwen3_5MoeForCausalLM": Family("qwen3_5_moe_text", qwen3_next.spec_3_5, gated_delta.HF, gated_delta.GGUF),
    "Qwen2MoeForCausalLM": Family("qwen2_moe", qwen2_moe.spec, EXPERTS_HF, EXPERTS_GGUF),
    "GemmaForCausalLM": Family("gemma", gemma.spec),
    "Gemma2ForCausalLM": Family("gemma2", gemma2.spec),
    "Gemma3ForCausalLM": Family("gemma3_text", gemma3.spec),
    "Gemma3nForCausalLM": Family("gemma3n_text", gemma3n.spec, gemma3n.HF, gemma3n.GGUF),
    "Gemma4ForCausalLM": Family("gemma4_text", gemma4.spec, gemma4.HF, gemma4.GGUF),
    "MixtralForCausalLM": Family("mixtral", mixtral.spec, mixtral.HF, mixtral.GGUF),
    "GraniteMoeForCausalLM": Family("granitemoe", granite_moe.spec, granite_moe.HF, EXPERTS_INTERLEAVED_GGUF),
    "GraniteMoeSharedForCausalLM": Family(
        "granitemoeshared", granite_moe.spec, granite_moe.HF, EXPERTS_INTERLEAVED_GGUF
    ),
    "GraniteMoeHybridForCausalLM": Family(
        "granitemoehybrid", granite_hybrid.spec, granite_hybrid.HF, granite_hybrid.GGUF
    ),
    "NemotronHForCausalLM": Family("nemotron_h", nemotron_h.spec, nemotron_h.HF, nemotron_h.GGUF),
    "BambaForCausalLM": Family("bamba", bamba.spec, falcon_h1.HF),
    "FalconH1ForCausalLM": Family("falcon_h1", falcon_h1.spec, falcon_h1.HF, falcon_h1.GGUF),
    "MambaForCausalLM": Family("mamba", mamba.spec, mamba.HF, MAMBA_GGUF),
    "FalconMambaForCausalLM": Family("falcon_mamba", mamba.falcon_spec, mamba.HF, MAMBA_GGUF),
    "Mamba2ForCausalLM": Family("mamba2", mamba.spec_2, mamba.HF_2, MAMBA2_GGUF),
    "OlmoeForCausalLM": Family("olmoe", olmoe.spec, EXPERTS_HF, EXPERTS_GGUF),
    "MiniMaxM2ForCausalLM": Family("minimax_m2", minimax_m2.spec, minimax_m2.HF, EXPERTS_GGUF),
    "PhimoeForCausalLM": Family("phimoe", phimoe.spec, mixtral.HF, EXPERTS_GGUF),
    "PhiMoEForCausalLM": Family("phimoe", phimoe.spec, mixtral.HF, EXPERTS_GGUF),
    "MllamaForCausalLM": Family("mllama_text_model", mllama.spec),
    "Llama4ForCausalLM": Family("llama4_text", llama4.spec, llama4.HF, EXPERTS_INTERLEAVED_GGUF),
    "GptOssForCausalLM": Family("gpt_oss", gpt_oss.spec, gpt_oss.HF, gpt_oss.GGUF),
    "Glm4MoeForCausalLM": Family("glm4_moe", glm4_moe.spec, glm4_moe.HF, glm4_moe.GGUF),
    "Ernie4_5_MoeForCausalLM": Family("ernie4_5_moe", ernie4_5_moe.spec, ernie4_5_moe.HF, EXPERTS_INTERLEAVED_GGUF),
    "DeepseekForCausalLM": Family("deepseek", deepseek.spec, EXPERTS_HF, EXPERTS_INTERLEAVED_GGUF),
    "DbrxForCausalLM": Family("dbrx", dbrx.spec, dbrx.HF, dbrx.GGUF),
    "ArcticForCausalLM": Family("arctic", arctic.spec, arctic.HF, EXPERTS_INTERLEAVED_GGUF),
    "Phi3ForCausalLM": Family("phi3", phi3.spec, phi3.HF, phi3.GGUF),
    "Phi3SmallForCausalLM": Family("phi3small", phi3_small.spec, phi3_small.HF),
    "PhiForCausalLM": Family("phi", phi.spec, phi.HF, QKV_GGUF),
    "OlmoForCausalLM": Family("olmo", olmo.olmo, gguf=INTERLEAVED),
    "Olmo2ForCausalLM": Family("olmo2", olmo.olmo2),
    "Olmo3ForCausalLM": Family("olmo3", olmo.olmo3),
    "OlmoHybridForCausalLM": Family("olmo_hybrid", olmo_hybrid.spec, olmo_hybrid.HF),
    "StableLmForCausalLM": Family("stablelm", stablelm.spec, stablelm.HF, stablelm.GGUF),
    "StableLMEpochForCausalLM": Family("stablelm_epoch", stablelm.spec, stablelm.HF),
    "StableLmEpochForCausalLM": Family("stablelm_epoch", stablelm.spec, stablelm.HF),
    "Starcoder2ForCausalLM": Family("starcoder2", starcoder2.spec, starcoder2.HF),
    "OPTForCausalLM": Family("opt", opt.spec, opt.HF),
    "NemotronForCausalLM": Family("nemotron", nemotron.spec),
    "PersimmonForCausalLM": Family("persimmon", persimmon.spec, persimmon.HF),
    "ApertusForCausalLM": Family("apertus", apertus.spec, apertus.HF),
    "ArceeForCausalLM": Family("arcee", arcee.spec, gguf=INTERLEAVED),
    "OrionForCausalLM": Family("orion", orion.spec),
    "HunYuanDenseV1ForCausalLM": Family("hunyuan_v1_dense", hunyuan.spec, hunyuan.HF),
    "HunYuanMoEV1ForCausalLM": Family("hunyuan_v1_moe", hunyuan.moe, hunyuan.MOE_HF, EXPERTS_GGUF),
    "MptForCausalLM": Family("mpt", mpt.spec, mpt.HF, QKV_GGUF),
    "MPTForCausalLM": Family("mpt", mpt.spec, mpt.HF, QKV_GGUF),
    "JAISLMHeadModel": Family("jais", jais.spec, jais.HF, QKV_GGUF),
    "MiniCPM3ForCausalLM": Family("minicpm3", minicpm3.spec, minicpm3.HF, minicpm3.GGUF),
    "MiniCPMForCausalLM": Family("minicpm", minicpm.spec, gguf=INTERLEAVED),
    "MinistralForCausalLM": Family("ministral", mistral.ministral),
    "Ministral3ForCausalLM": Family("ministral3", mistral.ministral3, gguf=INTERLEAVED),
    "GPT2LMHeadModel": Family("gpt2", gpt2.spec, gpt2.HF, QKV_GGUF),
    "GPTNeoXForCausalLM": Family("gpt_neox", gpt_neox.spec, gpt_neox.HF, QKV_GGUF),
    "DeepseekV2ForCausalLM": Family("deepseek_v2", deepseek_v2.spec, deepseek_v2.HF, deepseek_v2.GGUF),
    "DeepseekV3ForCausalLM": Family("deepseek_v3", deepseek_v3.spec, deepseek_v3.HF, deepseek_v2.GGUF),
    "Glm4MoeLiteForCausalLM": Family("glm4_moe_lite", deepseek_v3.spec, deepseek_v3.HF, deepseek_v2.GGUF),
    "JambaForCausalLM": Family("jamba", jamba.spec, jamba.HF, jamba.GGUF),
    "Lfm2ForCausalLM": Family("lfm2", lfm2.spec, lfm2.HF, lfm2.GGUF),
    "Lfm2MoeForCausalLM": Family("lfm2_moe", lfm2.moe_spec, lfm2.HF, lfm2.GGUF),
    "BartForConditionalGeneration": Family("bart", bart.spec, bart.HF),
    "MBartForConditionalGeneration": Family("mbart", bart.mbart, bart.HF),
    "WhisperForConditionalGeneration": Family("whisper", whisper.spec, whisper.HF),
    "ChameleonForConditionalGeneration": Family("chameleon", chameleon.spec, chameleon.HF),
    "BloomForCausalLM": Family("bloom", bloom.spec, bloom.HF, QKV_GGUF),
    "CohereForCausalLM": Family("cohere", cohere.spec, cohere.LAYOUT, cohere.LAYOUT),
    "Cohere2ForCausalLM": Family("cohere2", cohere.spec_2, cohere.LAYOUT, cohere.LAYOUT),
    "GraniteForCausalLM": Family("granite", granite.spec, gguf=INTERLEAVED),
    "GlmForCausalLM": Family("glm", glm.spec, glm.HF, glm.GGUF),
    "Glm4ForCausalLM": Family("glm4", glm.spec_0414, glm.HF_0414, glm.GGUF),
    "ChatGLMModel": Family("chatglm", glm.chatglm, glm.CHATGLM),
    "ChatGLMForConditionalGeneration": Family("chatglm", glm.chatglm, glm.CHATGLM),
    "FalconForCausalLM": Family("falcon", falcon.spec, falcon.HF, QKV_GGUF),
    "RWForCausalLM": Family("RefinedWebModel", falcon.spec, falcon.HF),
    "ExaoneForCausalLM": Family("exaone", exaone.spec, exaone.HF),
    "Exaone4ForCausalLM": Family("exaone4", exaone.spec_4),
    "InternLMForCausalLM": Family("internlm", internlm.spec),
    "InternLM2ForCausalLM": Family("internlm2", internlm.spec_2, internlm.HF_2, INTERLEAVED),
    "InternLM3ForCausalLM": Family("internlm3", internlm.spec_3),
    "BaiChuanForCausalLM": Family("baichuan", baichuan.spec, baichuan.HF, INTERLEAVED),
    "BaichuanForCausalLM": Family("baichuan", baichuan.spec, baichuan.HF, INTERLEAVED),
    "GPTBigCodeForCausalLM": Family("gpt_bigcode", gpt_bigcode.spec, gpt_bigcode.HF, QKV_GGUF),
    "GPTJForCausalLM": Family("gptj", gpt_j.spec, gpt_j.HF),
    "QWenLMHeadModel": Family("qwen", qwen.spec, qwen.HF, QKV_GGUF),
    "AquilaModel": Family("aquila", llama.spec),
    "AquilaForCausalLM": Family("aquila", llama.spec),
    "XverseForCausalLM": Family("xverse", llama.spec, gguf=INTERLEAVED),
    "YiForCausalLM": Family("Yi", llama.spec, llama.YI),
    "LLaMAForCausalLM": Family("llama", llama.spec),
    "DeciLMForCausalLM": Family("deci", deci.spec, gguf=INTERLEAVED),
    "SeedOssForCausalLM": Family("seed_oss", seed_oss.spec, gguf=seed_oss.GGUF),
    "SmolLM3ForCausalLM": Family("smollm3", smollm3.spec, gguf=INTERLEAVED),
    "Ernie4_5ForCausalLM": Family("ernie4_5", ernie4_5.spec, INTERLEAVED, INTERLEAVED),
    **dict.fromkeys(
        ("BertModel", "BertForSequenceClassification", "BertForMaskedLM", "BertForPreTraining"),
        Family("bert", bert.bert, bert.HF, QKV_GGUF),
    ),
    **dict.fromkeys(
        ("RobertaModel", "RobertaForSequenceClassification", "RobertaForMaskedLM"),
        Family("roberta", bert.roberta, bert.ROBERTA_HF),
    ),
    **dict.fromkeys(
        ("XLMRobertaModel", "XLMRobertaForSequenceClassification", "XLMRobertaForMaskedLM"),
        Family("xlm-roberta", bert.roberta, bert.ROBERTA_HF),
    ),
    **dict.fromkeys(
        ("DistilBertModel", "DistilBertForSequenceClassification", "DistilBertForMaskedLM"),
        Family("distilbert", bert.distilbert, bert.DISTILBERT_HF),
    ),
    **dict.fromkeys(
        ("MPNetModel", "MPNetForSequenceClassification", "MPNetForMaskedLM"),
        Family("mpnet", bert.mpnet, bert.MPNET_HF),
    ),
    **dict.fromkeys(
        ("ModernBertModel", "ModernBertForSequenceClassification", "ModernBertForMaskedLM"),
        Family("modernbert", modernbert.spec, modernbert.HF, modernbert.GGUF),
    ),
    **dict.fromkeys(("NewModel", "NewForSequenceClassification", "NewForMaskedLM"), Family("new", gte.new, gte.HF)),
    **dict.fromkeys(("GteModel", "GteForSequenceClassification", "GteForMaskedLM"), Family("gte", gte.spec, gte.HF)),
    **dict.fromkeys(
        ("JinaBertModel", "JinaBertForSequenceClassification"),
        Family("jina_bert", jina.version_2, jina.V2_HF, jina.V2_GGUF),
    ),
    "JinaBertForMaskedLM": Family("jina_bert", jina.version_2, jina.V2_HF, jina.V2_APART_GGUF),
    **dict.fromkeys(
        ("JinaEmbeddingsV3Model", "JinaEmbeddingsV3ForSequenceClassification", "JinaEmbeddingsV3ForMaskedLM"),
        Family("jina_embeddings_v3", jina.version_3, jina.V3_HF, jina.V3_GGUF),
    ),
    **dict.fromkeys(
        (
            "NomicBertModel",
            "NomicBertForPreTraining",
            "NomicBertForMaskedLM",
            "NomicBertForSequenceClassification",
        ),
        Family("nomic_bert", nomic_bert.spec, nomic_bert.HF, nomic_bert.GGUF),
    ),
}


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
    text_config: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None


SEEING: Final[dict[str, Seeing]] = {
    "LlavaForConditionalGeneration": Seeing(llava.tower, llava.HF),
    "Idefics3ForConditionalGeneration": Seeing(idefics3.tower, idefics3.HF),
    "SmolVLMForConditionalGeneration": Seeing(idefics3.tower, idefics3.HF),
    "Qwen2VLForConditionalGeneration": Seeing(qwen2_vl.tower, qwen2_vl.HF, (QKV,), qwen2_vl.text),
    "Qwen2_5_VLForConditionalGeneration": Seeing(qwen2_vl.tower_2_5, qwen2_vl.HF, (QKV,), qwen2_vl.text),
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
        gemma3_vision.paligemma, gemma3_vision.PALIGEMMA_HF, text=gemma3_vision.text
    ),
    "LlavaNextForConditionalGeneration": Seeing(llava.next_tower, llava.HF_NEXT),
    "Llama4ForConditionalGeneration": Seeing(llama4_vision.tower, llama4_vision.HF, interleaved=True),
    "MllamaForConditionalGeneration": Seeing(mllama_vision.tower, mllama_vision.HF, text=mllama.seeing),
    "FuyuForCausalLM": Seeing(fuyu.tower, fuyu.HF),
    "ChameleonForConditionalGeneration": Seeing(chameleon_vision.tower, chameleon_vision.HF),
    "Blip2ForConditionalGeneration": Seeing(blip2.tower, blip2.HF, (QKV,)),
    # These hear.
    "UltravoxModel": Seeing(ultravox.tower, ultravox.HF, (ultravox.GATED,)),
    "Qwen2AudioForConditionalGeneration": Seeing(qwen2_audio.tower, qwen2_audio.HF),
    "VoxtralForConditionalGeneration": Seeing(voxtral.tower, voxtral.HF),
}
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
    names, text = config.get("architectures"), config.get("text_config")
    if (
        names in (["Qwen2VLForConditionalGeneration"], ["Qwen2_5_VLForConditionalGeneration"]) and text is None
    ):  # older files have both parts in one
        text = {key: value for key, value in config.items() if key != "vision_config"} | {"model_type": "qwen2_vl_text"}
    if text is None and names in (["FuyuForCausalLM"], ["ChameleonForConditionalGeneration"]):
        text = {**config, "model_type": "persimmon" if names == ["FuyuForCausalLM"] else "chameleon"}
    seeing = SEEING.get(str(names[0])) if isinstance(names, list) and len(names) == 1 else None
    if seeing is not None and seeing.text_config is not None:
        text = seeing.text_config(config)
    if not isinstance(names, list) or not _WITH_TEXT.intersection(map(str, names)) or not isinstance(text, dict):
        return None
    kept = {key: config[key] for key in ("tie_word_embeddings", "quantization_config") if key in config}
    defaults = _TEXT_DEFAULTS.get(str(text.get("model_type")), {})
    kind = _TEXT_TYPES.get(str(text.get("model_type")), text.get("model_type"))
    if "PaliGemmaForConditionalGeneration" in names:  # that prompts see all of themselves is told by its tower
        text = {**text, "use_bidirectional_attention": False}
    # What a model has as a whole, its text part may tell otherwise by a default of its own.
    return {**defaults, **text, **kept, "model_type": kind, "architectures": None}


#: Entry points of other distributions, of which each is a `Family` under the name of its architecture.
PLUGINS: Final = "octavo.models"


@cache
def add_families() -> None:
    """Take what other distributions bring, once a process. One that cannot be loaded is told and left out: it must not
    keep other models from being served."""
    for entry in entry_points(group=PLUGINS):
        place = f"{entry.value} of {entry.dist.name if entry.dist is not None else 'unknown'}"
        try:
            family = entry.load()
        except Exception as error:  # noqa: BLE001 - whatever a foreign module does while it is imported
            logger.warning(
                "the family %s (%s) cannot be loaded: %s: %s", entry.name, place, type(error).__name__, error
            )
            continue
        if not isinstance(family, Family):
            logger.warning("the family %s (%s) is no octavo.models.registry.Family", entry.name, place)
            continue
        if entry.name in FAMILIES:
            logger.warning("the family %s is that of %s, in the place of octavo's own", entry.name, place)
        FAMILIES[entry.name] = family


def find_family(config: dict[str, Any], source: str, *, sees: bool = True) -> Family:
    """The family of a configuration in Hugging Face's form; `source` names it in messages. `sees`: with the tower of a
    model that has one.

    Raises CheckpointError for an architecture that is not implemented.
    """
    add_families()
    text = text_part(config)
    if text is not None:
        return _with_tower(find_family(text, source), config, sees)
    by_type = {family.model_type: name for name, family in reversed(FAMILIES.items())}  # the first of a type
    names = config.get("architectures") or [by_type.get(str(config.get("model_type")), config.get("model_type"))]
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    if isinstance(name, str) and name not in FAMILIES:
        name, given = causal_name(name, FAMILIES), name
        if name != given:
            family = FAMILIES[name]
            # A decoder without its output matrix stands without the name of what has both.
            return replace(family, hf=replace(family.hf, renames=(_BARE, *family.hf.renames)))
    if not isinstance(name, str) or name not in FAMILIES:
        supported = ", ".join(FAMILIES)
        raise CheckpointError(f"{source}: the architecture {str(name)[:80]!r} is not supported; these are: {supported}")
    return FAMILIES[name]


#: Names of tensors of a decoder that was saved alone.
_BARE: Final = (r"^(?=(embed_tokens|layers|norm)\.)", "model.")


def _with_tower(family: Family, config: dict[str, Any], sees: bool) -> Family:
    """The family of a text part, for the files of a model that also sees."""
    hf, seeing = family.hf, _seeing(config)
    if seeing is None or isinstance(_tower(config, seeing, family), CheckpointError):
        hf = replace(hf, ignored=(*hf.ignored, *_NOT_TEXT), renames=(*_TEXT_RENAMES, *hf.renames))
    else:
        transposed = "|".join(each for each in (hf.transposed, seeing.transposed) if each)
        hf = replace(
            hf,
            renames=(*_TEXT_RENAMES, *hf.renames),
            transposed=transposed,
            either_way=seeing.either_way,
            flattened=f"{FLATTENED}|{whisper_tower.FLATTENED}",
            surplus=hf.surplus if sees else (*hf.surplus, rf"{ROOM}\..*"),
            apart=f"{ROOM}.",
            renames_apart=seeing.renames,
            splits_apart=seeing.splits,
            interleaved_apart=seeing.interleaved,
        )
    return replace(family, hf=hf)


def _seeing(config: dict[str, Any]) -> Seeing | None:
    names, vision = config.get("architectures"), config.get("vision_config")
    if (
        names == ["LlavaForConditionalGeneration"]
        and isinstance(vision, dict)
        and vision.get("model_type") == "pixtral"
    ):
        return PIXTRAL
    return SEEING.get(str(names[0])) if isinstance(names, list) and len(names) == 1 else None


def _tower(
    config: dict[str, Any], seeing: Seeing, family: Family
) -> tuple[TowerSpec | PicturesSpec, tuple[str, ...]] | CheckpointError:
    """The tower of a model, or why it has none that is implemented."""
    text = text_part(config)
    assert text is not None
    try:
        spec = family.spec(ConfigReader(text))
        if seeing.text is not None:
            seeing.text(ConfigReader(text), spec)
        return seeing.tower(ConfigReader(config), spec)
    except CheckpointError as error:
        return error


def model_spec(config: dict[str, Any], source: str) -> ModelSpec:
    """The model that a configuration in Hugging Face's form describes; `source` names it in messages.

    Raises CheckpointError for an architecture or an option that is not implemented. Code that the configuration
    points to is never run.
    """
    return seen_spec(config, source, ModelConfig())


def seen_spec(config: dict[str, Any], source: str, model: ModelConfig) -> ModelSpec:
    """The same with what the command line says: without a tower that no request may use, and not without that of a file
    of its own."""
    if config.get("auto_map") is not None:
        logger.warning("%s: auto_map is ignored: octavo runs no code from a model's files", source)
    family = find_family(config, source)
    text = text_part(config)
    try:
        spec = family.spec(ConfigReader(config if text is None else text))
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error.message}") from None
    if text is None:
        return spec
    seeing, why = _seeing(config), ""
    if seeing is not None:
        tower = _tower(config, seeing, family)
        if isinstance(tower, CheckpointError):
            if model.mmproj is not None:
                raise CheckpointError(f"{model.mmproj}: {tower.message}")
            why = f": {tower.message}"
        elif isinstance(tower[0], TowerSpec) and _is_idle(tower[0], model):
            why = ": --limit-mm-per-prompt allows no media"
        else:
            seen = spec if seeing.text is None else seeing.text(ConfigReader(text), spec)
            if isinstance(tower[0], PicturesSpec):
                return replace(seen, pictures=tower[0], unused=tower[1])
            return replace(seen, tower=tower[0], unused=tower[1])
    logger.info("%s: only the text part of the model is served%s", source, why)
    return spec


def _is_idle(tower: TowerSpec, model: ModelConfig) -> bool:
    """Whether no request may use it. How prompts see themselves would go with a tower that says so."""
    return not tower.whole_prompts and not any(is_wanted(kind, model) for kind in tower.kinds)
