"""A resampler: learned queries look at the rows of a picture, and what they find takes the place of these.

rows  y --norm-->  +--> values                     queries --norm--> q
          + sines of line and column --> keys         |
                                 attention of all queries over all keys --> norm --> rows of the language model
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.models.builder import Builder
from octavo.models.params import Matrix
from octavo.models.spec import NormSpec
from octavo.ops.operands import Buffer, Cache, Heads, Weight
from octavo.ops.operations import Attend, GivenRows, RopeWrite
from octavo.ops.program import Program, program


@dataclass(frozen=True, kw_only=True)
class ResamplerSpec:
    """`name`: where those of its tensors begin."""

    num_queries: int
    heads: Heads
    norm: NormSpec
    name: str

    @property
    def width(self) -> int:
        return self.heads.size


@dataclass(frozen=True, eq=False)
class Resampler:
    """Programs of rows that are `width` wide: from y with sines to keys, from y to values, from the queries to those of
    the attention; and from rows queries | keys | values to those of the language model. `queries`: float32."""

    spec: ResamplerSpec
    queries: Weight
    to_q: Program
    to_k: Program
    to_v: Program
    attend: Program

    @property
    def programs(self) -> tuple[Program, ...]:
        return self.to_q, self.to_k, self.to_v, self.attend


def define_resampler(build: Builder, spec: ResamplerSpec, rows: Buffer, out_width: int) -> tuple[Buffer, Resampler]:
    """What is to come behind the tower's last rows, and what that is for."""
    name, width, heads = spec.name, spec.width, spec.heads
    if rows.width != width:
        rows = build.linear(rows, f"{name}.kv", [Matrix(name=f"{name}.kv_proj", gguf="resampler.kv", rows=width)], None)
    y = build.norm(rows, spec.norm, f"{name}.ln_kv", "resampler.ln_kv")
    head = build.cut()
    queries = build.table(f"{name}.query", "resampler.query", (spec.num_queries, width))

    def product(part: str, norm: bool) -> Program:
        given = Buffer(f"{name}.{part}.rows", width)
        build.ops.append(GivenRows(out=given))
        x = build.norm(given, spec.norm, f"{name}.ln_{part}", f"resampler.ln_{part}") if norm else given
        matrix = Matrix(name=f"{name}.{part}_proj", gguf=f"resampler.attn.{part}", rows=width, bias=True)
        out = build.linear(x, f"{name}.{part}", [matrix], None)
        return program(build.cut(), out)

    to_q, to_k, to_v = (product(part, part == "q") for part in "qkv")
    qkv, attended = Buffer(f"{name}.qkv", 3 * width), build.buffer(f"{name}.attended", width)
    cache = Cache(index=0, heads=heads)  # of a program of its own
    build.ops += [
        GivenRows(out=qkv),
        RopeWrite(qkv=qkv, heads=heads, cache=cache, rotation=None),
        Attend(out=attended, qkv=qkv, heads=heads, cache=cache, scale=heads.head_dim**-0.5, reads_key_ends=True),
    ]
    o = Matrix(name=f"{name}.o_proj", gguf="resampler.attn.out", rows=width, bias=True)
    out = build.norm(build.linear(attended, f"{name}.o", [o], None), spec.norm, f"{name}.ln_post", "resampler.ln_post")
    out = build.linear(out, f"{name}.proj", [Matrix(name=f"{name}.proj", gguf="resampler.proj", rows=out_width)], None)
    attend = program(build.cut(), out)
    build.ops += head
    return y, Resampler(spec, queries, to_q, to_k, to_v, attend)
