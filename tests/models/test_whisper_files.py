"""Whisper's weights in OpenAI's pickles and in whisper.cpp's containers are those of transformers' files."""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from octavo.base.errors import CheckpointError
from octavo.models.directory import open_directory
from support.tiny_whisper import make_whisper

#: transformers' names as OpenAI has them.
THEIRS = (
    (r"^model\.", ""), (r"\.layers\.", ".blocks."), (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attn_ln."), (r"\.self_attn\.", ".attn."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."), (r"\.q_proj\.", ".query."), (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."), (r"\.out_proj\.", ".out."), (r"\.fc1\.", ".mlp.0."), (r"\.fc2\.", ".mlp.2."),
    (r"\.final_layer_norm\.", ".mlp_ln."), (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."), (r"\.embed_positions\.weight$", ".positional_embedding"),
    (r"\.embed_tokens\.", ".token_embedding."),
)  # fmt: skip


def their_name(name: str) -> str:
    for pattern, replacement in THEIRS:
        name = re.sub(pattern, replacement, name)
    return name


def write_pickle(target: Path, tensors: dict[str, torch.Tensor]) -> None:
    torch.save({"dims": {"n_mels": 8}, "model_state_dict": tensors}, target / "tiny.pt")


def write_ggml(target: Path, tensors: dict[str, torch.Tensor]) -> None:
    data = b"lmgg" + struct.pack("<11i", *range(11)) + struct.pack("<2i", 2, 3) + bytes(4 * 6)
    data += struct.pack("<i", 2) + struct.pack("<i", 1) + b"a" + struct.pack("<i", 0)
    for name, tensor in tensors.items():
        if re.search(r"conv\d\.bias", name):
            tensor = tensor[:, None]
        kind = int(tensor.dtype == torch.float16)
        data += struct.pack("<3i", tensor.ndim, len(name), kind) + struct.pack(f"<{tensor.ndim}i", *tensor.shape[::-1])
        data += name.encode() + tensor.numpy().tobytes()
    (target / "ggml-tiny.bin").write_bytes(data)


@pytest.mark.parametrize("write", [write_pickle, write_ggml])
def test_weights_are_those_of_transformers(
    tmp_path: Path, write: Callable[[Path, dict[str, torch.Tensor]], None]
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    model = make_whisper(ours)
    wanted = {name: each for name, each in model.state_dict().items() if name != "proj_out.weight"}
    theirs.mkdir()
    shutil.copy(ours / "config.json", theirs)
    halves = {name for name in wanted if "fc1" in name}
    write(theirs, {their_name(name): each.half() if name in halves else each for name, each in wanted.items()})
    found = open_directory(theirs, "auto")
    assert set(found.names()) == set(wanted) == set(open_directory(ours, "auto").names())
    for name, tensor in wanted.items():
        expected = tensor.half() if name in halves else tensor
        assert found.shape(name) == tuple(tensor.shape) and torch.equal(found.get(name), expected)


def test_damaged_containers_are_told(tmp_path: Path) -> None:
    model = make_whisper(tmp_path / "ours")
    target = tmp_path / "theirs"
    target.mkdir()
    shutil.copy(tmp_path / "ours" / "config.json", target)
    write_ggml(target, {"decoder.ln.weight": model.state_dict()["model.decoder.layer_norm.weight"]})
    whole = (target / "ggml-tiny.bin").read_bytes()
    at = whole.index(b"decoder.ln.weight")
    quantized = whole[: at - 8] + struct.pack("<i", 8) + whole[at - 4 :]
    for data, message in (
        (whole[:-1], "'decoder.ln.weight' passes the end"),
        (whole[:50], "it ends within"),
        (whole + bytes(12), "no tensor stands"),
        (quantized, "is quantized"),
    ):
        (target / "ggml-tiny.bin").write_bytes(data)
        with pytest.raises(CheckpointError, match=message):
            open_directory(target, "auto")
