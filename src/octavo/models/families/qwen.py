"""Qwen 1: Llama with q, k and v in one matrix that has a bias, and an intermediate size that counts both halves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.common import read_common
from octavo.models.config_reader import MAX_POSITIONS, ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.layout import QKV, Layout
from octavo.models.spec import LogQScaleSpec, ModelSpec

_NAMES: Final = {
    "rms_norm_eps": "layer_norm_epsilon", "rope_theta": "rotary_emb_base", "head_dim": "kv_channels",
    "partial_rotary_factor": "rotary_pct",
}  # fmt: skip
_DEFAULTS: Final[dict[str, Any]] = {"hidden_act": "silu", "rms_norm_eps": 1e-6}
HF: Final = Layout(
    ignored=(r".*\.attn\.(bias|masked_bias)", r"transformer\.rotary_emb\.inv_freq"),
    renames=(
        (r"^transformer\.wte\.", "model.embed_tokens."), (r"^transformer\.ln_f\.", "model.norm."),
        (r"^transformer\.h\.", "model.layers."), (r"\.ln_1\.", ".input_layernorm."),
        (r"\.ln_2\.", ".post_attention_layernorm."), (r"\.attn\.c_attn\.", ".self_attn.qkv."),
        (r"\.attn\.c_proj\.", ".self_attn.o_proj."), (r"\.mlp\.w1\.", ".mlp.up_proj."),
        (r"\.mlp\.w2\.", ".mlp.gate_proj."), (r"\.mlp\.c_proj\.", ".mlp.down_proj."),
    ),
    splits=(QKV,),
)  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(**_NAMES)
    config.refuse_unless("no_bias", (True,))
    config.refuse_unless("partial_rotary_factor", (1, 1.0))
    config.refuse_unless("scale_attn_weights", (True,))
    size = config.integer("intermediate_size")
    if size % 2:
        raise config.fail("intermediate_size", "is odd")
    trained = longest = 0
    if config.get("seq_length") is not None:
        trained = config.integer("seq_length", high=MAX_POSITIONS, low=2)  # the base of a logarithm
        longest = config.integer("max_position_embeddings", trained, MAX_POSITIONS)
        config = config.replaced(max_position_embeddings=trained)
    common = read_common(config.with_defaults(_DEFAULTS).replaced(intermediate_size=size // 2))
    attention: dict[str, Any] = {"bias": True}
    stretches, scales = (config.flag(key, True) for key in ("use_dynamic_ntk", "use_logn_attn"))
    if longest > trained and (stretches or scales):
        # The model's own code goes by the length of a prompt: as elsewhere, how long sequences may get decides.
        rope = replace(common.rope, kind="steps", original_max_position_embeddings=trained)
        common = replace(common, max_position_embeddings=longest, rope=rope if stretches else common.rope)
        if scales:
            attention["q_scale"] = LogQScaleSpec(original_max_position_embeddings=trained)
    return common.decoder([llama_layer(common, **attention)] * common.num_layers, usual_positions=trained)
