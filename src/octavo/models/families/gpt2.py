"""GPT-2: learned positions, layer norms and biases everywhere, a plain MLP."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.layout import QKV, Layout
from octavo.models.spec import ModelSpec

NAMES: Final = {
    "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
    "intermediate_size": "n_inner", "max_position_embeddings": "n_positions", "rms_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
}  # fmt: skip
DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "max_position_embeddings": 1024,
}  # fmt: skip
HF: Final = Layout(
    # Masks, which the attention has built in.
    ignored=(r".*\.attn\.bias", r".*\.attn\.masked_bias"),
    renames=(
        (r"^transformer\.", ""), (r"^wte\.", "model.embed_tokens."), (r"^wpe\.", "model.embed_positions."),
        (r"^ln_f\.", "model.norm."), (r"^h\.", "model.layers."), (r"\.ln_1\.", ".input_layernorm."),
        (r"\.ln_2\.", ".post_attention_layernorm."), (r"\.attn\.c_attn\.", ".self_attn.qkv."),
        (r"\.attn\.c_proj\.", ".self_attn.o_proj."), (r"\.mlp\.c_fc\.", ".mlp.up_proj."),
        (r"\.mlp\.c_proj\.", ".mlp.down_proj."),
    ),
    transposed=r".*\.(qkv|o_proj|up_proj|down_proj)\.weight",
    splits=(QKV,),
)  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(**NAMES)
    refuse_options(config)
    hidden = config.integer("hidden_size")
    common = read_common(config.with_defaults({**DEFAULTS, "intermediate_size": 4 * hidden}))
    common = common.with_norm(kind="layer", bias=True)
    mlp = MLP(size=common.intermediate_size, activation=common.activation, bias=True)
    layer = llama_layer(common, mlp=mlp, rope=None, bias=True, o_bias=True)
    return common.decoder([layer] * common.num_layers, learned_positions=True)


def refuse_options(config: ConfigReader) -> None:
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        config.refuse_unless(key, (False,))
    config.refuse_unless("scale_attn_weights", (True,))
