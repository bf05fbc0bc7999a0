"""Mixtral: Mistral with a mixture of experts in place of the MLP."""

from __future__ import annotations

from typing import Final

from octavo.models.blocks import Attention, Sequential
from octavo.models.common import MAX_EXPERTS, read_common
from octavo.models.config_reader import MAX_POSITIONS, ConfigReader
from octavo.models.expert_blocks import MixtureOfExperts
from octavo.models.layout import Layout, Split
from octavo.models.spec import ModelSpec

HF: Final = Layout(
    renames=(
        (r"\.block_sparse_moe\.", ".mlp."), (r"\.w1\.", ".gate_proj."), (r"\.w2\.", ".down_proj."),
        (r"\.w3\.", ".up_proj."),
    ),
)  # fmt: skip
GGUF: Final = Layout(
    interleaved=True,
    renames=((r"(ffn_(?:gate|up|down))\.(\d+)\.weight$", r"\1_exps.\2.weight"),),  # of older files
    splits=(Split(r"(blk\.\d+\.ffn_(?:gate|up|down)_exps)\.weight", (r"\1.#.weight",), "stack"),),
)


def spec(config: ConfigReader) -> ModelSpec:
    num_experts = config.integer("num_local_experts", 8, MAX_EXPERTS)
    common = read_common(config.without("num_local_experts"))
    window = 0 if config.get("sliding_window") is None else config.integer("sliding_window", high=MAX_POSITIONS)
    layer = Sequential(
        norm=common.norm,
        attention=Attention(heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, window=window),
        mlp=MixtureOfExperts(
            num_experts=num_experts, top_k=config.integer("num_experts_per_tok", 2, num_experts),
            size=common.intermediate_size, activation=common.activation,
        ),
    )  # fmt: skip
    return common.decoder([layer] * common.num_layers)
