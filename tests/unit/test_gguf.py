"""A GGUF file is read exactly, or refused with one error that names what is wrong."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.base.errors import CheckpointError
from octavo.files.gguf import TENSOR_TYPES, GGUFFile

U32, I32, F32, BOOL, STRING, ARRAY, U64, F64 = 4, 5, 6, 7, 8, 9, 10, 12
TYPE_IDS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def strings(*values: str | bytes) -> bytes:
    return struct.pack("<IQ", STRING, len(values)) + b"".join(map(text, values))


def tensor(name: str | bytes, dims: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def build(
    metadata: list[bytes], tensors: list[bytes], data: bytes = b"", *, version: int = 3, counts: Any = None
) -> bytes:
    num_tensors, num_metadata = counts or (len(tensors), len(metadata))
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_metadata) + b"".join(metadata + tensors)
    return head + bytes(-len(head) % 32) + data


GOOD_METADATA = [
    entry("general.architecture", STRING, text("llama")),
    entry("a.count", U32, struct.pack("<I", 7)),
    entry("a.ratio", F64, struct.pack("<d", 0.1)),
    entry("a.flag", BOOL, b"\x01"),
    entry("a.tokens", ARRAY, strings("<s>", "é", b"\xff\xfe", "")),
    entry("a.scores", ARRAY, struct.pack("<IQ3f", F32, 3, 1.0, -2.5, 0.0)),
    entry("a.nested", ARRAY, struct.pack("<IQ", ARRAY, 2) + strings("x") + struct.pack("<IQ2i", I32, 2, -1, 5)),
]
GOOD_TENSORS = [tensor("first", [32, 2], TYPE_IDS["Q8_0"], 0), tensor("second", [3, 2], TYPE_IDS["F32"], 96)]
DATA = bytes(range(120))
GOOD = build(GOOD_METADATA, GOOD_TENSORS, DATA)


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return path


def test_metadata_and_tensors_come_back_as_written(tmp_path: Path) -> None:
    with GGUFFile(write(tmp_path, GOOD)) as file:
        assert file.metadata == {
            "general.architecture": "llama",
            "a.count": 7,
            "a.ratio": 0.1,
            "a.flag": True,
            "a.tokens": ["<s>", "é", "\ufffd\ufffd", ""],
            "a.scores": [1.0, -2.5, 0.0],
            "a.nested": [["x"], [-1, 5]],
        }
        first, second = file.tensors.values()
        assert (first.name, first.shape, first.type_name, first.nbytes) == ("first", (2, 32), "Q8_0", 68)
        assert (second.name, second.shape, second.type_name, second.nbytes) == ("second", (2, 3), "F32", 24)
        assert bytes(file.data(first)) == DATA[:68]
        assert bytes(file.data(second)) == DATA[96:120]


def test_the_alignment_of_the_file_counts(tmp_path: Path) -> None:
    metadata = [entry("general.alignment", U32, struct.pack("<I", 8))]
    content = build(metadata, [tensor("t", [8], TYPE_IDS["I8"], 8)], bytes(16))
    with GGUFFile(write(tmp_path, content)) as file:
        assert file.tensors["t"].offset % 8 == 0


def test_closing_while_a_view_lives_is_safe(tmp_path: Path) -> None:
    file = GGUFFile(write(tmp_path, GOOD))
    view = file.data(file.tensors["first"])
    file.close()
    assert bytes(view[:3]) == b"\x00\x01\x02"


def test_the_real_tokenizer_is_read(smollm2_gguf: Path) -> None:
    with GGUFFile(smollm2_gguf) as file:
        assert len(file.metadata["tokenizer.ggml.tokens"]) == 49152
        assert file.tensors["token_embd.weight"].shape == (49152, 576)
        assert sum(info.nbytes for info in file.tensors.values()) < smollm2_gguf.stat().st_size


HUGE = 2**64 - 1
Q8 = TYPE_IDS["Q8_0"]
DAMAGED: dict[str, tuple[bytes, str]] = {
    "magic": (b"GGML" + GOOD[4:], "magic"),
    "empty": (b"", "empty"),
    "one byte": (b"G", "magic"),
    "version": (build([], [], version=1), "version 1"),
    "big-endian": (build([], [], version=0x03000000), "big-endian"),
    "tensor count": (build([], [], counts=(HUGE, 0)), "tensors do not fit"),
    "metadata count": (build([], [], counts=(0, 2**40)), "metadata entries do not fit"),
    "key length": (build([struct.pack("<Q", HUGE) + b"abcdefghijkl"], []), "entry 0"),
    "key utf-8": (build([entry(b"\xff", U32, bytes(4))], []), "not UTF-8"),
    "duplicate key": (build([entry("k", U32, bytes(4))] * 2, []), "'k' occurs twice"),
    "value type": (build([entry("k", 99, bytes(8))], []), "'k': unknown value type 99"),
    "string length": (build([entry("k", STRING, struct.pack("<Q", 2**62))], []), "'k': a string of"),
    "string count": (build([entry("k", ARRAY, struct.pack("<IQ", STRING, 2**61))], []), "'k'.*do not fit"),
    "array count": (build([entry("k", ARRAY, struct.pack("<IQ", U64, 2**62))], []), "'k'.*do not fit"),
    "element type": (build([entry("k", ARRAY, struct.pack("<IQ", 77, 1))], []), "'k': unknown element type 77"),
    "deep arrays": (build([entry("k", ARRAY, struct.pack("<IQ", ARRAY, 1) * 9 + bytes(99))], []), "'k'.*nested"),
    "alignment": (build([entry("general.alignment", U32, struct.pack("<I", 24))], []), "alignment is 24"),
    "alignment zero": (build([entry("general.alignment", U32, bytes(4))], []), "alignment is 0"),
    "duplicate tensor": (build([], [tensor("t", [32], Q8, 0)] * 2, bytes(64)), "'t' occurs twice"),
    "dimensions": (build([], [tensor("t", [32] * 5, Q8, 0)], bytes(99)), "'t': 5 dimensions"),
    "no dimensions": (build([], [tensor("t", [], Q8, 0)], bytes(99)), "'t': 0 dimensions"),
    "zero dimension": (build([], [tensor("t", [32, 0], Q8, 0)], bytes(99)), "'t'.*zero"),
    "huge dimension": (build([], [tensor("t", [2**63, 2**63], 0, 0)], bytes(99)), "'t'.*pass the end"),
    "tensor type": (build([], [tensor("t", [32], 4, 0)], bytes(99)), "'t': unknown type 4"),
    "ragged rows": (build([], [tensor("t", [33], Q8, 0)], bytes(99)), "'t'.*33 values.*Q8_0"),
    "offset alignment": (build([], [tensor("t", [32], Q8, 4)], bytes(99)), "'t': offset 4"),
    "offset": (build([], [tensor("t", [32], Q8, 2**63)], bytes(99)), "'t'.*pass the end"),
    "overlap": (
        build([], [tensor("t", [32, 2], Q8, 0), tensor("u", [32], Q8, 32)], bytes(128)),
        "'t' and 'u' overlap",
    ),
    "last byte missing": (GOOD[:-1], "'second'.*pass the end"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_one_error_that_names_file_and_place(case: str, tmp_path: Path) -> None:
    content, message = DAMAGED[case]
    path = write(tmp_path, content)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=message) as error:
        GGUFFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in error.value.message
    assert peak < 1_000_000


def read_or_refuse(path: Path) -> None:
    try:
        with GGUFFile(path) as file:
            assert all(len(file.data(info)) == info.nbytes for info in file.tensors.values())
    except CheckpointError as error:
        assert str(path) in error.message


def test_every_cut_is_refused(tmp_path: Path) -> None:
    for length in range(len(GOOD)):
        with pytest.raises(CheckpointError):
            GGUFFile(write(tmp_path, GOOD[:length]))


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_are_read_or_refused(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    flips: list[Callable[[], int]] = [lambda: rng.randrange(256), lambda: 0, lambda: 255]
    for _ in range(300):
        content = bytearray(GOOD)
        for _ in range(rng.randrange(1, 4)):
            content[rng.randrange(len(GOOD) - len(DATA))] = rng.choice(flips)()
        read_or_refuse(write(tmp_path, bytes(content)))


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(CheckpointError, match=str(path)):
            GGUFFile(path)
