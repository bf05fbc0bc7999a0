"""`octavo bench kernels` calls each operation as the operation wants it, and its figures follow from the cases (K7)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from octavo import _cpu
from octavo.bench import kernels
from octavo.bench.cases import QUANTIZED, cases, make_weight
from octavo.bench.config import KernelsConfig, OpName, WeightType
from octavo.bench.limits import Limits
from octavo.cli import main
from octavo.ops.table import Ops, bind

TINY = KernelsConfig(
    weight_type=list(get_args(WeightType)), rows=[1, 3], hidden_size=64, intermediate_size=96, num_heads=4,
    num_kv_heads=2, head_dim=32, vocab_size=100, context_len=20, spread_bytes=1 << 16, passes=1, num_threads=1,
    progress=False,
)  # fmt: skip


@pytest.fixture(autouse=True)
def pool() -> Iterator[None]:
    isa, threads, torch_threads = _cpu.isa(), _cpu.num_threads(), torch.get_num_threads()
    yield
    _cpu.set_isa(isa)
    _cpu.set_num_threads(threads)
    torch.set_num_threads(torch_threads)


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    found = Limits(1, 20.0, 100.0, 400.0)
    monkeypatch.setattr(kernels, "measure_limits", lambda num_threads: found)
    return found


def test_every_operation_of_a_step_can_be_measured() -> None:
    tables = {
        "pack_experts",
        "pack_heads",
        "pack_linear",
        "pack_linear_many",
        "pack_output",
        "fixed_point",
        "pack_embedding",
        "tied_embedding",
        "kv_cache_shapes",
        "latent_cache_shape",
        "lora_bank",
    }
    composed = {
        "program_runner",
        "experts",
        "head_linear",
        "attention_planner",
    }  # the time of the others, which they are made of or called with
    small = {
        "multiply_",
        "match_rms_",
        "cut_gates_",
        "act_times",
        "altup_predict_",
        "altup_correct_",
    }  # beside a matrix
    elsewhere = {"lora_delta"}  # bench/adapters.py
    torchs = {"soft_cap_", "resolve_ids"}  # on a CPU; torch's own time
    settings = {"implementations", "penalty_counts", "activation_dtype", "torch_device", "to_device"}
    unmeasured = tables | composed | small | elsewhere | torchs | settings
    assert set(get_args(OpName)) == set(Ops.__dataclass_fields__) - unmeasured


def test_the_cases_are_calls_that_reference_and_native_operations_take() -> None:
    for ops in (bind("cpu"), bind("cpu", "reference")):
        config = replace(TINY, weight_type=["int4"])
        for case in cases(config, ops):
            for arguments in case.copies[:2]:
                getattr(ops, case.op)(*arguments)


def test_a_document_has_each_operation_with_its_shares() -> None:
    document = kernels.kernels(TINY, pass_seconds=0.0)
    rows = document["rows"]
    assert {row["op"] for row in rows} == set(get_args(OpName))
    assert len([row for row in rows if row["op"] == "linear"]) == len(TINY.weight_type) * 5 * 2
    for row in rows:
        assert row["us"] > 0 and row["by"] == "cpu"
        assert row["memory_share"] == pytest.approx(row["gb_s"] / 20, abs=0.002)
        peak = 400 if row["op"] == "linear" and row["detail"].startswith("int") else 100
        if row["gop_s"] is not None:
            assert row["peak_share"] == pytest.approx(row["gop_s"] / peak, abs=0.002)
    assert kernels.text(document).count("\n") == len(rows) + 1


def test_the_copies_of_the_weights_fill_what_is_spread() -> None:
    ops = bind("cpu")
    spread = 1 << 18
    case = next(cases(replace(TINY, op=["linear"], weight_type=["float32"], spread_bytes=spread), ops))
    weights = [arguments[2] for arguments in case.copies]
    assert len({id(weight) for weight in weights}) == len(weights) > 1
    size = weights[0].nbytes
    assert spread >= sum(weight.nbytes for weight in weights) > spread - size
    assert case.num_bytes == size + 4 * 1 * (weights[0].N + weights[0].K)
    assert case.num_ops == 2 * weights[0].N * weights[0].K


@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_weights_are_finite_and_have_whole_groups(kind: str) -> None:
    ops = bind("cpu")
    weight = make_weight(ops, kind, 48, 70)
    assert weight.K == 80 if kind == "int6" else weight.K == 96
    out = torch.full((2, weight.N), torch.nan)
    ops.linear(out, torch.randn(2, weight.K), weight)
    assert out.isfinite().all()


def test_the_command_measures_what_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--op rms_norm add_ --rows 2,4 --hidden-size 64 --passes 1 --num-threads 1 --isa portable --no-progress"
    assert main(["bench", "kernels", *words.split(), "--json", str(tmp_path / "x.json")]) == 0
    document: Any = json.loads((tmp_path / "x.json").read_text())
    assert [(r["op"], r["rows"]) for r in document["rows"]] == [
        ("rms_norm", 2), ("rms_norm", 4), ("add_", 2), ("add_", 4)
    ]  # fmt: skip
    assert document["device"] == "cpu, portable, 1 thread"
    assert capsys.readouterr().out.startswith("cpu, portable, 1 thread; at best it reads 20.0 GB/s")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--op liner", "--op must be one of linear, embedding"),
        ("--op liner", "did you mean linear?"),
        ("--rows 0", "--rows must be at least 1"),
        ("--rosw 1", "did you mean --rows?"),
        ("--num-heads 9 --num-kv-heads 2", "--num-heads (9) must be a multiple of --num-kv-heads (2)"),
        ("--head-dim 33", "--head-dim (33) must be even"),
        ("--spread-bytes 900T", "--spread-bytes asks for 921,600.0 GiB, and there are "),
        ("--isa sse9", "--isa sse9: unknown instruction-set level"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "kernels", *words.split()]) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("octavo bench kernels: error: ") and told in error
