"""Files of tensorizer are the tensors that were saved; what is wrong with one is told, with its name."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.running import load, prompt_logits
from models.test_quantized import IDS, LLAMA, plain
from octavo.base.config import ModelConfig
from octavo.base.config.engine import tensorizer_settings
from octavo.base.errors import CheckpointError, InvalidConfig
from octavo.files.sources import resolve
from octavo.models.tensorizer_file import TensorizerFile
from octavo.ops.table import bind
from support.file_server import file_server

pytestmark = pytest.mark.usefixtures("one_torch_thread")

NUMPY = {torch.float32: "<f4", torch.float16: "<f2", torch.int8: "|i1", torch.bfloat16: "<V2\0torch.bfloat16"}
TENSORS = {
    "a": torch.arange(6.0).view(2, 3), "b.c": torch.tensor([1.5, -2.0]).bfloat16(), "d": torch.ones(3).to(torch.int8),
    "e": torch.tensor(2.0).half(),
}  # fmt: skip


def counted(form: str, data: bytes) -> bytes:
    return struct.pack(form, len(data)) + data


def tensorized(
    tensors: dict[str, Tensor], version: int = 5, flags: int = 2, kinds: dict[str, int] | None = None
) -> bytes:
    """As tensorizer 2 writes them. `flags`: 1 encrypted, 2 a version for each entry. Kinds: 1, buffers."""
    entries, placed = b"", []
    sizes = "<Q" if flags & 2 and version >= 5 else "<I"
    for name, tensor in tensors.items():
        shape = struct.pack("<B", tensor.dim()) + b"".join(struct.pack(sizes, size) for size in tensor.shape)
        kind = struct.pack("<B", (kinds or {}).get(name, 0))
        described = counted("<B", NUMPY[tensor.dtype].encode()) + shape
        data = tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.dim() else tensor.numpy().tobytes()
        own = struct.pack("<I", version) if flags & 2 else b""
        entries += own + counted("<H", name.encode()) + kind + described + bytes(24)
        placed.append((len(entries) - 24, counted("<H", name.encode()), kind, described, data))
    at = 65 + 8 + len(entries)
    index, body = bytearray(entries), b""
    for where, name_, kind, described, data in placed:
        header = headed(name_, kind, described, data)
        struct.pack_into("<QQQ", index, where, at, at + len(header), len(data))
        body += header + data
        at += len(header) + len(data)
    head = b"|TZR|" + struct.pack("<I", version) + flags.to_bytes(32, "little")
    return head + struct.pack("<Q8xQQ", at, len(tensors), len(index)) + bytes(index) + body


def headed(name: bytes, kind: bytes, described: bytes, data: bytes) -> bytes:
    def made(crc: bytes, sha: bytes) -> bytes:
        hashes = b"\2" + b"\0\4" + crc + b"\1\x20" + sha
        rest = struct.pack("<H", 0) + kind + name + described + counted("<H", hashes) + struct.pack("<q", len(data))
        return struct.pack("<Q", len(rest) + 8) + rest

    bare = made(bytes(4), bytes(32))
    return made(struct.pack("<I", zlib.crc32(data, zlib.crc32(bare))), hashlib.sha256(bare + data).digest())


@pytest.mark.parametrize(("version", "flags"), [(1, 0), (2, 0), (4, 0), (5, 2)])
@pytest.mark.parametrize("verify", [True, False])
def test_tensors_are_those_that_were_saved(version: int, flags: int, verify: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.tensors"
    path.write_bytes(tensorized(TENSORS, version, flags))
    file = TensorizerFile(path, verify)
    assert file.names() == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert (file.shape(name), file.dtype(name)) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(file.get(name), tensor)


def test_tables_of_rotations_are_no_weights(tmp_path: Path) -> None:
    name = "model.rotary_emb.original_inv_freq"
    (tmp_path / "model.tensors").write_bytes(tensorized({**TENSORS, name: torch.ones(2)}, kinds={name: 1}))
    assert TensorizerFile(tmp_path / "model.tensors").names() == list(TENSORS)


@pytest.mark.parametrize("place", [-1, -70, 200])
def test_a_byte_that_changed_is_found_by_its_hash(place: int, tmp_path: Path) -> None:
    data = bytearray(tensorized({"a": torch.arange(64.0)}))
    data[place] ^= 1
    (tmp_path / "x.tensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.tensors: .*tensor 'a' are not those of their hash"):
        TensorizerFile(tmp_path / "x.tensors", verify_hash=True).get("a")


def test_a_tensor_without_a_hash_is_not_taken_as_one_that_was_compared(tmp_path: Path) -> None:
    data = tensorized({"a": torch.arange(64.0)})
    (tmp_path / "x.tensors").write_bytes(data.replace(b"\x29\0\2\0\4", b"\x29\0\0\0\4", 1))
    assert TensorizerFile(tmp_path / "x.tensors").get("a")[3] == 3
    with pytest.raises(CheckpointError, match=r"x\.tensors: .*tensor 'a' has no hash that could be compared"):
        TensorizerFile(tmp_path / "x.tensors", verify_hash=True).get("a")


def whole() -> bytes:
    return tensorized(TENSORS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "the file is empty"),
        (lambda: b"|TZR", "not a file of tensorizer"),
        (lambda: b"PK" + whole()[2:], "not a file of tensorizer"),
        (lambda: whole()[:-1], "tensor 'e' ends at byte .*truncated"),
        (lambda: whole()[:100], "an index of .* does not fit"),
        (lambda: whole()[:5] + b"\x09" + whole()[6:], "version 9 of tensorizer's format is not supported"),
        (lambda: tensorized(TENSORS, 5, 3), "its tensors are encrypted"),
        (lambda: tensorized(TENSORS, 3, 0), "its tensors are encrypted"),
        (lambda: whole().replace(b"<f4", b"<c8", 1), "tensor 'a': the type '<c8' is not supported"),
        (lambda: whole().replace(b"<f4", b"<f8", 1), r"tensor 'a' of \[2, 3\] <f8 holds 24 bytes"),
        (lambda: whole().replace(b"\x04\0\0\0\0\0\0\0", b"\xff\xff\0\0\0\0\0\0", 1), "index of tensors is cut off"),
    ],
)
def test_what_is_wrong_is_told(make: Callable[[], bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.tensors"
    path.write_bytes(make())
    with pytest.raises(CheckpointError, match=message) as caught:
        TensorizerFile(path)
    assert str(path) in caught.value.message


# ---------------------------------------------------------------- models
def fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Under vLLM's names."""
    made = dict(tensors)
    for block, joined, parts in (("self_attn", "qkv", "qkv"), ("mlp", "gate_up", ("gate", "up"))):
        for layer in range(LLAMA["num_hidden_layers"]):
            prefix = f"model.layers.{layer}.{block}."
            made[f"{prefix}{joined}_proj.weight"] = torch.cat([made.pop(f"{prefix}{p}_proj.weight") for p in parts])
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import load_file

    path = plain(tmp_path_factory.mktemp("m") / "model", LLAMA)
    tensors = load_file(path / "model.safetensors")
    (path / "vllm").mkdir()
    (path / "model.tensors").write_bytes(tensorized(tensors))
    (path / "vllm" / "model.tensors").write_bytes(tensorized(fused(tensors)))
    return path


