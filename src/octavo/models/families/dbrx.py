"""DBRX: layer norms without biases, bounded q, k and v, and sixteen experts of which a token meets four."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.common import read_common, read_experts
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.layout import GGUF_EXPERTS, GGUF_QKV, QKV, Layout, Split
from octavo.models.spec import ModelSpec

_NAMES: Final = {
    "hidden_size": "d_model", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers",
    "max_position_embeddings": "max_seq_len",
}  # fmt: skip
HF: Final = Layout(
    renames=(
        (r"^transformer\.blocks\.", "model.layers."), (r"^transformer\.wte\.", "model.embed_tokens."),
        (r"^transformer\.norm_f\.", "model.norm."), (r"\.norm_attn_norm\.norm_1\.", ".input_layernorm."),
        (r"\.norm_attn_norm\.norm_2\.", ".post_attention_layernorm."), (r"\.norm_attn_norm\.attn\.", ".self_attn."),
        (r"\.Wqkv\.", ".qkv."), (r"\.out_proj\.", ".o_proj."), (r"\.ffn\.router\.layer\.", ".mlp.gate."),
        (r"\.ffn\.experts\.mlp\.w1$", ".mlp.experts.gate"), (r"\.ffn\.experts\.mlp\.v1$", ".mlp.experts.up"),
        (r"\.ffn\.experts\.mlp\.w2$", ".mlp.experts.down"),
    ),
    transposed=r".*\.experts\.down",
    splits=(
        QKV,
        Split(r"(.*\.experts)\.(gate|up|down)", (r"\1.#.\2_proj.weight",), "stack"),
    ),
)  # fmt: skip
GGUF: Final = Layout(
    renames=((r"\.attn_output_norm\.", ".ffn_norm."),),
    splits=(GGUF_QKV, GGUF_EXPERTS),
)


def spec(config: ConfigReader) -> ModelSpec:
    attention, experts = config.section("attn_config"), config.section("ffn_config")
    # Weights of experts are divided by their sum, which is their norm of this order.
    experts.refuse_unless("moe_normalize_expert_weights", (1, 1.0))
    experts.section("ffn_act_fn").refuse_unless("name", ("silu",))
    moved: dict[str, Any] = {
        "num_key_value_heads": attention.get("kv_n_heads"), "rope_theta": attention.get("rope_theta"),
        "intermediate_size": experts.integer("ffn_hidden_size"), "num_experts": experts.get("moe_num_experts"),
        "num_experts_per_tok": experts.get("moe_top_k"), "hidden_act": "silu", "rms_norm_eps": 1e-5,
    }  # fmt: skip
    config = config.aliased(moe_intermediate_size="intermediate_size", **_NAMES)
    config = config.with_defaults({key: value for key, value in moved.items() if value is not None})
    common = read_common(config, has_experts=True).with_norm(kind="layer")
    layer = llama_layer(common, mlp=read_experts(config, common), clip=attention.bound("clip_qkv"))
    return common.decoder([layer] * common.num_layers)
