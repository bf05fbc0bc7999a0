"""Pictures as codes: the convolutions of a VQ-VAE's encoder as data, and the tensors that they have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from octavo.models.builder import Builder
from octavo.models.params import Matrix
from octavo.models.spec import CodesSpec
from octavo.ops.operands import Buffer, Weight
from octavo.ops.operations import Embed
from octavo.ops.program import Program, program

#: Of the norms, which are of groups of channels.
NUM_GROUPS: Final = 32
GROUP_EPS: Final = 1e-6
#: The vectors whose numbers are the codes.
CODEBOOK: Final = "quantize.embedding"

StepKind = Literal["convolution", "residual", "attention", "halving", "norm"]


@dataclass(frozen=True)
class Step:
    """One after the other they make of a picture's channels [3, H, W] those of its codes.

    convolution: with sides of `kernel`. residual: x + two convolutions, each behind a norm. attention: x + that of all
    places, behind a norm. halving: a convolution of every other place. norm: with an activation behind it.
    """

    kind: StepKind
    name: str
    inputs: int
    outputs: int
    kernel: int = 3

    @property
    def convolutions(self) -> Iterator[tuple[str, int, int, int]]:
        """Name, input and output channels, side of the filters."""
        if self.kind in ("convolution", "halving"):
            yield self.name, self.inputs, self.outputs, self.kernel
        elif self.kind == "residual":
            yield f"{self.name}.conv1", self.inputs, self.outputs, 3
            yield f"{self.name}.conv2", self.outputs, self.outputs, 3
            if self.inputs != self.outputs:
                yield f"{self.name}.nin_shortcut", self.inputs, self.outputs, 1
        elif self.kind == "attention":
            for part in ("q", "k", "v", "proj_out"):
                yield f"{self.name}.{part}", self.inputs, self.inputs, 1

    @property
    def norms(self) -> Iterator[tuple[str, int]]:
        """Name and channels."""
        if self.kind == "residual":
            yield f"{self.name}.norm1", self.inputs
            yield f"{self.name}.norm2", self.outputs
        elif self.kind == "attention":
            yield f"{self.name}.norm", self.inputs
        elif self.kind == "norm":
            yield self.name, self.inputs


@dataclass(frozen=True, eq=False)
class CodesDefinition:
    """Before its weights are there. `program`: from the tokens of codes to their embeddings."""

    steps: tuple[Step, ...]
    program: Program


def define_codes(build: Builder, name: str, spec: CodesSpec, embedding: Weight) -> CodesDefinition:
    """`name`: what the names of the tensors begin with. `embedding`: of the language model."""
    steps = tuple(_steps(spec))
    for step in steps:
        for own, channels in step.norms:
            matrix = Matrix(name=f"{name}.{own}", gguf=f"v.{own}", rows=channels)
            build.vector([matrix], matrix.name, "weight", "norm")
            build.vector([matrix], matrix.name, "bias", "bias")
        for own, inputs, outputs, side in step.convolutions:
            matrix = Matrix(name=f"{name}.{own}", gguf=f"v.{own}", rows=outputs)
            build.table(matrix.name, matrix.gguf, (outputs, inputs * side * side))
            build.vector([matrix], matrix.name, "bias", "bias")
    build.table(f"{name}.{CODEBOOK}", f"v.{CODEBOOK}", (len(spec.token_ids), spec.code_size))
    rows = Buffer("codes", embedding.shape[1])
    return CodesDefinition(steps, program([Embed(out=rows, weight=embedding)], rows))


def _steps(spec: CodesSpec) -> Iterator[Step]:
    channels, last = spec.base_channels, len(spec.multipliers) - 1
    yield Step("convolution", "encoder.conv_in", 3, channels)
    for level, factor in enumerate(spec.multipliers):
        name = f"encoder.down.{level}"
        for block in range(spec.num_blocks):
            yield Step("residual", f"{name}.block.{block}", channels, factor * spec.base_channels)
            channels = factor * spec.base_channels
            if level in spec.attended:
                yield Step("attention", f"{name}.attn.{block}", channels, channels)
        if level < last:
            yield Step("halving", f"{name}.downsample.conv", channels, channels)
    yield Step("residual", "encoder.mid.block_1", channels, channels)
    if spec.attends_last:
        yield Step("attention", "encoder.mid.attn_1", channels, channels)
    yield Step("residual", "encoder.mid.block_2", channels, channels)
    yield Step("norm", "encoder.norm_out", channels, channels)
    yield Step("convolution", "encoder.conv_out", channels, spec.latent_channels)
    yield Step("convolution", "quant_conv", spec.latent_channels, spec.code_size, kernel=1)
