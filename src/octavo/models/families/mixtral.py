"""Mixtral: Mistral with a mixture of experts in place of the MLP."""

from __future__ import annotations

from typing import Final

from octavo.models.common import read_common, read_experts, read_window, with_local_experts
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.layout import GGUF_EXPERTS, Layout
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
    splits=(GGUF_EXPERTS,),
)


def spec(config: ConfigReader) -> ModelSpec:
    config = with_local_experts(config).with_defaults({"num_experts": 8, "num_experts_per_tok": 2})
    common = read_common(config, has_experts=True)
    layer = llama_layer(common, mlp=read_experts(config, common), window=read_window(config))
    return common.decoder([layer] * common.num_layers)
