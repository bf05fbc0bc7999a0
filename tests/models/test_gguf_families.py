"""A family read from GGUF is the same model: tiny random models of transformers, written in GGUF's conventions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from models.running import load, prompt_logits
from models.test_families import PROMPTS, make_model, transformers_logits
from octavo.errors import CheckpointError
from octavo.models.decoder import define
from octavo.models.gguf_checkpoint import GGUFCheckpoint
from octavo.models.registry import model_spec
from octavo.models.rope import inverse_frequencies
from octavo.models.spec import RopeSpec
from octavo.ops.table import bind

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA = {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "Llama", {"num_key_value_heads": 1, "attention_bias": False}),
    "llama-rope-factors": ("llama", "Llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", "Qwen2", {}),
    "qwen3": ("qwen3", "Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", "Gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3", "Gemma3", {**GEMMA, "num_hidden_layers": 7}),
}


def interleaved(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of each head in the order that GGUF has for llama: pairs side by side."""
    halves = weight.view(num_heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def write_gguf(path: Path, arch: str, model: Any, options: dict[str, Any]) -> None:
    config, names = model.config, dict(model.named_parameters())
    declared = define(model_spec(config.to_dict() | {"architectures": [type(model).__name__]}, "test")).tensors
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if arch.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if options.get("rope_parameters"):
        head_dim = config.hidden_size // config.num_attention_heads
        scaled = RopeSpec(**{"kind" if k == "rope_type" else k.removeprefix("rope_"): v for k, v in rope.items()})
        plain = inverse_frequencies(RopeSpec(theta=scaled.theta), head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / inverse_frequencies(scaled, head_dim)).numpy())
    for name in sorted(names):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = names[name].detach()
        if arch == "llama" and ".q_proj." in name:
            values = interleaved(values, config.num_attention_heads)
        if arch == "llama" and ".k_proj." in name:
            values = interleaved(values, config.num_key_value_heads)
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        writer.add_tensor(declared[name].gguf, np.ascontiguousarray(values.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("case", CASES)
def test_gguf_holds_the_same_model(case: str, tmp_path: Path) -> None:
    arch, family, options = CASES[case]
    model = make_model(tmp_path / "hf", family, options)
    path = tmp_path / "model.gguf"
    write_gguf(path, arch, model, options)
    ops = bind("cpu", "reference")
    loaded = load(path, ops)
    assert {tensor.gguf for tensor in loaded.model.definition.tensors.values()} == set(GGUFCheckpoint(path).names())
    ours = torch.stack(prompt_logits(loaded, ops, PROMPTS))
    torch.testing.assert_close(ours, transformers_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)


def metadata_of(arch: str = "llama", **changes: Any) -> dict[str, Any]:
    values = {
        "block_count": 1, "context_length": 64, "embedding_length": 64, "feed_forward_length": 64,
        "attention.head_count": 2, "attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    return {f"{arch}.{key}": value for key, value in {**values, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        ("mamba", {}, "'mamba' is not supported"),
        ("llama", {"expert_count": 8}, "num_experts"),
        ("llama", {"rope.dimension_count": 16}, "rope.dimension_count"),
        ("llama", {"rope.scaling.type": "longrope"}, "longrope"),
        ("llama", {"attention.key_length": 32, "attention.value_length": 16}, "keys and values"),
        ("llama", {"attention.head_count": [2, 1]}, "layers of different sizes"),
        ("llama", {"embedding_length": None}, "hidden_size"),
        ("llama", {"block_count": 0}, "num_hidden_layers"),
        ("qwen2", {"attention.layer_norm_rms_epsilon": float("nan")}, "rms_norm_eps"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(
    arch: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata_of(arch, **changes).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        add[type(value)](key, value)
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=message) as error:
        load(path, bind("cpu", "reference"))
    assert str(path) in error.value.message


def test_a_split_model_is_read_from_its_first_part(tmp_path: Path) -> None:
    model = make_model(tmp_path / "hf", "Llama", {})
    whole = tmp_path / "whole.gguf"
    write_gguf(whole, "llama", model, {})
    source = GGUFCheckpoint(whole)
    reader = gguf.GGUFReader(whole)
    for number in (1, 2):
        writer = gguf.GGUFWriter(tmp_path / f"m-0000{number}-of-00002.gguf", "llama")
        writer.add_uint16("split.count", 2)
        if number == 1:
            for key, field in reader.fields.items():
                if key.startswith("llama."):
                    (writer.add_float32 if isinstance(field.contents(), float) else writer.add_uint32)(
                        key, field.contents()
                    )
        for index, tensor in enumerate(reader.tensors):
            if index % 2 == number - 1:
                writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    split = GGUFCheckpoint(tmp_path / "m-00001-of-00002.gguf")
    assert sorted(split.names()) == sorted(source.names())
    name = "blk.1.ffn_up.weight"
    ours, theirs = split.get(name), source.get(name)
    assert isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor)
    assert torch.equal(ours, theirs)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00002\.gguf.*missing"):
        GGUFCheckpoint(tmp_path / "m-00001-of-00002.gguf")
