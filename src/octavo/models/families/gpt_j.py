"""GPT-J: attention and MLP side by side behind one norm, pairs of the rotation side by side, a bias of the logits."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Parallel
from octavo.models.common import read_common
from octavo.models.config_reader import MAX_HEAD_DIM, ConfigReader
from octavo.models.families import gpt2
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec

_DEFAULTS: Final[dict[str, Any]] = {"hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "max_position_embeddings": 2048}
HF: Final = Layout(
    ignored=(r".*\.attn\.(bias|masked_bias|embed_positions)",),
    renames=(
        (r"^transformer\.wte\.", "model.embed_tokens."), (r"^transformer\.ln_f\.", "model.norm."),
        (r"^transformer\.h\.", "model.layers."), (r"\.ln_1\.", ".input_layernorm."),
        (r"\.attn\.out_proj\.", ".self_attn.o_proj."), (r"\.attn\.", ".self_attn."), (r"\.fc_in\.", ".up_proj."),
        (r"\.fc_out\.", ".down_proj."),
    ),
    interleaved=True,
)  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(**gpt2.NAMES)
    config.refuse_unless("tie_word_embeddings", (False,))
    hidden = config.integer("hidden_size")
    head_dim = max(1, hidden // config.integer("num_attention_heads"))
    share = config.integer("rotary_dim", min(64, head_dim), MAX_HEAD_DIM) / head_dim
    config = config.with_defaults({**_DEFAULTS, "intermediate_size": 4 * hidden, "partial_rotary_factor": share})
    common = read_common(config, rotates_in_part=True).with_norm(kind="layer", bias=True)
    layer = Parallel(
        norm=common.norm,
        shares_norm=True,
        attention=Attention(heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5),
        mlp=MLP(size=common.intermediate_size, activation=common.activation, bias=True),
    )
    return common.decoder([layer] * common.num_layers, lm_head_bias=True)