@pytest.mark.parametrize("kind", ["own", "uri", "dir"])
def test_a_model_is_the_same_from_either_kind_of_file(kind: str, model: Path) -> None:
    ops = bind("cpu", "reference")
    where = {"uri": {"tensorizer_uri": f"{model}/vllm/model.tensors"}, "dir": {"tensorizer_dir": f"{model}/vllm/"}}
    settings = None if kind == "own" else {**where[kind], "vllm_tensorized": True, "verify_hash": True}
    extra = None if settings is None else json.dumps(settings)
    loaded = load(model, ops, load_format="tensorizer", model_loader_extra_config=extra)
    expected = prompt_logits(load(model, ops), ops, [IDS])[0]
    assert torch.equal(prompt_logits(loaded, ops, [IDS])[0], expected)


def test_a_file_on_a_server_is_fetched(model: Path, tmp_path: Path) -> None:
    data = (model / "model.tensors").read_bytes()
    with file_server() as server:
        server.files["/x/model.tensors"] = data
        settings = {"tensorizer_uri": server.url("/x/model.tensors"), "verify_hash": True}
        config = ModelConfig(
            model=str(model),
            load_format="tensorizer",
            model_loader_extra_config=json.dumps(settings),
            download_dir=str(tmp_path),
        )
        resolved = tensorizer_settings(resolve(config).model_loader_extra_config)
    assert resolved.uri is not None and Path(resolved.uri).is_relative_to(tmp_path)
    assert Path(resolved.uri).read_bytes() == data
    assert resolved.verify_hash and not resolved.vllm_tensorized


def test_a_directory_without_such_a_file_says_so(tmp_path: Path) -> None:
    path = plain(tmp_path / "plain", LLAMA)
    with pytest.raises(
        CheckpointError, match=r"neither model\.tensors nor one \*\.tensors file is there \(there is none"
    ):
        load(path, bind("cpu", "reference"), load_format="tensorizer")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_readers": 4}, "no setting 'num_readers': octavo maps the file into memory"),
        ({"s3_endpoint": "x"}, "no setting 's3_endpoint': set AWS_ENDPOINT_URL"),
        ({"encryption_keyfile": "x"}, "octavo does not read encrypted tensors"),
        ({"tensorizer_uri": 3}, "tensorizer_uri must be a text"),
        ({"verify_hash": "yes"}, "verify_hash must be true or false"),
        ({"tensorizer_uri": "a", "tensorizer_dir": "b"}, "give one of them"),
        ({"tensorizer_uri": "m-%03d.tensors"}, "a file for each of several devices"),
    ],
)
def test_settings_that_nothing_reads_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        tensorizer_settings(json.dumps(settings))
