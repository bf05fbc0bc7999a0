"""Which family reads the configuration of which architecture."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Final

from octavo.base.config import ModelConfig
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
from octavo.models.layout import (
    EXPERTS_GGUF,
    EXPERTS_HF,
    EXPERTS_INTERLEAVED_GGUF,
    INTERLEAVED,
    QKV_GGUF,
    Layout,
)
from octavo.models.mamba import MAMBA2_GGUF, MAMBA_GGUF
from octavo.models.pooling import causal_name
from octavo.models.seeing import seeing_spec, text_part, with_tower
from octavo.models.spec import ModelSpec

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
        family = find_family(text, source)
        return replace(family, hf=with_tower(family.hf, config, family.spec, sees=sees))
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
    return spec if text is None else seeing_spec(spec, config, source, model)
