"""Every operation, as bound for the CPU and at every instruction-set level, against the reference.

The reference says what an operation means; the tolerances say how far float32 arithmetic in another order may be
from it. The laws on batch company, chunking and threads ask for equal bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo import _cpu
from octavo.ops.operands import KeyBlocks
from octavo.ops.routing import Routing
from octavo.ops.table import Ops, bind
from support.tensors import randn

REFERENCE = bind("cpu", "reference")
NATIVE = bind("cpu")


def test_every_step_operation_is_native() -> None:
    slow = {name for name, by in NATIVE.implementations.items() if by == "reference"}
    assert not slow
    assert set(REFERENCE.implementations.values()) == {"reference"}


@dataclass(frozen=True)
class Case:
    """Tensors of one call; `run` must leave its results in `outputs`."""

    name: str
    args: dict[str, Any]
    outputs: tuple[str, ...]
    tolerance: float = 1e-5

    def run(self, ops: Ops) -> list[Tensor]:
        args = {key: value.clone() if isinstance(value, Tensor) else value for key, value in self.args.items()}
        getattr(ops, self.name)(**args)
        return [args[key] for key in self.outputs]


def _elementwise_cases() -> Iterator[Case]:
    for rows, width in ((1, 5), (3, 64), (7, 577), (40, 1000)):
        x, w, out = randn(rows, width), randn(width), torch.full((rows, width), torch.nan)
        residual = randn(rows, width, seed=1)
        yield Case("rms_norm", {"out": out, "x": x, "weight": w, "eps": 1e-5}, ("out",))
        args = {"out": out, "residual": residual, "x": x, "weight": w, "eps": 1e-6}
        yield Case("add_rms_norm", args, ("out", "residual"))
        yield Case("add_", {"residual": residual, "x": x}, ("residual",))
        for bias in (None, randn(width, seed=3)):
            args = {"out": out, "x": x + 3, "weight": w, "bias": bias, "eps": 1e-5}
            yield Case("layer_norm", args, ("out",), 2e-5)
            yield Case("add_layer_norm", {**args, "residual": residual}, ("out", "residual"), 2e-5)
        args = {"residual": residual, "x": x, "gates": randn(rows, 1) * 5}
        yield Case("add_gated_", args, ("residual",))
        gate_up = randn(rows, 2 * width) * 20
        yield Case("act_mul", {"out": out, "gate_up": gate_up, "kind": "swiglu_oai"}, ("out",), 1e-4)
        yield Case("act_mul", {"out": out, "gate_up": 3 * gate_up, "kind": "gegelu"}, ("out",), 1e-4)
        for kind in ("silu", "gelu_tanh", "gelu", "relu", "quick_gelu", "relu2"):
            gate_up = randn(rows, 2 * width) * 20
            yield Case("act_mul", {"out": out, "gate_up": gate_up, "kind": kind}, ("out",), 1e-4)
            yield Case("act", {"out": out, "x": x * 4, "kind": kind}, ("out",), 2e-6)
        for kind in ("sigmoid", "silu"):
            yield Case("gate_", {"x": x, "gates": residual * 5, "kind": kind}, ("x",))
        yield Case("clip_", {"x": x * 3, "limit": 2.5}, ("x",))
        for scale, slopes in ((4.0, (0.8, -0.3)), (0.01, (25.0, 3.0))):
            args = {"out": out, "x": x * scale, "kind": "xielu", "parameters": torch.tensor(slopes)}
            yield Case("act", args, ("out",), 2e-6)
        yield from _route_cases(rows, width)


def _route_cases(rows: int, width: int) -> Iterator[Case]:
    # Rounded, so that some are equal.
    scores, bias = (randn(rows, width) * 2).round() / 2, randn(width).round() / 4
    routings = [
        (Routing(renormalize=False), 1, None),
        (Routing(), 2, None),
        (Routing(renormalize=False), min(4, width), None),
        (Routing(), 3, bias),
        (Routing(kind="sigmoid", factor=2.5), 3, bias),
        (Routing(kind="sigmoid", renormalize=False), 1, None),
        (Routing(kind="sparsemixer", jitter=0.2), 2, None),
    ]
    if width % 8 == 0:
        routings += [
            (Routing(renormalize=False, num_groups=8, top_groups=3), 3, None),
            (Routing(kind="sigmoid", num_groups=4, top_groups=2, group_best=2, factor=2.5), 4, bias),
        ]
    for routing, top_k, added in routings:
        ids, weights = torch.zeros(rows, top_k, dtype=torch.int32), torch.full((rows, top_k), torch.nan)
        args = {"ids": ids, "weights": weights, "scores": scores, "routing": routing, "bias": added}
        yield Case("route", args, ("ids", "weights"))


def _norm_parts_cases() -> Iterator[Case]:
    for rows, first, count, width in ((3, 0, 1, 577), (7, 20, 4, 20), (40, 64, 3, 64)):
        x = randn(rows, first + count * width + 12) + 1
        for own, kind in ((1, "rms"), (count, "rms"), (1, "layer"), (count, "layer")):
            for bias in (None, randn(own * width, seed=3)) if kind == "layer" else (None,):
                args = {"x": x, "first": first, "count": count, "width": width, "weight": randn(own * width)}
                yield Case("norm_parts_", {**args, "bias": bias, "eps": 1e-5, "kind": kind}, ("x",), 2e-5)


HEADS = ((9, 3, 64), (4, 4, 80), (8, 1, 96), (14, 2, 128), (2, 1, 256), (3, 3, 20))


def _rope_cases() -> Iterator[Case]:
    for (hq, hkv, d), dtype, block_size in zip(
        HEADS, (torch.float32, torch.bfloat16, torch.float16) * 2, (16, 32, 48) * 2, strict=True
    ):
        rows = 37
        k_shape, v_shape = REFERENCE.kv_cache_shapes(6, block_size, hkv, d)
        slots = torch.randperm(6 * block_size, generator=torch.Generator().manual_seed(d))[:rows]
        angles = torch.arange(64.0)[:, None] * torch.logspace(0, -3, d // 2)[None, :]
        args = {
            "qkv": randn(rows, (hq + 2 * hkv) * d),
            "positions": torch.arange(rows, dtype=torch.int32) + 7,
            "cos_sin": torch.cat((angles.cos(), angles.sin()), dim=1),
            "q_norm": randn(d) if d % 3 else None,
            "k_norm": randn(d, seed=2) if d % 3 else None,
            "eps": 1e-6,
            "k_cache": torch.zeros(k_shape, dtype=dtype),
            "v_cache": torch.zeros(v_shape, dtype=dtype),
            "slot_mapping": slots,
            "num_heads": hq,
            "num_kv_heads": hkv,
            "head_dim": d,
        }
        # A value that rounds to the other neighbour is off by one unit of the cache's type.
        yield Case("rope_kv_write", args, ("qkv",))
        yield Case("rope_kv_write", {**args, "cos_sin": None}, ("qkv",))
        late = {"norms_rotated": True, "q_scales": torch.linspace(1, 2, 64)[:, None]}
        yield Case("rope_kv_write", {**args, **late}, ("qkv",))
        yield Case("rope_kv_write", args, ("k_cache", "v_cache"), {4: 1e-5, 2: 1e-2}[dtype.itemsize])


def _attention_case(
    seqs: Sequence[tuple[int, int]],
    heads: tuple[int, int, int],
    dtype: torch.dtype = torch.float32,
    block_size: int = 16,
    window: int = 0,
    softcap: float = 0.0,
    slopes: bool = False,
    reach: int = -1,
    sinks: bool = False,
    chunked: bool = False,
    causal: bool = True,
    span: int = 0,
    seen: KeyBlocks | None = None,
) -> Case:
    """seqs: (context length, tokens of this step). All that no sequence may read is NaN. span: each so many tokens see
    each other. seen: the blocks of keys that a head sees. reach: of biases by distance; -1: there are none."""
    hq, hkv, d = heads
    needed = [-(-context // block_size) for context, _ in seqs]
    num_blocks = sum(needed) + 2
    k_shape, v_shape = REFERENCE.kv_cache_shapes(num_blocks, block_size, hkv, d)
    k_cache, v_cache = torch.full(k_shape, torch.nan, dtype=dtype), torch.full(v_shape, torch.nan, dtype=dtype)
    free = (torch.randperm(num_blocks - 1, generator=torch.Generator().manual_seed(7)) + 1).tolist()
    tables = torch.zeros(len(seqs), max(needed) + 1, dtype=torch.int32)
    for i, (context, _) in enumerate(seqs):
        blocks = [free.pop() for _ in range(needed[i])]
        tables[i, : needed[i]] = torch.tensor(blocks)
        for position in range(context):
            block, offset = blocks[position // block_size], position % block_size
            k_cache[block, :, offset // 16, :, offset % 16] = randn(hkv, d, seed=position).to(dtype)
            v_cache[block, :, offset, :d] = randn(hkv, d, seed=-position).to(dtype)
            v_cache[block, :, offset, d:] = 0
    lengths = torch.tensor([tokens for _, tokens in seqs])
    args = {
        "out": torch.full((int(lengths.sum()), hq * d), torch.nan),
        "qkv": randn(int(lengths.sum()), (hq + 2 * hkv) * d) * 2,
        "k_cache": k_cache,
        "v_cache": v_cache,
        "block_tables": tables,
        "seq_lens": torch.tensor([context for context, _ in seqs], dtype=torch.int32),
        "query_start_loc": torch.cat((torch.zeros(1), lengths.cumsum(0))).to(torch.int32),
        "num_heads": hq,
        "num_kv_heads": hkv,
        "head_dim": d,
        "scale": d**-0.5,
        "window": window,
        "softcap": softcap,
        "slopes": 2.0 ** -torch.arange(1.0, hq + 1) if slopes else None,
        "biases": 2 * randn(hq, 2 * reach + 1) if reach >= 0 else None,
        "chunked": chunked,
        # Some weigh next to nothing, some nearly all.
        "sinks": 4 * randn(hq) if sinks else None,
        "causal": causal,
        "key_ends": _ends_of_spans(seqs, span) if span else None,
        "blocks": seen,
    }
    return Case("attention", args, ("out",), 2e-5)


def _ends_of_spans(seqs: Sequence[tuple[int, int]], span: int) -> Tensor:
    """int32 [T]: positions are cut into spans, whose tokens see the whole of theirs, and all before it."""
    ends = [
        min((position // span + 1) * span, context)
        for context, tokens in seqs
        for position in range(context - tokens, context)
    ]
    return torch.tensor(ends, dtype=torch.int32)


#: Blocks of half a chunk, of less and of more; with a stride that leaves heads without any block but the local ones.
BLOCKS = (
    KeyBlocks(size=64, local=2, stride=4, step=1), KeyBlocks(size=16, local=1, stride=5, step=0),
    KeyBlocks(size=144, local=1, stride=3, step=2), KeyBlocks(size=32, local=3, stride=100, step=12),
)  # fmt: skip


def _attention_cases() -> Iterator[Case]:
    mixed = ((1, 1), (130, 1), (40, 40), (300, 33), (17, 2), (129, 129))
    for heads in HEADS:
        yield _attention_case(mixed, heads)
    yield _attention_case(((400, 1),), (9, 3, 64), torch.bfloat16, 32)
    yield _attention_case(mixed, (9, 3, 64), torch.bfloat16, 32)
    yield _attention_case(mixed, (32, 8, 64), torch.float16, 48)
    yield _attention_case(mixed, (4, 1, 64), window=50)
    yield _attention_case(((600, 1), (600, 40)), (4, 1, 64), torch.bfloat16, window=128, softcap=20.0)
    yield _attention_case(mixed, (8, 2, 32), softcap=5.0)
    yield _attention_case(mixed, (8, 2, 32), slopes=True)
    yield _attention_case(mixed, (6, 6, 64), torch.bfloat16, 32, slopes=True)
    yield _attention_case(mixed, (8, 2, 32), sinks=True)
    for window in (1, 24, 200):
        yield _attention_case(mixed, (4, 2, 32), window=window, chunked=True)
    yield _attention_case(mixed, (6, 1, 64), torch.bfloat16, 32, window=20, sinks=True)
    # More queries than keys, too, as of a decoder that looks at a short text of an encoder.
    many = (*mixed, (3, 40), (130, 200), (1, 2))
    yield _attention_case(many, (6, 6, 64), causal=False)
    yield _attention_case(many, (9, 3, 64), torch.bfloat16, 32, causal=False, softcap=5.0, sinks=True)
    for window in (1, 20, 140):
        yield _attention_case(mixed, (4, 2, 32), window=window, causal=False)
    yield _attention_case(mixed, (6, 1, 64), torch.bfloat16, 32, window=70, causal=False)
    yield _attention_case(mixed, (8, 2, 32), slopes=True, causal=False)
    for reach in (0, 9, 200):
        yield _attention_case(mixed, (6, 2, 32), reach=reach, causal=False)
    yield _attention_case(mixed, (4, 4, 32), reach=50, window=40)
    for span in (7, 150):
        yield _attention_case(mixed, (4, 2, 32), span=span)
    yield _attention_case(mixed, (6, 1, 64), torch.bfloat16, 32, window=20, span=16)
    yield _attention_case(mixed, (4, 4, 32), slopes=True, span=16)
    for blocks in BLOCKS:
        yield _attention_case((*mixed, (700, 1), (700, 60)), (8, 2, 32), seen=blocks)
    yield _attention_case(((700, 1), (700, 60)), (6, 1, 64), torch.bfloat16, 32, sinks=True, seen=BLOCKS[0])
    yield _attention_case(mixed, (4, 4, 32), slopes=True, seen=BLOCKS[1])


CASES = [*_elementwise_cases(), *_norm_parts_cases(), *_rope_cases(), *_attention_cases()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operation_agrees_with_the_reference(isa: str, case: Case) -> None:
    for got, wanted in zip(case.run(NATIVE), case.run(REFERENCE), strict=True):
        assert torch.isfinite(wanted).all()
        torch.testing.assert_close(got, wanted, rtol=case.tolerance, atol=case.tolerance)


# ---- equal bits ----

MODES = {
    "gqa": _attention_case(((700, 700),), (9, 3, 64), torch.bfloat16, 32),
    "wide": _attention_case(((300, 300),), (8, 1, 128)),
    "window": _attention_case(((500, 500),), (4, 2, 64), torch.float16, window=100),
    "capped": _attention_case(((300, 300),), (4, 4, 80), softcap=10.0),
    "slopes": _attention_case(((300, 300),), (8, 2, 32), slopes=True),
    "sinks": _attention_case(((300, 300),), (8, 2, 32), sinks=True),
    "chunked": _attention_case(((300, 300),), (8, 2, 32), window=70, chunked=True),
    "blocks": _attention_case(((700, 700),), (8, 2, 32), torch.bfloat16, 32, seen=BLOCKS[0]),
    "rare blocks": _attention_case(((600, 600),), (6, 6, 32), seen=BLOCKS[3]),
}


def _attend(case: Case, steps: Sequence[tuple[int, int]]) -> Tensor:
    """The outputs of tokens begin .. end for each step, all steps in one batch, as if they were sequences."""
    args = case.args
    rows = torch.cat([torch.arange(begin, end) for begin, end in steps])
    starts = torch.tensor([0] + [end - begin for begin, end in steps]).cumsum(0)
    changed = {
        "out": torch.full((len(rows), args["out"].shape[1]), torch.nan),
        "qkv": args["qkv"][rows].contiguous(),
        "block_tables": args["block_tables"].repeat(len(steps), 1),
        "seq_lens": torch.tensor([end for _, end in steps], dtype=torch.int32),
        "query_start_loc": starts.to(torch.int32),
    }
    return replace(case, args=args | changed).run(NATIVE)[0]


@pytest.mark.parametrize("mode", MODES)
def test_attention_has_the_same_bits_in_any_company(isa: str, mode: str) -> None:
    case = MODES[mode]
    length = len(case.args["qkv"])
    whole = _attend(case, [(0, length)])
    for threads in (1, 2, 3):
        _cpu.set_num_threads(threads)
        assert torch.equal(_attend(case, [(0, length)]), whole), "threads"
        cuts = [0, 1, 2, 37, 128, 131, 200, 256, 290, length]
        pieces = list(itertools.pairwise(cuts))
        assert torch.equal(_attend(case, pieces), whole), "pieces of the prompt in one batch"
        for begin, end in pieces:
            assert torch.equal(_attend(case, [(begin, end)]), whole[begin:end]), "a piece alone"
        tokens = [0, 1, 99, 127, 128, 255, 256, length - 1]
        assert torch.equal(_attend(case, [(i, i + 1) for i in tokens]), whole[tokens]), "decode"
        for i in tokens:
            assert torch.equal(_attend(case, [(i, i + 1)]), whole[i : i + 1]), "decode alone"


BOTH_WAYS = {"window": {"window": 50}, "slopes": {"slopes": True}, "biases": {"reach": 70}}


@pytest.mark.parametrize("mode", BOTH_WAYS)
def test_rows_that_see_to_both_sides_have_the_same_bits_in_any_company(isa: str, mode: str) -> None:
    """Sequences of which some are alone in a step, whatever the number of threads."""
    seqs = ((300, 300), (1, 1), (130, 130), (40, 40))
    case = _attention_case(seqs, (6, 2, 32), causal=False, **BOTH_WAYS[mode])
    whole = case.run(NATIVE)[0]
    starts = case.args["query_start_loc"].tolist()
    for threads in (1, 3):
        _cpu.set_num_threads(threads)
        assert torch.equal(case.run(NATIVE)[0], whole)
        for number in range(len(seqs)):
            rows = slice(starts[number], starts[number + 1])
            alone = {
                "out": torch.full_like(case.args["out"][rows], torch.nan),
                "qkv": case.args["qkv"][rows].contiguous(),
                "block_tables": case.args["block_tables"][number : number + 1].contiguous(),
                "seq_lens": case.args["seq_lens"][number : number + 1].contiguous(),
                "query_start_loc": torch.tensor([0, rows.stop - rows.start], dtype=torch.int32),
            }
            assert torch.equal(replace(case, args=case.args | alone).run(NATIVE)[0], whole[rows])


@pytest.mark.parametrize(("causal", "span"), [(False, 0), (True, 60)], ids=["all keys", "spans"])
def test_rows_that_see_behind_themselves_have_the_same_bits_in_any_company(isa: str, causal: bool, span: int) -> None:
    """Whole spans of a sequence, in whatever steps."""
    case = _attention_case(((300, 300),), (9, 3, 64), torch.bfloat16, 32, causal=causal, span=span)
    whole = case.run(NATIVE)[0]
    spans = [(i, min(i + 60, 300)) for i in range(0, 300, 60)]
    for threads in (1, 3):
        _cpu.set_num_threads(threads)
        for begin, end in spans if span else [*spans, (0, 1), (128, 131), (299, 300)]:
            ends = case.args["key_ends"]
            piece = {
                "out": torch.full((end - begin, whole.shape[1]), torch.nan),
                "qkv": case.args["qkv"][begin:end].contiguous(),
                "seq_lens": torch.tensor([end if causal else 300], dtype=torch.int32),
                "query_start_loc": torch.tensor([0, end - begin], dtype=torch.int32),
                "key_ends": None if ends is None else ends[begin:end].contiguous(),
            }
            assert torch.equal(replace(case, args=case.args | piece).run(NATIVE)[0], whole[begin:end])


def test_queries_alone_are_attended_as_in_a_stacked_projection(isa: str) -> None:
    """As those of a decoder for an encoder's keys."""
    case = _attention_case(((40, 3), (20, 1)), (6, 3, 32), causal=False)
    queries = case.args | {"qkv": case.args["qkv"][:, : 6 * 32].contiguous()}
    for table in (NATIVE, REFERENCE):
        assert torch.equal(replace(case, args=queries).run(table)[0], case.run(table)[0])


