"""Weights in every form that `--load-format` names are the same tensors; damaged and hostile files, one clear error."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from octavo.base.config.engine import shard_pattern
from octavo.base.errors import CheckpointError, InvalidConfig
from octavo.models.decoder import define
from octavo.models.directory import open_directory
from octavo.models.layout import Layout, TensorSource
from octavo.models.registry import model_spec

HEADS, KV_HEADS, DIM, HIDDEN, INNER, VOCAB = 4, 2, 8, 32, 48, 50
CONFIG = {
    "model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_size": HIDDEN, "num_hidden_layers": 2,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": DIM, "intermediate_size": INNER,
    "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "hidden_act": "silu",
    "tie_word_embeddings": False, "sliding_window": None, "torch_dtype": "float32",
}  # fmt: skip
PARAMS = {
    "dim": HIDDEN, "n_layers": 2, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "head_dim": DIM, "hidden_dim": INNER,
    "vocab_size": VOCAB, "norm_eps": 1e-5, "max_seq_len": 64, "dtype": "float32",
}  # fmt: skip


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensors = define(model_spec(dict(CONFIG), "test")).tensors
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}


WEIGHTS = weights()


def as_pt(directory: Path) -> None:
    torch.save(WEIGHTS, directory / "pytorch_model.bin")
    torch.save({"lr": 1}, directory / "training_args.bin")


def as_old_pt(directory: Path) -> None:
    torch.save(WEIGHTS, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def as_pt_shards(directory: Path) -> None:
    names = sorted(WEIGHTS)
    files = {"a.bin": names[:5], "b.bin": names[5:]}
    for file, part in files.items():
        torch.save({name: WEIGHTS[name] for name in part}, directory / file)
    placed = {name: file for file, part in files.items() for name in part}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))


def as_training_run(directory: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "step": 3}, directory / "last.pt")


def as_npcache(directory: Path) -> None:
    (directory / "np").mkdir()
    for name, tensor in WEIGHTS.items():
        with (directory / "np" / name).open("wb") as file:
            np.save(file, tensor.numpy())
    (directory / "np" / "weight_names.json").write_text(json.dumps(list(WEIGHTS)))


def as_sharded_state(directory: Path) -> None:
    fused: dict[str, Tensor] = {}
    for name, tensor in WEIGHTS.items():
        if ".k_proj." in name or ".v_proj." in name or ".up_proj." in name:
            continue
        if ".q_proj." in name:
            parts = [WEIGHTS[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            fused[name.replace("q_proj", "qkv_proj")] = torch.cat(parts)
        elif ".gate_proj." in name:
            fused[name.replace("gate_proj", "gate_up_proj")] = torch.cat([tensor, WEIGHTS[name.replace("gate", "up")]])
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            fused[name] = torch.cat([tensor, torch.zeros(64 - VOCAB, HIDDEN)])
        else:
            fused[name] = tensor
    names = sorted(fused)
    for part, held in enumerate((names[:4], names[4:])):
        file = directory / f"model-rank-0-part-{part}.safetensors"
        save_file({name: fused[name].contiguous() for name in held}, file)


def published() -> dict[str, Tensor]:
    """Under Meta's names, with the pairs of a rotation side by side."""
    renames = {
        "model.embed_tokens": "tok_embeddings", "lm_head": "output", "model.norm": "norm", "model.layers": "layers",
        "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
    }  # fmt: skip
    made = {}
    for name, tensor in WEIGHTS.items():
        if ".q_proj." in name or ".k_proj." in name:
            tensor = tensor.view(-1, 2, DIM // 2, HIDDEN).transpose(1, 2).reshape(tensor.shape).contiguous()
        for old, new in renames.items():
            name = name.replace(old, new)
        made[name] = tensor
    return made


def as_mistral(directory: Path) -> None:
    save_file(published(), directory / "consolidated.safetensors")
    (directory / "params.json").write_text(json.dumps(PARAMS))
    (directory / "config.json").unlink()


def as_meta(directory: Path) -> None:
    torch.save(published() | {"rope.freqs": torch.ones(4)}, directory / "consolidated.00.pth")
    (directory / "params.json").write_text(json.dumps({**PARAMS, "hidden_dim": None, "vocab_size": -1}))
    (directory / "config.json").unlink()


FORMS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "pt": ("pt", as_pt),
    "pt of old": ("pt", as_old_pt),
    "pt in shards": ("pt", as_pt_shards),
    "pt of a training run": ("pt", as_training_run),
    "npcache": ("npcache", as_npcache),
    "npcache not made yet": ("npcache", as_pt),
    "sharded_state": ("sharded_state", as_sharded_state),
    "mistral": ("mistral", as_mistral),
    "mistral in a pickle": ("mistral", as_meta),
    "auto: pt": ("auto", as_pt_shards),
    "auto: sharded_state": ("auto", as_sharded_state),
    "auto: mistral": ("auto", as_mistral),
    "safetensors": ("safetensors", lambda directory: save_file(WEIGHTS, directory / "model.safetensors")),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_tensors(form: str, directory: Path) -> None:
    load_format, write = FORMS[form]
    write(directory)
    checkpoint = open_directory(directory, load_format)  # type: ignore[arg-type]
    definition = define(model_spec(checkpoint.config, "test"))
    source = TensorSource(checkpoint, Layout(), definition)  # complains of missing and unexpected ones, and of shapes
    for name, tensor in definition.tensors.items():
        found = source.get(tensor)
        assert isinstance(found, Tensor) and torch.equal(found, WEIGHTS[name]), name
    assert source.num_bytes(None) == sum(tensor.nbytes for tensor in WEIGHTS.values())


def test_sharded_state_under_other_names(directory: Path) -> None:
    as_sharded_state(directory)
    for path in directory.glob("*.safetensors"):
        path.rename(directory / path.name.replace("model-rank-", "r(").replace("-part-", ")."))
    checkpoint = open_directory(directory, "sharded_state", "r({rank}).{part}.safetensors")
    assert set(checkpoint.names()) == set(WEIGHTS)
    with pytest.raises(CheckpointError, match=r"model-rank-0-part-0\.safetensors: there is no such file"):
        open_directory(directory, "sharded_state")


@pytest.mark.parametrize(
    ("settings", "load_format", "message"),
    [
        ('{"num_threads": 8}', "auto", "'num_threads'"),
        ('{"pattern": "{rank}{part}"}', "pt", "sharded_state"),
        ('{"pattern": "a"}', "sharded_state", "{rank} and {part}"),
        ("[]", "sharded_state", "JSON object"),
    ],
)
def test_settings_of_a_loader_that_nothing_reads_are_refused(settings: str, load_format: Any, message: str) -> None:
    with pytest.raises(InvalidConfig, match="--model-loader-extra-config") as caught:
        shard_pattern(settings, load_format)
    assert message in caught.value.message


# ---------------------------------------------------------------- what is wrong is one error
class Trap:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def hostile(path: Path, trap: object) -> None:
    """A file as torch writes them, with a trap among its tensors."""
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            data = source.read(member)
            target.writestr(member.filename, pickle.dumps({"a": trap}) if member.filename.endswith(".pkl") else data)


@pytest.mark.parametrize("is_archive", [True, False])
def test_no_code_of_a_pickle_is_run(is_archive: bool, directory: Path) -> None:
    witness, path = directory / "witness", directory / "pytorch_model.bin"
    if is_archive:
        hostile(path, Trap(witness))
    else:
        path.write_bytes(pickle.dumps({"a": Trap(witness)}))
    with pytest.raises(CheckpointError, match="nothing of it was run") as caught:
        open_directory(directory, "pt")
    assert str(path) in caught.value.message
    assert not witness.exists()
    pickle.loads(pickle.dumps(Trap(witness)))  # the trap works
    assert witness.exists()


def test_a_bomb_is_refused_before_it_is_unpacked(directory: Path) -> None:
    path = directory / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match=r"data\.pkl' is compressed"):
        open_directory(directory, "pt")


