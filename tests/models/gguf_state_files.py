"""Writes models with states as GGUF: names by `gguf`'s own map, values as llama.cpp's converters have them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

#: The second Mamba's: rates and skips are columns, and norms have a row for each group.
_HEADED = ("mamba2", "falcon-h1", "granitehybrid", "nemotron_h", "nemotron_h_moe")
_EXPERT = re.compile(r"(.*\.)(?:feed_forward|mixer)\.experts\.(\d+)\.(\w+)_proj\.weight")


def write_state_gguf(
    path: Path,
    arch: str,
    directory: Path,
    *,
    num_drafting: int = 0,
    quantized: str = "",
    changes: Mapping[str, int] | None = None,
) -> None:
    """The model that transformers saved to `directory`. `num_drafting`: layers behind its own. `quantized`: a tensor of
    all layers. `changes`: of the metadata."""
    config = json.loads((directory / "config.json").read_text())
    writer = gguf.GGUFWriter(path, arch)
    _write_keys(writer, arch, config, num_drafting)
    for key, value in (changes or {}).items():
        writer.kv_data[0][f"{arch}.{key}"] = gguf.GGUFValue(value, gguf.GGUFValueType.UINT32)
    for number in range(_num_layers(config), _num_layers(config) + num_drafting):
        writer.add_tensor(f"blk.{number}.nextn.eh_proj.weight", np.zeros((64, 128), np.float32))
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[arch], _num_layers(config))
    experts: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        for new_name, value in _converted(arch, config, name, tensor):
            if expert := _EXPERT.fullmatch(new_name):
                prefix = expert[1].replace("backbone.", "model.")
                experts.setdefault(f"{prefix}mlp.experts.{expert[3]}_proj.weight", {})[int(expert[2])] = value
            else:
                _add(writer, names, new_name, value, quantized)
    for name, each in experts.items():
        _add(writer, names, name, torch.stack([each[number] for number in range(len(each))]), quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, names: gguf.TensorNameMap, name: str, value: torch.Tensor, quantized: str) -> None:
    new_name = name if name.startswith("blk.") else names.get_name(name, try_suffixes=(".weight", ".bias"))
    assert new_name is not None, name
    array = np.ascontiguousarray(value.numpy())
    if quantized and new_name.endswith(f".{quantized}.weight"):
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(new_name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    else:
        writer.add_tensor(new_name, array)


def _num_layers(config: dict[str, Any]) -> int:
    return int(config["num_hidden_layers"]) if "num_hidden_layers" in config else len(config["layers_block_type"])


def _converted(arch: str, config: dict[str, Any], name: str, value: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    layer = re.search(r"\.layers\.(\d+)\.", name)
    groups = config.get("n_groups", config.get("mamba_n_groups"))
    name = re.sub(r"\.dt_bias$", ".dt.bias" if arch == "nemotron_h_moe" else ".dt_proj.bias", name)
    name = re.sub(r"_correction_bias$", "_correction.bias", name)
    if "conv1d.weight" in name:
        value = value.squeeze(1)
    if name.endswith(".A_log"):
        value = -value.exp()
    if arch in _HEADED and name.endswith((".A_log", ".D")):
        value = value[:, None]
    if name.endswith(("mamba.norm.weight", "mixer.norm.weight")):
        value = value.view(groups, -1)
    if arch == "falcon-h1":
        value = _multiplied(config, name, value)
    if arch == "granitehybrid" and name.endswith(("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")):
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        value = value.view(heads, 2, -1, *value.shape[1:]).transpose(1, 2).reshape(value.shape)
    if "input_linear" not in name and "shared_mlp" not in name:
        yield name, value
        return
    assert layer is not None
    suffix = "_exps" if "shared_mlp" not in name else "_shexp" if config["num_local_experts"] else ""
    prefix = f"blk.{layer[1]}.ffn_"
    if "output_linear" in name:
        yield f"{prefix}down{suffix}.weight", value
        return
    gate, up = value.chunk(2, -2)
    yield f"{prefix}gate{suffix}.weight", gate
    yield f"{prefix}up{suffix}.weight", up


def _multiplied(config: dict[str, Any], name: str, value: torch.Tensor) -> torch.Tensor:
    gate, down = config["mlp_multipliers"]
    inside = config["attention_in_multiplier"]
    factors = {
        "down_proj": down, "gate_proj": gate, "k_proj": config["key_multiplier"] * inside, "q_proj": inside,
        "v_proj": inside, "o_proj": config["attention_out_multiplier"], "out_proj": config["ssm_out_multiplier"],
        "in_proj": config["ssm_in_multiplier"], "lm_head": config["lm_head_multiplier"],
        "embed_tokens": config["embedding_multiplier"],
    }  # fmt: skip
    value = value * next((factor for part, factor in factors.items() if f".{part}." in f".{name}"), 1.0)
    if "in_proj" in name:
        width, columns = config["mamba_d_ssm"], config["mamba_n_groups"] * config["mamba_d_state"]
        parts = value.split([width, width, columns, columns, config["mamba_n_heads"]])
        value = torch.cat([part * factor for part, factor in zip(parts, config["ssm_multipliers"], strict=True)])
    return value


def _write_keys(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any], num_drafting: int) -> None:
    own = {re.sub(r"^mamba_", "", key): value for key, value in config.items()} | config
    heads, num_layers = own.get("n_heads", own.get("num_heads")), _num_layers(config)
    expand = own.get("expand", 2)
    inner = own.get("d_ssm") or own.get("intermediate_size" if arch == "mamba" else "") or expand * own["hidden_size"]
    if arch.startswith("nemotron"):
        heads = config["mamba_num_heads"]
        inner = heads * config["mamba_head_dim"]
    writer.add_block_count(num_layers + num_drafting)
    writer.add_context_length(128)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps") or config["layer_norm_epsilon"])
    writer.add_ssm_conv_kernel(own.get("conv_kernel", own.get("d_conv")))
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(own.get("state_size") or own.get("d_state") or own["ssm_state_size"])
    writer.add_ssm_time_step_rank(heads if arch in _HEADED else own.get("time_step_rank", own.get("dt_rank")))
    if arch in _HEADED:
        writer.add_ssm_group_count(config.get("n_groups", config.get("mamba_n_groups")))
    if arch in ("mamba", "mamba2"):
        writer.add_feed_forward_length(0)
        writer.add_head_count(0)
        if arch == "mamba":
            writer.add_ssm_dt_b_c_rms(config["model_type"] == "falcon_mamba")
        return
    writer.add_head_count(config["num_attention_heads"])
    kv = config["num_key_value_heads"]
    if arch == "falcon-h1":
        writer.add_head_count_kv(kv)
        writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    else:
        kinds = config.get("layer_types") or config.get("layers_block_type") or _jamba_kinds(config)
        writer.add_head_count_kv([*(kv if "full" in kind else 0 for kind in kinds), *[kv] * num_drafting])
    if arch in ("falcon-h1", "nemotron_h", "nemotron_h_moe"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if not arch.startswith("nemotron"):
        writer.add_feed_forward_length(config["intermediate_size"])
    _write_own_keys(writer, arch, config, num_drafting)


def _jamba_kinds(config: dict[str, Any]) -> list[str]:
    numbers, offset = range(config["num_hidden_layers"]), config["attn_layer_offset"]
    return ["full" if number % config["attn_layer_period"] == offset else "mamba" for number in numbers]


def _write_own_keys(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any], num_drafting: int) -> None:
    if arch == "jamba":
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if arch == "granitehybrid":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
        writer.add_expert_shared_feed_forward_length(config["shared_intermediate_size"])
        writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
        writer.add_rope_freq_base(10_000.0)
        writer.add_rope_scaling_finetuned(config["position_embedding_type"] == "rope")
        if config["num_local_experts"]:
            writer.add_expert_count(config["num_local_experts"])
            writer.add_expert_used_count(config["num_experts_per_tok"])
    if arch.startswith("nemotron"):
        kind = "moe" if arch == "nemotron_h_moe" else "mlp"
        size = config["moe_intermediate_size" if kind == "moe" else "intermediate_size"]
        sizes = [size if each == kind else 0 for each in config["layers_block_type"]]
        writer.add_feed_forward_length([*sizes, *[size] * num_drafting])
        if num_drafting:
            writer.add_nextn_predict_layers(num_drafting)
    if arch == "nemotron_h_moe":
        writer.add_expert_count(config["n_routed_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_shared_feed_forward_length(config["moe_shared_expert_intermediate_size"])
        writer.add_expert_shared_count(config["n_shared_experts"])
        writer.add_expert_weights_norm(config["norm_topk_prob"])
        writer.add_expert_weights_scale(config["routed_scaling_factor"])
        writer.add_expert_group_count(config["n_group"])
        if config["moe_latent_size"]:
            writer.add_moe_latent_size(config["moe_latent_size"])
