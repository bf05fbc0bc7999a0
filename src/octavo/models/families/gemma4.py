"""Gemma 4, text: full layers with heads of their own size, values that are keys, experts beside the MLP; as Gemma 3n,
inputs for each layer, and last layers without keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.blocks import Attention, GatedMLP
from octavo.models.common import MAX_EXPERTS, head_rope, layer_windows, read_common, shared_kv_layers
from octavo.models.config_reader import MAX_HEAD_DIM, MAX_LAYERS, ConfigReader
from octavo.models.expert_blocks import MixtureOfExperts
from octavo.models.layout import KV_SHARING, STACKED_EXPERTS, Layout, Split
from octavo.models.spec import ModelSpec, NormSpec
from octavo.models.stream_blocks import GemmaExperts, LayerInput, LayerInputs, ScaledSandwich
from octavo.ops.operands import Heads

HF: Final = Layout(
    surplus=KV_SHARING,
    renames=(
        (r"\.experts\.", ".mlp.experts."), (r"\.router\.proj\.", ".mlp.gate."),
        (r"\.router\.scale$", ".mlp.gate.norm.weight"), (r"\.layer_scalar$", ".layer_scalar.weight"),
        (r"\.router\.per_expert_scale$", ".mlp.gate.per_expert_scale.weight"),
    ),
    splits=STACKED_EXPERTS,
)  # fmt: skip
GGUF: Final = Layout(
    surplus=KV_SHARING,
    renames=((r"_(inp|exps)\.scale$", r"_\1.scale.weight"),),
    splits=(
        Split(r"(blk\.\d+\.ffn_)gate_up_exps\.weight", (r"\1gate_exps.#.weight", r"\1up_exps.#.weight"), "stack"),
        Split(r"(blk\.\d+\.ffn_(?:gate|up|down)_exps)\.weight", (r"\1.#.weight",), "stack"),
    ),
)
_DEFAULTS: Final[dict[str, Any]] = {
    "vocab_size": 262_144, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072, "sliding_window": 512, "tie_word_embeddings": True,
    "vocab_size_per_layer_input": 262_144,
}  # fmt: skip
_ROPES: Final[dict[str, dict[str, Any]]] = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}


def spec(config: ConfigReader) -> ModelSpec:
    # Null means none here; only where the key is absent does the default hold.
    input_size = 256
    if config.has("hidden_size_per_layer_input"):
        input_size = config.integer("hidden_size_per_layer_input", 0, low=0)
    config = config.merged(_DEFAULTS)
    # What images see of each other makes no difference to text.
    config.refuse_unless("use_bidirectional_attention", ("vision",))
    num_layers = config.integer("num_hidden_layers", high=MAX_LAYERS)
    common = read_common(
        config.without("rope_parameters", "num_experts"), activation_key="hidden_activation", has_experts=True
    )
    windows = layer_windows(config, num_layers, pattern=6)
    windows = (*windows[:-1], 0)  # the last layer is full, whatever the configuration says
    heads = _layer_heads(config, common.heads, windows)
    num_shared = config.integer("num_kv_shared_layers", 0, num_layers - 1, low=0)
    sources = shared_kv_layers(config, windows, num_shared)
    ropes = config.section("rope_parameters").merged(_ROPES)
    bias, v_is_k = config.flag("attention_bias", False), config.flag("attention_k_eq_v", False)
    widens, experts = config.flag("use_double_wide_mlp", False), _experts(config, common.activation)

    def layer(number: int) -> ScaledSandwich:
        window, source, own = windows[number], sources[number], heads[number]
        flat = ropes.section("sliding_attention" if window else "full_attention")
        size = common.intermediate_size * (2 if widens and source is not None else 1)
        mlp = GatedMLP(size=size, activation=common.activation)
        return ScaledSandwich(
            norm=common.norm,
            attention=Attention(
                heads=own, rope=head_rope(flat, own.head_dim, common.max_position_embeddings), window=window, scale=1.0,
                qk_norm=common.norm, v_norm=NormSpec(eps=common.norm.eps, has_weight=False), kv_from=source, bias=bias,
                o_bias=bias, v_is_k=v_is_k and not window,
            ),
            mlp=mlp if experts is None else GemmaExperts(mlp=mlp, experts=experts, norm=common.norm),
            layer_input=LayerInput(number=number, size=input_size, activation=common.activation, norm=common.norm)
            if input_size else None,
        )  # fmt: skip

    num_rows = config.integer("vocab_size_per_layer_input")
    inputs = LayerInputs(
        num_layers=num_layers, size=input_size, num_rows=num_rows, is_partial=num_rows < common.vocab_size,
        norm=common.norm,
    )  # fmt: skip
    return common.decoder(
        [layer(number) for number in range(num_layers)],
        before=(inputs,) if input_size else (),
        embedding_scale=common.hidden_size**0.5,
        logit_softcap=config.bound("final_logit_softcapping"),
    )


def _layer_heads(config: ConfigReader, heads: Heads, windows: tuple[int, ...]) -> list[Heads]:
    """Of each layer; newer files say which layers differ by how, older ones what full layers have."""
    full: dict[str, Any] = {"head_dim": config.integer("global_head_dim", 512, MAX_HEAD_DIM)}
    if config.flag("attention_k_eq_v", False) and config.get("num_global_key_value_heads") is not None:
        full["num_key_value_heads"] = config.integer("num_global_key_value_heads")
    listed = config.get("per_layer_config") is not None
    changes, found = config.section("per_layer_config"), []
    for number, window in enumerate(windows):
        own = ConfigReader({} if window or listed else full, "config")
        if listed:
            own = changes.section(str(number))
            for key in own.unknown_keys(("head_dim", "num_key_value_heads")):
                raise own.fail(key, "cannot differ from layer to layer")
        num_kv_heads = own.integer("num_key_value_heads", heads.num_kv_heads)
        head_dim = own.integer("head_dim", heads.head_dim, MAX_HEAD_DIM)
        if heads.num_heads % num_kv_heads or head_dim % 2:
            raise own.fail("num_key_value_heads", f"does not divide the {heads.num_heads} heads, or their size is odd")
        found.append(replace(heads, num_kv_heads=num_kv_heads, head_dim=head_dim))
    return found


def _experts(config: ConfigReader, activation: Any) -> MixtureOfExperts | None:
    if not config.flag("enable_moe_block", False):
        return None
    num_experts = config.integer("num_experts", high=MAX_EXPERTS)
    return MixtureOfExperts(
        num_experts=num_experts, top_k=config.integer("top_k_experts", high=num_experts),
        size=config.integer("moe_intermediate_size"), activation=activation, has_scales=True,
    )  # fmt: skip
