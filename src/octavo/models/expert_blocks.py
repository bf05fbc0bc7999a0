"""Blocks in the place of an MLP that are mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.models.blocks import Block, GatedMLP
from octavo.models.builder import Builder
from octavo.models.params import Matrix
from octavo.models.spec import NormSpec
from octavo.ops.operands import Buffer
from octavo.ops.operations import Activation, Add, AddGated, Experts, Route
from octavo.ops.routing import Routing


@dataclass(frozen=True, kw_only=True)
class MixtureOfExperts:
    """The weighted sum of the MLPs of the `top_k` experts that a router's scores name."""

    num_experts: int
    top_k: int
    size: int
    activation: Activation
    routing: Routing = Routing()
    gated: bool = True  # down(act(gate(x)) * up(x)), else down(act(up(x)))
    has_choice_bias: bool = False  # added to the values by which experts are chosen, and to no weight
    router_bias: bool = False
    bias: bool = False  # of the experts' matrices
    scales_input: bool = False  # an expert's weight multiplies what goes into it, and not what comes out
    has_scales: bool = False  # an expert's weight is multiplied by its own in the end

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        return self.emit_routed(build, x, x)

    def emit_routed(self, build: Builder, x: Buffer, router_x: Buffer) -> Buffer:
        """The router looks at `router_x`."""
        k, numbers = self.top_k, range(self.num_experts)
        router = Matrix(name="mlp.gate", gguf="ffn_gate_inp", rows=self.num_experts, bias=self.router_bias)
        scores = build.router(router_x, "mlp.gate", router)
        ids, weights, places = build.top_k_buffers("mlp.experts", k)
        choice = Matrix(name="mlp.gate.e_score_correction", gguf="exp_probs_b", rows=self.num_experts)
        choice_bias = build.vector([choice], choice.name, "bias", "bias") if self.has_choice_bias else None
        own = Matrix(name="mlp.gate.per_expert_scale", gguf="ffn_down_exps.scale", rows=self.num_experts)
        scales = build.vector([own], own.name, "weight", "bias") if self.has_scales else None
        build.ops.append(
            Route(ids=ids, weights=weights, scores=scores, routing=self.routing, bias=choice_bias, scales=scales)
        )

        def part(expert: int, name: str, rows: int) -> Matrix:
            gguf = f"ffn_{name}_exps.{expert}"
            return Matrix(name=f"mlp.experts.{expert}.{name}_proj", gguf=gguf, rows=rows, bias=self.bias)

        inner = ("gate", "up") if self.gated else ("up",)
        gate_ups = [[part(e, name, self.size) for name in inner] for e in numbers]
        downs = [[part(e, "down", x.width)] for e in numbers]
        out = build.buffer("mlp.experts", x.width)
        build.ops.append(
            Experts(
                out=out,
                x=x,
                ids=ids,
                weights=weights,
                gate_up_weight=build.experts("mlp.experts.gate_up", gate_ups, x.width, shard=1),
                down_weight=build.experts("mlp.experts.down", downs, self.size, shard=2),
                kind=self.activation,
                places=places,
                grouped=build.buffer("mlp.experts.grouped", k * x.width),
                gate_up=build.buffer("mlp.experts.gate_up", len(inner) * k * self.size),
                act=build.buffer("mlp.experts.act", k * self.size),
                gated=self.gated,
                scales_input=self.scales_input,
            )
        )
        return out


@dataclass(frozen=True, kw_only=True)
class WithShared:
    """Experts, and an MLP for every row: experts(x) + shared(x), or experts(x) + sigmoid(gate(x)) * shared(x)."""

    experts: Block
    shared: Block
    has_gate: bool = False

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        out = self.experts.emit(build, x)
        if not self.has_gate:
            build.ops.append(Add(residual=out, x=self.shared.emit(build, x)))
            return out
        gate = Matrix(name="mlp.shared_expert_gate", gguf="ffn_gate_inp_shexp", rows=1)
        gates = build.router(x, "mlp.shared_expert_gate", gate)
        build.ops.append(AddGated(residual=out, x=self.shared.emit(build, x), gates=gates))
        return out


def shared_mlp(size: int, activation: Activation, name: str = "mlp.shared_experts") -> GatedMLP:
    """The MLP of `WithShared`."""
    return GatedMLP(size=size, activation=activation, name=name, gguf_suffix="_shexp")


@dataclass(frozen=True, kw_only=True)
class LatentExperts:
    """Experts of latents: up(experts(down(x))). The router looks at x."""

    experts: MixtureOfExperts
    size: int  # of a latent
    bias: bool = False

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        down = Matrix(name="mlp.latent_down", gguf="ffn_latent_down", rows=self.size, bias=self.bias)
        latent = build.linear(x, "mlp.latent_down", [down], shard=None)
        out = self.experts.emit_routed(build, latent, x)
        up = Matrix(name="mlp.latent_up", gguf="ffn_latent_up", rows=x.width, bias=self.bias)
        return build.linear(out, "mlp.latent_up", [up], shard=None)


@dataclass(frozen=True, kw_only=True)
class DenseBesideExperts:
    """Arctic's layer: a dense MLP behind the attention, and experts of what went into the layer.

    y = x + attention(norm(x)); x = y + mlp(norm(y)) + experts(norm(x)).
    """

    attention: Block
    mlp: Block
    experts: Block
    norm: NormSpec

    def emit(self, build: Builder, residual: Buffer) -> None:
        expert_x = build.norm(residual, self.norm, "post_attention_layernorm", "ffn_norm_exps")
        experts = self.experts.emit(build, expert_x)
        x = build.norm(residual, self.norm, "input_layernorm", "attn_norm")
        build.ops.append(Add(residual=residual, x=self.attention.emit(build, x)))
        x = build.norm(residual, self.norm, "residual_layernorm", "ffn_norm")
        build.ops.append(Add(residual=residual, x=self.mlp.emit(build, x)))
        build.ops.append(Add(residual=residual, x=experts))