@pytest.mark.parametrize("form", ["pt", "pt of old", "npcache", "sharded_state", "mistral"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_named(form: str, share: float, directory: Path) -> None:
    load_format, write = FORMS[form]
    write(directory)
    files = [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".json"]
    path = max(files, key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError) as caught:
        open_directory(directory, load_format)  # type: ignore[arg-type]
    assert str(path) in caught.value.message and "\n" not in caught.value.message


def broken(write: Callable[[Path], None], change: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        write(directory)
        change(directory)

    return make


def saved(value: object) -> Callable[[Path], None]:
    return lambda directory: torch.save(value, directory / "pytorch_model.bin")


WRONG: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "nothing": ("pt", lambda directory: None, r"no weights of torch"),
    "a list": ("pt", saved([torch.ones(2)]), r"pytorch_model\.bin: it holds list"),
    "a number": ("pt", saved({"a.weight": 3}), r"'a\.weight' is of type int"),
    "integers": ("pt", saved({"a.weight": torch.ones(2, dtype=torch.int8)}), r"tensor 'a\.weight': torch\.int8"),
    "sparse": ("pt", saved({"a.weight": torch.eye(3).to_sparse()}), r"tensor 'a\.weight' is empty, sparse"),
    "a missing shard": (
        "pt", broken(as_pt_shards, lambda directory: (directory / "b.bin").unlink()), r"b\.bin: this shard is missing",
    ),
    "a shard elsewhere": (
        "pt",
        lambda directory: (directory / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../b.bin"}}'),
        r"'\.\./b\.bin' is not the name of a file beside it",
    ),
    "two devices": (
        "sharded_state",
        broken(as_sharded_state, lambda d: (d / "model-rank-1-part-0.safetensors").touch()), r"saved for 2 devices",
    ),
    "no part 0": (
        "sharded_state",
        broken(as_sharded_state, lambda d: (d / "model-rank-0-part-0.safetensors").unlink()),
        r"part-0\.safetensors: this shard is missing",
    ),
    "params without heads": (
        "mistral", broken(as_mistral, lambda d: (d / "params.json").write_text('{"dim": 8}')), r"n_heads is None",
    ),
    "an embedding without rows": (
        "mistral",
        broken(as_meta, lambda d: torch.save(
            published() | {"tok_embeddings.weight": torch.tensor(1.0)}, d / "consolidated.00.pth")),
        r"vocab_size is -1",
    ),
    "a vision tower": (
        "mistral",
        broken(as_mistral, lambda d: (d / "params.json").write_text(json.dumps({**PARAMS, "vision_encoder": [1]}))),
        r"vision_encoder is not supported",
    ),
    "objects of numpy": (
        "npcache",
        broken(as_npcache, lambda d: np.save(d / "np" / "lm_head.weight.npy", np.array([{}], dtype=object)) or (
            d / "np" / "lm_head.weight.npy").rename(d / "np" / "lm_head.weight")),
        r"lm_head\.weight: damaged",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(wrong: str, directory: Path) -> None:
    load_format, write, message = WRONG[wrong]
    write(directory)
    with pytest.raises(CheckpointError, match=message):
        checkpoint = open_directory(directory, load_format)  # type: ignore[arg-type]
        for name in checkpoint.names():
            checkpoint.get(name)


def test_a_factor_that_is_no_number_is_named(directory: Path) -> None:
    as_mistral(directory)
    params = {**PARAMS, "use_scaled_rope": True, "rope_scaling_factor": "8x"}
    (directory / "params.json").write_text(json.dumps(params))
    with pytest.raises(CheckpointError, match="factor"):
        model_spec(open_directory(directory, "mistral").config, "test")
