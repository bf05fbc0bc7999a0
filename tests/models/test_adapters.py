"""The files of adapters: PEFT's and llama.cpp's give the same matrices; what is not supported is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from octavo.base.config import LoraConfig, ModelConfig
from octavo.base.errors import CheckpointError
from octavo.models.adapters.adapter import AdapterReader
from octavo.models.adapters.fitting import Adapter
from octavo.models.implementation import definition_of
from octavo.models.loader import open_checkpoint
from support.adapters import write_adapter
from support.tensors import randn

RANK, HIDDEN, HEADS, KV_HEADS, INNER, VOCAB = 4, 576, 9, 3, 1536, 49152


@pytest.fixture(scope="module")
def reader(smollm2_gguf: Path) -> AdapterReader:
    config = ModelConfig(model=str(smollm2_gguf))
    checkpoint = open_checkpoint(config)
    definition = definition_of(config, checkpoint.config, checkpoint.source, torch.float32)

    def base() -> Any:
        raise AssertionError("no adapter here asks for the model's own values")

    return AdapterReader(definition, checkpoint.config, base, LoraConfig(max_lora_rank=16), None, 8192)


def permuted(b: Tensor, heads: int) -> Tensor:
    """Rows of q or k as llama.cpp's converter has them: pairs of the rotation side by side."""
    return b.view(heads, 2, b.shape[0] // heads // 2, -1).transpose(1, 2).reshape(b.shape)


def tensors() -> dict[str, Tensor]:
    sizes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN, KV_HEADS * 64),
        "mlp.down_proj": (INNER, HIDDEN),
    }  # fmt: skip
    found = {}
    for seed, (name, (columns, rows)) in enumerate(sizes.items()):
        found[f"model.layers.3.{name}.lora_A.weight"] = randn(RANK, columns, seed=seed)
        found[f"model.layers.3.{name}.lora_B.weight"] = randn(rows, RANK, seed=10 + seed)
    found["model.embed_tokens.lora_embedding_A"] = randn(RANK, VOCAB, seed=20)
    found["model.embed_tokens.lora_embedding_B"] = randn(HIDDEN, RANK, seed=21)
    return found


def write_gguf(path: Path, names: dict[str, Tensor], alpha: float = 8.0, **metadata: str) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {"general.type": "adapter", "adapter.type": "lora", **metadata}.items():
        writer.add_string(key, value)
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, tensor in names.items():
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_gguf(peft: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "mlp.down_proj": "ffn_down"}
    found = {}
    for name, part in parts.items():
        a, b = (peft[f"model.layers.3.{name}.lora_{kind}.weight"] for kind in "AB")
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(part)
        found[f"blk.3.{part}.weight.lora_a"] = a
        found[f"blk.3.{part}.weight.lora_b"] = b if heads is None else permuted(b, heads)
    found["token_embd.weight.lora_a"] = peft["model.embed_tokens.lora_embedding_A"].t()
    found["token_embd.weight.lora_b"] = peft["model.embed_tokens.lora_embedding_B"]
    return found


def flat(adapter: Adapter) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: [(part.first, part.scaling, part.a.tolist(), part.b.tolist()) for part in weights.parts]
        for name, weights in adapter.weights.items()
    }
    table = adapter.embedding
    assert table is not None and table.a is not None and table.b is not None
    return found | {"table": (table.scaling, table.a.tolist(), table.b.tolist())}


def test_a_gguf_adapter_is_that_of_peft(reader: AdapterReader, tmp_path: Path) -> None:
    peft = reader.read(str(write_adapter(tmp_path / "peft", tensors(), RANK, lora_alpha=8)))
    found = reader.read(str(write_gguf(tmp_path / "adapter.gguf", as_gguf(tensors()))))
    assert flat(found) == flat(peft)
    # q and k are parts of one product: k's columns begin behind q's.
    (qkv,) = (weights for name, weights in peft.weights.items() if "qkv" in name)
    assert [(part.first, part.scaling) for part in qkv.parts] == [(0, 2.0), (HIDDEN, 2.0)]


def test_a_pickle_is_read_as_the_file_of_safetensors_is(reader: AdapterReader, tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "first", tensors(), RANK)
    second = write_adapter(tmp_path / "second", tensors(), RANK)
    (second / "adapter_model.safetensors").unlink()
    torch.save({f"base_model.model.{key}": value for key, value in tensors().items()}, second / "adapter_model.bin")
    assert flat(reader.read(str(second))) == flat(reader.read(str(first)))


