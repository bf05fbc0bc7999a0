"""What the configurations of all families say alike, under Llama's keys."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from octavo.base.errors import CheckpointError
from octavo.models.blocks import Layer
from octavo.models.config_reader import (
    MAX_HEAD_DIM,
    MAX_LAYERS,
    MAX_POSITIONS,
    ConfigReader,
    flat_rope,
    read_rope,
    yarn_mscale,
)
from octavo.models.expert_blocks import MixtureOfExperts
from octavo.models.spec import ModelSpec, NormSpec, RopeSpec
from octavo.ops.operands import Heads, Latent
from octavo.ops.operations import Activation
from octavo.ops.routing import Routing

#: Above any real model.
MAX_EXPERTS: Final = 4096
MAX_LATENT: Final = 4096
#: Of the norms of latents, whatever that of the others is.
_LATENT_EPS: Final = 1e-6
_ACTIVATIONS: Final[dict[str, Activation]] = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "relu": "relu", "relu2": "relu2", "quick_gelu": "quick_gelu",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Common:
    """Sizes and options that families share; a family makes its layers of them."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    heads: Heads
    max_position_embeddings: int
    rope: RopeSpec
    activation: Activation
    norm: NormSpec
    tie_word_embeddings: bool

    def with_norm(self, **changes: Any) -> Common:
        """With norms that are otherwise in these fields of `NormSpec`."""
        return replace(self, norm=replace(self.norm, **changes))

    def decoder(self, layers: Iterable[Layer], **options: Any) -> ModelSpec:
        """`options`: fields of `ModelSpec` that the family sets."""
        return ModelSpec(
            model_type=self.model_type,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            max_position_embeddings=self.max_position_embeddings,
            layers=tuple(layers),
            tie_word_embeddings=self.tie_word_embeddings,
            **{"norm": self.norm, **options},
        )


def read_common(
    config: ConfigReader,
    *,
    activation_key: str = "hidden_act",
    rotates_in_part: bool = False,
    has_experts: bool = False,
) -> Common:
    """Raises CheckpointError for sizes that are missing or do not fit, and options that are not implemented.

    `rotates_in_part`: whether the family may rotate a part of each head. `has_experts`: whether it has any.
    """
    config.refuse_unless("quantization_config", ({},))
    for key in () if has_experts else ("num_local_experts", "num_experts"):
        config.refuse_unless(key, (0, 1))
    hidden = config.integer("hidden_size")
    heads = _heads(config, hidden)
    activation = read_activation(config, activation_key)
    max_positions = config.integer("max_position_embeddings", high=MAX_POSITIONS)
    rope = head_rope(flat_rope(config), heads.head_dim, max_positions, rotates_in_part=rotates_in_part, config=config)
    if rope.kind in ("yarn", "dynamic"):
        stretched = min(rope.factor * rope.original_max_position_embeddings, MAX_POSITIONS)
        max_positions = max(max_positions, int(stretched))
    return Common(
        model_type=str(config.get("model_type")),
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=config.integer("num_hidden_layers", high=MAX_LAYERS),
        heads=heads,
        max_position_embeddings=min(max_positions, MAX_POSITIONS),
        rope=rope,
        activation=activation,
        norm=NormSpec(eps=config.number("rms_norm_eps", 1e-6)),
        tie_word_embeddings=config.flag("tie_word_embeddings", False),
    )


def read_activation(config: ConfigReader, key: str = "hidden_act", default: str | None = None) -> Activation:
    found = config.get(key)
    found = default if found is None else found
    if not isinstance(found, str) or found not in _ACTIVATIONS:
        raise config.fail(key, "is not supported")
    return _ACTIVATIONS[found]


def read_experts(config: ConfigReader, common: Common, **options: Any) -> MixtureOfExperts:
    """Of the keys num_experts, num_experts_per_tok and moe_intermediate_size. `options`: fields of the block."""
    num_experts = config.integer("num_experts", high=MAX_EXPERTS)
    return MixtureOfExperts(
        num_experts=num_experts,
        top_k=config.integer("num_experts_per_tok", high=num_experts),
        size=config.integer("moe_intermediate_size"),
        **{"activation": common.activation, **options},
    )


def with_local_experts(config: ConfigReader) -> ConfigReader:
    """Where there are `num_local_experts`, as Mixtral calls them, each of `intermediate_size`."""
    return config.without("moe_intermediate_size").aliased(
        num_experts="num_local_experts", moe_intermediate_size="intermediate_size"
    )


