"""What the families have in common, and where they differ, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_tanh"]
RopeKind = Literal["default", "linear", "llama3", "yarn", "factors"]


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary embedding over the whole head; halves are the pairs. Fields beyond `theta` belong to the kind named."""

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0  # linear, llama3, yarn
    original_max_position_embeddings: int = 0  # llama3, yarn
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float = 1.0  # yarn: multiplies cos and sin
    truncate: bool = True  # yarn
    factors: tuple[float, ...] = ()  # factors: what each of the head_dim / 2 frequencies is divided by


@dataclass(frozen=True, kw_only=True)
class ArchSpec:
    """A decoder: embedding, layers of attention and gated MLP, norm, output matrix. All sizes are positive.

    Made by a family's function from the checkpoint's configuration; nobody else interprets that configuration.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeSpec
    attn_scale: float
    local_rope: RopeSpec | None = None  # of layers with a window, where it differs
    layer_windows: tuple[int, ...]  # a layer each: keys at a distance below it are seen; 0: all
    activation: Activation = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # of q, k and v
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # norm of each head of q and k before the rotation
    norm_offset: float = 0.0  # added to the stored weights of all norms
    sandwich_norms: bool = False  # a norm also behind attention and MLP, before the residual sum
    embedding_scale: float = 1.0
    attn_softcap: float = 0.0  # 0: none
    logit_softcap: float = 0.0  # 0: none

    @property
    def qkv_size(self) -> int:
        """Columns of the stacked projection q | k | v."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def layer_ops_per_token(self) -> int:
        """Sums and products of the layers' matrices for one token."""
        attention = self.hidden_size * (self.qkv_size + self.num_heads * self.head_dim)
        return 2 * self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    def rope_of_layer(self, layer: int) -> RopeSpec:
        return self.local_rope if self.local_rope is not None and self.layer_windows[layer] else self.rope


def tensor_shapes(spec: ArchSpec) -> dict[str, tuple[int, ...]]:
    """The tensors that a checkpoint of this architecture holds, no more and no fewer, under Hugging Face's names."""
    hidden, heads, kv = spec.hidden_size, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocab_size, hidden)}
    for layer in range(spec.num_layers):
        prefix = f"model.layers.{layer}."
        for name, rows, columns, bias in (
            ("self_attn.q_proj", heads, hidden, spec.attention_bias),
            ("self_attn.k_proj", kv, hidden, spec.attention_bias),
            ("self_attn.v_proj", kv, hidden, spec.attention_bias),
            ("self_attn.o_proj", hidden, heads, spec.o_bias),
            ("mlp.gate_proj", spec.intermediate_size, hidden, spec.mlp_bias),
            ("mlp.up_proj", spec.intermediate_size, hidden, spec.mlp_bias),
            ("mlp.down_proj", hidden, spec.intermediate_size, spec.mlp_bias),
        ):
            shapes[f"{prefix}{name}.weight"] = (rows, columns)
            if bias:
                shapes[f"{prefix}{name}.bias"] = (rows,)
        norms = ["input_layernorm", "post_attention_layernorm"]
        if spec.sandwich_norms:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        shapes |= {f"{prefix}{name}.weight": (hidden,) for name in norms}
        if spec.qk_norm:
            shapes |= {f"{prefix}self_attn.{name}_norm.weight": (spec.head_dim,) for name in "qk"}
    shapes["model.norm.weight"] = (hidden,)
    if not spec.tie_word_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    return shapes
