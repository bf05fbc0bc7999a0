"""Layers whose tokens have inputs of their own for each of them, and several streams: Gemma 3n and 4."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from octavo.models.blocks import Block
from octavo.models.builder import Builder
from octavo.models.expert_blocks import MixtureOfExperts
from octavo.models.params import Matrix
from octavo.models.spec import NormSpec
from octavo.ops.operands import Buffer
from octavo.ops.operations import Activation, Add, Embed, Linear, Norm, Op
from octavo.ops.program import ProgramError
from octavo.ops.stream_operations import ActTimes, AltUpCorrect, AltUpPredict, MatchRms, Multiply

_HALF_ROOT: Final = 0.5**0.5


@dataclass(frozen=True, kw_only=True)
class LayerInputs:
    """In front of the layers: `size` columns for each, a row of a table and a product, normed, of the embedding:
    their sum over the root of two."""

    num_layers: int
    size: int
    num_rows: int  # of the table
    is_partial: bool  # there are more tokens than rows
    norm: NormSpec

    def emit(self, build: Builder, residual: Buffer) -> None:
        width = self.num_layers * self.size
        table = Matrix(name="model.embed_tokens_per_layer", gguf="per_layer_token_embd", rows=self.num_rows)
        weight = build.matrices("layer_inputs.table", [table], width, None, "embedding")
        inputs = build.buffer("layer_inputs", width)
        build.ops.append(Embed(out=inputs, weight=weight, scale=(self.size / 2) ** 0.5, is_partial=self.is_partial))
        matrix = Matrix(name="model.per_layer_model_projection", gguf="per_layer_model_proj", rows=width)
        projected = build.linear(residual, "layer_inputs.projected", [matrix], None)
        # The product counts divided by the root of the width, which is a matter of the norm's eps alone.
        norm = replace(self.norm, eps=self.norm.eps * residual.width)
        weights = [Matrix(name="model.per_layer_projection_norm", gguf="per_layer_proj_norm", rows=self.size)]
        place = 0, self.num_layers, self.size
        build.norm_parts(projected, place, norm, weights, "layer_inputs.norm", _HALF_ROOT)
        build.ops.append(Add(residual=inputs, x=projected))
        build.layer_inputs = inputs


@dataclass(frozen=True, kw_only=True)
class LayerInput:
    """norm(projection(act(gate(x)) * the token's input of layer `number`))."""

    number: int
    size: int
    activation: Activation
    norm: NormSpec

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        if build.layer_inputs is None:
            raise ProgramError("the inputs of layers are not there")
        matrix = Matrix(name="per_layer_input_gate", gguf="inp_gate", rows=self.size)
        gate = build.linear(x, "layer_input.gate", [matrix], shard=None)
        out = build.buffer("layer_input", self.size)
        first = self.number * self.size
        build.ops.append(ActTimes(out=out, x=gate, y=build.layer_inputs, first=first, kind=self.activation))
        matrix = Matrix(name="per_layer_projection", gguf="proj", rows=x.width)
        added = build.linear(out, "layer_input.projected", [matrix], shard=None)
        return build.norm(added, self.norm, "post_per_layer_input_norm", "post_norm")


@dataclass(frozen=True, kw_only=True)
class AltUpStart:
    """In front of the layers: further streams are products of the first, and as large as it."""

    num_streams: int

    def emit(self, build: Builder, residual: Buffer) -> None:
        streams = [residual]
        for number in range(self.num_streams - 1):
            streams.append(_projected(build, residual, number, "altup_projections", "altup_proj"))
            build.ops.append(MatchRms(x=streams[-1], to=residual))
        build.streams = tuple(streams)


@dataclass(frozen=True, kw_only=True)
class AltUpEnd:
    """Behind the layers: the mean of the first stream and of products of the others, as large as it."""

    def emit(self, build: Builder, residual: Buffer) -> None:
        others = []
        for number, stream in enumerate(build.streams[1:]):
            others.append(_projected(build, stream, number, "altup_unembed_projections", "altup_unembd_proj"))
            build.ops.append(MatchRms(x=others[-1], to=residual))
        build.ops += [Add(residual=residual, x=other) for other in others]
        build.ops.append(Multiply(x=residual, factors=build.constant(1 / len(build.streams))))


def _projected(build: Builder, x: Buffer, number: int, name: str, gguf: str) -> Buffer:
    matrix = Matrix(name=f"model.{name}.{number}", gguf=f"{gguf}.{number}", rows=x.width)
    return build.linear(x, f"{name}.{number}", [matrix], None)


@dataclass(frozen=True, kw_only=True)
class AltUpLayer:
    """Gemma 3n's: of several streams one is computed, and the others follow it (AltUp); beside the attention there is a
    product of low rank (LAuReL); and the others get the layer's input.

    With x predicted and n = norm(x): y = (x + norm(attention(n)) + n + norm(right(left(n)))) / sqrt(2); then
    y += norm(mlp(norm(y))), and all streams are corrected by how y differs from x.
    """

    attention: Block
    mlp: Block
    norm: NormSpec
    laurel_rank: int
    layer_input: LayerInput
    active: int = 0
    has_scale: bool = True  # of what the layer's input is gated by

    def emit(self, build: Builder, residual: Buffer) -> None:
        streams, count = build.streams, len(build.streams)
        if not streams or streams[0] is not residual:
            raise ProgramError("the streams are not there")
        x = streams[self.active]
        router = Matrix(name="altup.modality_router", gguf="altup_router", rows=count)
        normed = build.norm(x, self.norm, "altup.router_norm", "altup_router_norm", 1 / x.width)
        scores = build.router(normed, "altup.scores", router)
        routes = build.ops[-2:]
        coefs = build.table("altup.prediction_coefs", "altup_predict_coef", (count * count, count))
        build.ops.append(AltUpPredict(streams=streams, scores=scores, coefs=coefs))
        y = self._activated(build, x)
        scores = _routed_again(build, routes[0], routes[1], y)
        coefs = build.table("altup.correction_coefs", "altup_correct_coef", (count, count))
        first = build.buffer("altup", x.width)
        scale = None
        if self.has_scale:
            declared = Matrix(name="altup.correct_output_scale", gguf="altup_correct_scale", rows=x.width)
            scale = build.vector([declared], declared.name, "weight", "bias")
        build.ops.append(
            AltUpCorrect(
                out=first, streams=streams, activated=y, scores=scores, coefs=coefs, active=self.active, scale=scale
            )
        )
        added = self.layer_input.emit(build, first)
        build.ops += [Add(residual=stream, x=added) for stream in streams[1:]]

    def _activated(self, build: Builder, x: Buffer) -> Buffer:
        normed = build.norm(x, self.norm, "input_layernorm", "attn_norm")
        left = Matrix(name="laurel.linear_left", gguf="laurel_l", rows=self.laurel_rank)
        right = Matrix(name="laurel.linear_right", gguf="laurel_r", rows=x.width)
        laurel = build.linear(normed, "laurel.left", [left], shard=None)
        laurel = build.linear(laurel, "laurel.right", [right], shard=None)
        laurel = build.norm(laurel, self.norm, "laurel.post_laurel_norm", "laurel_post_norm")
        y = self.attention.emit(build, normed)
        y = build.norm(y, self.norm, "post_attention_layernorm", "post_attention_norm")
        build.ops += [Add(residual=y, x=each) for each in (x, normed, laurel)]
        build.ops.append(Multiply(x=y, factors=build.constant(_HALF_ROOT)))
        mlp = self.mlp.emit(build, build.norm(y, self.norm, "pre_feedforward_layernorm", "ffn_norm"))
        mlp = build.norm(mlp, self.norm, "post_feedforward_layernorm", "post_ffw_norm")
        build.ops.append(Add(residual=y, x=mlp))
        return y


def _routed_again(build: Builder, norm: Op, linear: Op, x: Buffer) -> Buffer:
    """The scores of x by the norm and the matrix that made others."""
    assert isinstance(norm, Norm) and isinstance(linear, Linear)
    normed, scores = (replace(each, name=f"{each.name} again") for each in (norm.out, linear.out))
    build.ops += [replace(norm, out=normed, x=x), replace(linear, out=scores, x=normed)]
    return scores


@dataclass(frozen=True, kw_only=True)
class GemmaExperts:
    """Gemma 4's: norm(mlp(norm(x))) + norm(experts(norm(x))), where the router looks at x with a norm of its own."""

    mlp: Block
    experts: MixtureOfExperts
    norm: NormSpec

    def emit_beside(self, build: Builder, x: Buffer, residual: Buffer) -> Buffer:
        """x: the normed residual stream that the MLP reads."""
        out = self.mlp.emit(build, x)
        out = build.norm(out, self.norm, "post_feedforward_layernorm_1", "post_ffw_norm_1")
        router_x = build.norm(residual, self.norm, "mlp.gate.norm", "ffn_gate_inp.scale", residual.width**-0.5)
        expert_x = build.norm(residual, self.norm, "pre_feedforward_layernorm_2", "pre_ffw_norm_2")
        experts = self.experts.emit_routed(build, expert_x, router_x)
        experts = build.norm(experts, self.norm, "post_feedforward_layernorm_2", "post_ffw_norm_2")
        build.ops.append(Add(residual=out, x=experts))
        return out


@dataclass(frozen=True, kw_only=True)
class ScaledSandwich:
    """Gemma 4's: a `Sandwich`, perhaps with experts beside its MLP, and the layer's input; all of it times a number."""

    attention: Block
    mlp: Block | GemmaExperts
    norm: NormSpec
    layer_input: LayerInput | None = None

    def emit(self, build: Builder, residual: Buffer) -> None:
        x = build.norm(residual, self.norm, "input_layernorm", "attn_norm")
        x = self.attention.emit(build, x)
        x = build.norm(x, self.norm, "post_attention_layernorm", "post_attention_norm")
        build.ops.append(Add(residual=residual, x=x))
        x = build.norm(residual, self.norm, "pre_feedforward_layernorm", "ffn_norm")
        if isinstance(self.mlp, GemmaExperts):
            x = self.mlp.emit_beside(build, x, residual)
        else:
            x = self.mlp.emit(build, x)
        x = build.norm(x, self.norm, "post_feedforward_layernorm", "post_ffw_norm")
        build.ops.append(Add(residual=residual, x=x))
        if self.layer_input is not None:
            build.ops.append(Add(residual=residual, x=self.layer_input.emit(build, residual)))
        factor = Matrix(name="layer_scalar", gguf="layer_output_scale", rows=1)
        factors = build.vector([factor], factor.name, "weight", "bias")
        build.ops.append(Multiply(x=residual, factors=factors))