def read_groups(config: ConfigReader) -> dict[str, int]:
    """Fields of a `Routing`. Of the keys n_group and topk_group; null and absent: there are no groups."""
    num_experts, top_k = config.integer("num_experts", high=MAX_EXPERTS), config.integer("num_experts_per_tok")
    groups = config.integer("n_group", 1, MAX_EXPERTS)
    if num_experts % groups:
        raise config.fail("n_group", f"does not divide the {num_experts} experts")
    top_groups = config.integer("topk_group", 1, groups)
    if top_k > top_groups * (num_experts // groups):
        raise config.fail("topk_group", f"leaves too few experts to choose {top_k}")
    return {"num_groups": groups, "top_groups": top_groups}


def read_noaux_routing(config: ConfigReader) -> Routing:
    """By sigmoids and a bias (`noaux_tc`); of each group the two best experts count."""
    return Routing(
        kind="sigmoid", renormalize=config.flag("norm_topk_prob", True), group_best=2,
        factor=config.number("routed_scaling_factor", 1.0), **read_groups(config),
    )  # fmt: skip


def head_rope(
    flat: ConfigReader,
    head_dim: int,
    max_positions: int,
    *,
    rotates_in_part: bool = False,
    config: ConfigReader | None = None,
) -> RopeSpec:
    """The rope of flat parameters for heads of a size. `config`: where messages say that the part stands."""
    rope = read_rope(flat, max_positions)
    if rope.kind == "proportional":
        return rope
    if not rotates_in_part:
        flat.refuse_unless("partial_rotary_factor", (1, 1.0))
    partial = flat.number("partial_rotary_factor", 1.0)
    rotary_dim = int(head_dim * partial + 1e-6)  # a share that was written as a quotient may fall short by a rounding
    if partial > 1 or rotary_dim < 2 or rotary_dim % 2:
        raise (config or flat).fail("partial_rotary_factor", f"does not fit heads of {head_dim}")
    for factors in (rope.factors, rope.long_factors):
        if factors and len(factors) != rotary_dim // 2:
            raise CheckpointError(f"config: {len(factors)} rope factors for {rotary_dim} rotated dimensions of a head")
    return replace(rope, rotary_dim=0 if rotary_dim == head_dim else rotary_dim)


def layer_ropes(config: ConfigReader, common: Common, theta: float, local_theta: float) -> tuple[RopeSpec, RopeSpec]:
    """The ropes of full layers and of layers with a window. Only the former is ever scaled in the older form."""
    full, local = config.section("rope_scaling"), ConfigReader({})
    if config.get("rope_parameters") is not None:
        full = config.section("rope_parameters")
        if full.has("full_attention") or full.has("sliding_attention"):
            full, local = full.section("full_attention"), full.section("sliding_attention")
        elif full.get("rope_theta") is not None:
            local = local.merged({"rope_theta": full.get("rope_theta")})
    head_dim, positions = common.heads.head_dim, common.max_position_embeddings
    return (
        head_rope(full.merged({"rope_theta": theta}), head_dim, positions),
        head_rope(local.merged({"rope_theta": local_theta}), head_dim, positions),
    )


def read_window(config: ConfigReader) -> int:
    """`sliding_window`; 0 where it is absent or null."""
    return 0 if config.get("sliding_window") is None else config.integer("sliding_window", high=MAX_POSITIONS)


def layer_windows(config: ConfigReader, num_layers: int, pattern: int) -> tuple[int, ...]:
    """The window of each layer, or 0. Unless the configuration says it otherwise, every `pattern`-th is full."""
    window = config.integer("sliding_window", high=MAX_POSITIONS)
    windows = windows_of_types(config, num_layers, window)
    if windows is not None:
        return windows
    key = "sliding_window_pattern" if config.get("sliding_window_pattern") is not None else "_sliding_window_pattern"
    pattern = config.integer(key, pattern, MAX_LAYERS)
    return tuple(window if (layer + 1) % pattern else 0 for layer in range(num_layers))


def shared_kv_layers(config: ConfigReader, windows: tuple[int, ...], num_shared: int) -> list[int | None]:
    """Of each layer the one whose keys and values it sees, or None: the last `num_shared` layers see those of the last
    one of their kind in front of them."""
    first = len(windows) - num_shared
    last = {window: number for number, window in enumerate(windows[:first])}
    if not last.keys() >= set(windows):
        raise config.fail("num_kv_shared_layers", "leaves a kind of layers without keys")
    return [None if number < first else last[window] for number, window in enumerate(windows)]


def norm_offset(config: ConfigReader) -> float:
    """Of norms whose weights are around zero. `rms_norm_offset` is no key of Hugging Face's: `gguf_config` sets it to
    0, because GGUF stores such norms with the 1 already added."""
    return 0.0 if config.get("rms_norm_offset") == 0 else 1.0


def _heads(config: ConfigReader, hidden_size: int) -> Heads:
    num_heads = config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", num_heads)
    head_dim = config.integer("head_dim", max(1, hidden_size // num_heads), MAX_HEAD_DIM)
    if num_heads % num_kv_heads:
        raise config.fail("num_key_value_heads", f"does not divide the {num_heads} heads")
    if head_dim % 2:
        raise config.fail("head_dim", "is odd")
    return Heads(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)


def read_latent(config: ConfigReader, common: Common) -> dict[str, Any]:
    """The fields of a `LatentAttention`. `common`: read with heads that are the parts of theirs that are rotated."""
    latent = Latent(
        num_heads=common.heads.num_heads,
        nope_dim=config.integer("qk_nope_head_dim", high=MAX_HEAD_DIM),
        rank=config.integer("kv_lora_rank", high=MAX_LATENT),
        rope_dim=common.heads.head_dim,
    )
    for key, size in (("kv_lora_rank", latent.rank), ("qk_rope_head_dim", latent.rope_dim)):
        if size % 16:
            raise config.fail(key, "is not a multiple of 16, which the cache of latents asks for")
    # Where the configuration says so, scores grow with the factor by which the context was stretched.
    stretch = yarn_mscale(common.rope.factor, flat_rope(config).number("mscale_all_dim", 0.0, low=-1.0))
    return {
        "latent": latent,
        "value_dim": config.integer("v_head_dim", high=MAX_HEAD_DIM),
        "scale": (latent.nope_dim + latent.rope_dim) ** -0.5 * stretch**2,
        "rope": common.rope,
        "norm": NormSpec(eps=_LATENT_EPS),
        "q_rank": 0 if config.get("q_lora_rank") is None else config.integer("q_lora_rank"),
        "bias": config.flag("attention_bias", False),
    }


def windows_of_types(config: ConfigReader, num_layers: int, window: int) -> tuple[int, ...] | None:
    """The window of each layer, or 0, as `layer_types` has it; None if the configuration has none."""
    if config.get("layer_types") is None:
        return None
    kinds = config.layer_kinds(num_layers, ("full_attention", "sliding_attention"))
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
