"""A decoder as data: what a family's function makes of a configuration.

Layers are made of blocks (`blocks`), of which a model has few different ones. Nobody but the family's function
interprets the configuration; what the blocks need stands in them, in the same terms for all families.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from octavo.models.blocks import Layer

RopeKind = Literal["default", "linear", "llama3", "yarn", "factors"]


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary embedding of a head. Fields beyond the first three belong to the kind named.

    The operations rotate whole heads with halves as the pairs; rows of q and k are brought into that order at load.
    """

    theta: float
    kind: RopeKind = "default"
    interleaved: bool = False  # pairs stand side by side in the checkpoint: (0, 1), (2, 3), ...
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
class NormSpec:
    """x / sqrt(mean(x^2) + eps) * (offset + weight)."""

    eps: float
    offset: float = 0.0  # 0: what the checkpoint stores is the weight itself


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Embedding, layers, norm, output matrix. All sizes are positive."""

    model_type: str
    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    layers: tuple[Layer, ...]
    norm: NormSpec  # behind the layers
    embedding_scale: float = 1.0
    tie_word_embeddings: bool = False
    logit_softcap: float = 0.0  # 0: none