def test_a_later_token_that_overflows_leaves_earlier_ones_alone(isa: str) -> None:
    case = MODES["wide"]
    before = case.run(NATIVE)[0]
    spoilt = {key: case.args[key].clone() for key in ("k_cache", "v_cache")}
    block = int(case.args["block_tables"][0, 150 // 16])
    spoilt["k_cache"][block, :, 0, :, 150 % 16] = torch.inf
    spoilt["v_cache"][block, :, 150 % 16] = torch.inf
    after = replace(case, args=case.args | spoilt).run(NATIVE)[0]
    assert torch.equal(after[:150], before[:150])
    assert not torch.isfinite(after[150:]).any()


ROW_CASES = [*_elementwise_cases(), *_norm_parts_cases(), *_rope_cases()]


@pytest.mark.parametrize("case", ROW_CASES, ids=lambda case: case.name)
def test_a_row_alone_has_the_bits_it_has_among_others(isa: str, case: Case) -> None:
    names = case.outputs if case.name != "rope_kv_write" else ("qkv",)
    whole = replace(case, outputs=names).run(NATIVE)
    per_row = {
        "out",
        "x",
        "residual",
        "gate_up",
        "qkv",
        "positions",
        "slot_mapping",
        "ids",
        "weights",
        "scores",
        "gates",
    }
    per_row &= case.args.keys()
    for row in range(len(whole[0])):
        alone = {name: case.args[name][row : row + 1].contiguous() for name in per_row}
        for got, wanted in zip(replace(case, args=case.args | alone, outputs=names).run(NATIVE), whole, strict=True):
            assert torch.equal(got[0], wanted[row])