Q = "model.layers.0.self_attn.q_proj"
A, B = torch.zeros(RANK, HIDDEN), torch.zeros(HIDDEN, RANK)
PLAIN = {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B}


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({}, {"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({}, {"r": 0}, "r is not a rank"),
        ({}, {"lora_alpha": "many"}, "lora_alpha"),
        ({}, {"r": 8}, "has the rank 4, and adapter_config.json says 8"),
        ({}, {"rank_pattern": {"(": 4}}, "no regular expression"),
        ({}, {"target_parameters": "experts"}, "target_parameters is not a list of names"),
        ({}, {"target_parameters": ["self_attn.q_proj.scales"]}, "target_parameters: scales of .*q_proj is not supp"),
        ({}, {"trainable_token_indices": [1, 2]}, "trainable_token_indices is not supported"),
        ({}, {"trainable_token_indices": {"embed_tokens": [1]}}, "trainable_token_indices is not supported"),
        ({}, {"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens is not supported"),
        ({}, {"layer_replication": [[0, 4], [2, 5]]}, "layer_replication is not supported"),
        ({}, {"use_qalora": True}, "use_qalora is not supported"),
        ({}, {"kasa_config": {"beta": 1}}, "kasa_config is not supported"),
        ({}, {"context_length": 16384}, "2 times the model's 8192 positions, and of --long-lora-sc.* is none"),
        ({}, {"context_length": "long"}, "context_length is not a number of tokens"),
        ({}, {"rank_pattern": {"q_proj": 2}}, "has the rank 4, and adapter_config.json says 2"),
        ({}, {"alpha_pattern": {"q_proj": "high"}}, "the rank or lora_alpha of .*q_proj is not a number"),
        ({"score.weight": torch.ones(2, HIDDEN)}, {"modules_to_save": ["score"]}, "'.*score.weight'.* no such module"),
        ({"model.layers.99.mlp.up_proj.lora_A.weight": A}, {}, r"layers.99.* the model has no such module"),
        ({"model.norm.weight": torch.ones(HIDDEN)}, {}, "model.norm.weight.* adapters of products alone"),
        ({"model.layers.0.mlp.experts.1.up_proj.lora_A.weight": A}, {}, r"experts.1.up_proj.* no such module"),
        ({f"{Q}.lora_magnitude": torch.ones(HIDDEN)}, {}, "lora_magnitude'?: not a part of a LoRA adapter"),
        ({f"{Q}.bias": torch.ones(HIDDEN)}, {}, "q_proj.bias.* the model has no such bias"),
        ({"model.embed_tokens.weight": torch.zeros(VOCAB + 2, HIDDEN)}, {}, "adds 2 .* --lora-extra-vocab-size is 0"),
        ({f"{Q}.modules_to_save.weight": torch.zeros(HIDDEN, HIDDEN)}, {}, "modules_to_save"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_its_name(
    reader: AdapterReader, tmp_path: Path, changes: dict[str, Tensor], config: dict[str, Any], message: str
) -> None:
    path = write_adapter(tmp_path / "adapter", PLAIN | changes, **({"rank": RANK} | config))
    with pytest.raises(CheckpointError, match=message):
        reader.read(str(path))


def test_files_that_are_missing_or_damaged_are_told(reader: AdapterReader, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "adapter", PLAIN, RANK)
    (path / "adapter_model.safetensors").write_bytes(b"\xff" * 7)
    with pytest.raises(CheckpointError, match="adapter_model.safetensors"):
        reader.read(str(path))
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="there is no adapter_model.safetensors"):
        reader.read(str(path))
    (path / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        reader.read(str(path))
    with pytest.raises(CheckpointError, match="not a LoRA adapter"):
        reader.read(str(write_gguf(tmp_path / "other.gguf", as_gguf(tensors()), **{"general.type": "model"})))
    high = {name: torch.zeros(32, HIDDEN) if "_A" in name else torch.zeros(HIDDEN, 32) for name in PLAIN}
    with pytest.raises(CheckpointError, match="its rank is 32, and --max-lora-rank 16"):
        reader.read(str(write_adapter(tmp_path / "high", high, 32)))
    assert json.loads((tmp_path / "high" / "adapter_config.json").read_text())["r"] == 32
