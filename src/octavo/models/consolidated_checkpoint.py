"""Weights as Mistral and Meta publish them: params.json beside consolidated*.safetensors or consolidated.00.pth.

Both have the names of Meta's first code, and rotate the pairs (0, 1), (2, 3), ... of a head, where Hugging Face's
checkpoints rotate its halves: so the rows of queries and keys are put in that order here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.models.checkpoint import StoredCheckpoint, TensorFile, config_dtype, read_json
from octavo.models.safetensors_file import SafetensorsFile
from octavo.models.torch_file import TorchFile

PARAMS: Final = "params.json"
#: Positions that params.json does not tell: Mistral's own engine has no such limit.
_MAX_POSITIONS: Final = 32_768

_NAMES: Final = (
    (r"^tok_embeddings\.", "model.embed_tokens."),
    (r"^output\.", "lm_head."),
    (r"^norm\.", "model.norm."),
    (r"^layers\.", "model.layers."),
    (r"\.attention\.w([qkvo])\.", r".self_attn.\1_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
    (r"\.(?:block_sparse_moe|feed_forward)\.(gate|experts)\.", r".block_sparse_moe.\1."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
)
_IGNORED: Final = re.compile(r"rope\.freqs|.*\.inner_attention\.rope\.freqs")
_ROTATED: Final = re.compile(r".*\.self_attn\.([qk])_proj\.weight")
#: Parts of params.json for which no family that is read here has a meaning.
_NOT_BUILT: Final = (
    "vision_encoder",
    "multimodal",
    "quantization",
    "qk_norm",
    "yarn",
    "llama_4_scaling",
    "lora",
    "q_lora_rank",
)


class ConsolidatedCheckpoint(StoredCheckpoint):
    """Under Hugging Face's names, as a Llama, Mistral or Mixtral. Raises `CheckpointError`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, {}, _files(directory), _hf_name)
        shapes = {name: self.shape(name) for name in self.names()}
        self.config = _config(read_json(directory / PARAMS), directory / PARAMS, shapes)
        self.dtype = config_dtype(self.config)

    def raw(self, name: str) -> Tensor:
        tensor = super().raw(name)
        return self._halves(tensor) if _ROTATED.fullmatch(name) else tensor

    def _halves(self, tensor: Tensor) -> Tensor:
        dim = int(self.config["head_dim"])
        if tensor.dim() != 2 or tensor.shape[0] % dim:
            return tensor  # its shape is complained about by whoever wants it
        return tensor.view(-1, dim // 2, 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)


def _hf_name(stored: str) -> str | None:
    if _IGNORED.fullmatch(stored):
        return None
    for pattern, replacement in _NAMES:
        stored = re.sub(pattern, replacement, stored)
    return stored


def has_consolidated(directory: Path) -> bool:
    return (directory / PARAMS).is_file() and any(directory.glob("consolidated*"))


def _files(directory: Path) -> list[TensorFile]:
    if not (directory / PARAMS).is_file():
        raise CheckpointError(f"{directory}: there is no {PARAMS}, which the mistral format has beside the weights")
    safe = sorted(directory.glob("consolidated*.safetensors"))
    if safe:
        return [SafetensorsFile(path) for path in safe]
    pickled = sorted(directory.glob("consolidated*.pth")) or sorted(directory.glob("consolidated*.pt"))
    if len(pickled) > 1:
        raise CheckpointError(
            f"{directory}: the weights are divided for {len(pickled)} devices: give the model in Hugging Face's form"
        )
    if not pickled:
        raise CheckpointError(f"{directory}: there are no consolidated*.safetensors and no consolidated.00.pth")
    return [TorchFile(pickled[0])]


def _config(params: Mapping[str, Any], path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """params.json as a config.json. Sizes that Meta's code computes are read off the tensors."""
    for key in _NOT_BUILT:
        if params.get(key):
            raise CheckpointError(f"{path}: {key} is not supported in this form: give the model in Hugging Face's form")

    def size(key: str, default: int | None = None) -> int:
        value = default if params.get(key) is None else params[key]
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{path}: {key} is {str(value)[:40]}, not a positive integer")
        return value

    heads, dim = size("n_heads"), size("dim")
    vocab, inner = (
        (shapes.get(name) or (0,))[0] for name in ("model.embed_tokens.weight", "model.layers.0.mlp.gate_proj.weight")
    )
    moe = params.get("moe")
    config: dict[str, Any] = {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "hidden_size": dim,
        "num_hidden_layers": size("n_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": size("n_kv_heads", heads),
        "head_dim": size("head_dim", max(1, dim // heads)),
        "intermediate_size": size("hidden_dim", inner or None),
        "vocab_size": vocab or size("vocab_size"),
        "rms_norm_eps": params.get("norm_eps", 1e-5),
        "rope_theta": params.get("rope_theta", 10_000.0),
        "max_position_embeddings": size("max_position_embeddings", size("max_seq_len", _MAX_POSITIONS)),
        "hidden_act": "silu",
        "tie_word_embeddings": bool(params.get("tied_embeddings", "lm_head.weight" not in shapes)),
        "sliding_window": params.get("sliding_window"),
        "torch_dtype": params.get("dtype", "bfloat16"),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if params.get("use_scaled_rope"):  # Llama 3.1
        config["rope_scaling"] = {
            "rope_type": "llama3", "factor": params.get("rope_scaling_factor", 8.0), "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        }  # fmt: skip
        config["max_position_embeddings"] = size("max_seq_len", 131_072)
    if isinstance(moe, Mapping):
        config |= {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
        config["num_local_experts"] = moe.get("num_experts")
        config["num_experts_per_tok"] = moe.get("num_experts_per_tok")
    return config
