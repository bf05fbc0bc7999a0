"""DeciLM and Nemotron-NAS: Llama, whose layers differ in heads of keys and values and in the MLP, or lack one."""

from __future__ import annotations

import math
from dataclasses import replace

from octavo.models.blocks import Attention, GatedMLP, Sequential
from octavo.models.common import Common, read_common
from octavo.models.config_reader import MAX_LAYERS, ConfigReader
from octavo.models.spec import ModelSpec

_Sizes = list[tuple[int, int]]  # of each layer: heads of keys and values, and the size of the MLP; 0: it has none
_STEP = 256  # sizes of MLPs are multiples of it


def spec(config: ConfigReader) -> ModelSpec:
    sizes = _nas_sizes(config) if config.get("block_configs") is not None else _listed_sizes(config)
    kv_heads = {count for count, _ in sizes if count}
    if not kv_heads:
        raise config.fail("num_hidden_layers", "layers are without attention")
    uniform = {"num_key_value_heads": math.lcm(*kv_heads), "intermediate_size": max(size for _, size in sizes) or 1}
    common = read_common(config.replaced(**uniform))
    return common.decoder([_layer(common, *each) for each in sizes])


def _layer(common: Common, num_kv_heads: int, size: int) -> Sequential:
    attention = mlp = None
    if num_kv_heads:
        attention = Attention(
            heads=replace(common.heads, num_kv_heads=num_kv_heads), rope=common.rope, scale=common.heads.head_dim**-0.5
        )  # fmt: skip
    if size:
        mlp = GatedMLP(size=size, activation=common.activation)
    return Sequential(attention=attention, mlp=mlp, norm=common.norm)


def _listed_sizes(config: ConfigReader) -> _Sizes:
    num_layers = config.integer("num_hidden_layers", high=MAX_LAYERS)
    heads, sizes = config.get("num_key_value_heads_per_layer"), config.get("intermediate_size_per_layer")
    heads = [config.integer("num_key_value_heads")] * num_layers if heads is None else heads
    sizes = [config.integer("intermediate_size")] * num_layers if sizes is None else sizes
    for key, values in (("num_key_value_heads_per_layer", heads), ("intermediate_size_per_layer", sizes)):
        if (
            not isinstance(values, list)
            or len(values) != num_layers
            or any(type(v) is not int or v < 0 for v in values)
        ):
            raise config.fail(key, f"is not a list of sizes for {num_layers} layers")
    return list(zip(heads, sizes, strict=True))


def _nas_sizes(config: ConfigReader) -> _Sizes:
    blocks, num_layers = config.get("block_configs"), config.integer("num_hidden_layers", high=MAX_LAYERS)
    if (
        not isinstance(blocks, list)
        or len(blocks) != num_layers
        or not all(isinstance(block, dict) for block in blocks)
    ):
        raise config.fail("block_configs", f"is not a list of {num_layers} blocks")
    num_heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
    sizes: _Sizes = []
    for number, block in enumerate(blocks):
        reader = ConfigReader(block, f"config: block_configs.{number}")
        attention, ffn = reader.section("attention"), reader.section("ffn")
        for part in (attention, ffn):
            part.refuse_unless("replace_with_linear", (False,))
            part.refuse_unless("sparsify", ())
        attention.refuse_unless("window_length", ())
        attention.refuse_unless("num_sink_tokens", ())
        kv_heads = size = 0
        if not attention.flag("no_op", False):
            group = attention.integer("n_heads_in_group", high=num_heads)
            if num_heads % group:
                raise attention.fail("n_heads_in_group", f"does not divide the {num_heads} heads")
            kv_heads = num_heads // group
        if not ffn.flag("no_op", False):
            size = math.ceil(int(2 * ffn.number("ffn_mult") * hidden / 3) / _STEP) * _STEP
        sizes.append((kv_heads, size))
    return sizes
