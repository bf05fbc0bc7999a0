"""GGUF metadata of models that give vectors -> keys of the Hugging Face configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from octavo.base.errors import CheckpointError
from octavo.files.gguf import TensorInfo

_MODEL_TYPES: Final = ("bert", "nomic_bert", "modernbert", "jina_bert", "jina_embeddings_v3")
_CLASSIFIERS: Final = {"bert": "BertForSequenceClassification", "modernbert": "ModernBertForSequenceClassification"}
#: Matrices behind the pooling, in their order.
_DENSE: Final = ("dense_2", "dense_3")
#: llama.cpp's number of the pooling that takes the first row. Classifiers of ModernBERT take the mean where no file
#: says so.
_CLS: Final = 2
_RERANK_TEMPLATE: Final = "tokenizer.chat_template.rerank"


def hf_config(
    model_type: str,
    config: dict[str, Any],
    get: Callable[..., Any],
    tensors: dict[str, TensorInfo],
    metadata: dict[str, Any],
) -> dict[str, Any]:
    """`config`: what was read the same way for all architectures. Also of decoders, which may give vectors too."""
    own: dict[str, Any] = {}
    if dense := [_rows(tensors, name) for name in _DENSE if f"{name}.weight" in tensors]:
        own["pooled_dense"] = dense
    if "cls.output.weight" in tensors:
        labels = get("classifier.output_labels") or [f"LABEL_{i}" for i in range(_rows(tensors, "cls.output"))]
        own["id2label"] = dict(enumerate(labels))
        own["cls_out"] = {"bias": "cls.output.bias" in tensors, "template": metadata.get(_RERANK_TEMPLATE)}
        if model_type in _CLASSIFIERS:
            own["architectures"] = [_CLASSIFIERS[model_type]]
    if model_type not in _MODEL_TYPES:
        return own
    types = tensors.get("token_types.weight")
    own |= {
        "layer_norm_eps": get("attention.layer_norm_epsilon"),
        "type_vocab_size": types.shape[0] if types is not None and len(types.shape) == 2 else 0,
    }
    match model_type:
        case "nomic_bert":
            bias = config["attention_bias"]
            own |= dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), bias)
            own["experts_bias"] = False  # which is zero, and left out
        case "jina_bert" if "blk.0.ffn_gate.weight" not in tensors:
            own["architectures"] = ["JinaBertModel"]  # whose files have both halves of the MLP as one
        case "modernbert":
            own |= {
                "norm_eps": get("attention.layer_norm_epsilon"),
                "hidden_activation": get("hidden_activation", config["hidden_act"]),
                "norm_bias": "blk.0.ffn_norm.bias" in tensors,
                "classifier_bias": "cls.bias" in tensors,
                "classifier_pooling": "cls" if config["pooling_type"] == _CLS else "mean",
                "global_rope_theta": get("rope.freq_base"),
                "local_rope_theta": get("rope.freq_base_swa"),
                "rope_parameters": {"full_attention": {}, "sliding_attention": {}},
            }
    return own


def _rows(tensors: dict[str, TensorInfo], name: str) -> int:
    shape = tensors[f"{name}.weight"].shape
    if len(shape) not in (1, 2):
        raise CheckpointError(f"tensor '{name}.weight' is no matrix")
    return shape[0] if len(shape) == 2 else 1
