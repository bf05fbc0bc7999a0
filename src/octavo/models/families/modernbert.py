"""ModernBERT: norms in front of attention and MLP, no biases, and in two layers of three a window to both sides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from octavo.models.blocks import Attention, Block, GatedMLP, Layer, Sequential
from octavo.models.builder import Builder
from octavo.models.common import layer_ropes, read_common, windows_of_types
from octavo.models.config_reader import MAX_LAYERS, MAX_POSITIONS, ConfigReader
from octavo.models.layout import GATE_UP, GGUF_GATE_UP, GGUF_QKV, QKV, Layout
from octavo.models.pooling import classes_of
from octavo.models.spec import HeadActivation, HeadSpec, ModelSpec, NormSpec, PoolingSpec
from octavo.ops.operands import Buffer
from octavo.ops.operations import Add

HF: Final = Layout(
    ignored=(r"decoder\..*",),
    renames=(
        (r"^(?=(embeddings|layers|final_norm)\.)", "model."),
        (r"^model\.embeddings\.tok_embeddings\.", "model.embed_tokens."),
        (r"^model\.embeddings\.norm\.", "model.embed_norm."), (r"^model\.final_norm\.", "model.norm."),
        (r"\.attn_norm\.", ".input_layernorm."), (r"\.mlp_norm\.", ".post_attention_layernorm."),
        (r"\.attn\.Wqkv\.", ".self_attn.qkv."), (r"\.attn\.Wo\.", ".self_attn.o_proj."),
        (r"\.mlp\.Wi\.", ".mlp.gate_up_proj."), (r"\.mlp\.Wo\.", ".mlp.down_proj."),
    ),
    splits=(QKV, GATE_UP),
)  # fmt: skip
GGUF: Final = Layout(splits=(GGUF_QKV, GGUF_GATE_UP))
#: Of the head of masked tokens and of classes.
_UNUSED: Final = (r"head\..*", r"classifier\..*")
_DEFAULTS: Final[dict[str, Any]] = {
    "max_position_embeddings": 8192, "local_attention": 128, "norm_eps": 1e-5, "hidden_activation": "gelu",
    "classifier_activation": "gelu", "classifier_pooling": "cls",
}  # fmt: skip
_GLOBAL_THETA: Final = 160_000.0
_LOCAL_THETA: Final = 10_000.0
_EVERY: Final = 3
_HEAD_ACTIVATIONS: Final[dict[str, HeadActivation]] = {"gelu": "gelu", "silu": "silu", "relu": "relu"}


@dataclass(frozen=True, kw_only=True)
class FirstLayer:
    """`Sequential`, whose attention has no norm in front: what it reads was normed already."""

    attention: Block
    mlp: Block
    norm: NormSpec

    def emit(self, build: Builder, residual: Buffer) -> None:
        build.ops.append(Add(residual=residual, x=self.attention.emit(build, residual)))
        x = build.norm(residual, self.norm, "post_attention_layernorm", "ffn_norm")
        build.ops.append(Add(residual=residual, x=self.mlp.emit(build, x)))


def spec(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(_DEFAULTS)
    common = read_common(config.without("rope_parameters", "rope_scaling"), activation_key="hidden_activation")
    thetas = config.number("global_rope_theta", _GLOBAL_THETA), config.number("local_rope_theta", _LOCAL_THETA)
    rope, local_rope = layer_ropes(config, common, *thetas)
    norm = NormSpec(eps=config.number("norm_eps"), kind="layer", bias=config.flag("norm_bias", False))
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    mlp = GatedMLP(size=common.intermediate_size, activation=common.activation, bias=mlp_bias)

    def layer(number: int, window: int) -> Layer:
        attention = Attention(
            heads=common.heads, rope=local_rope if window else rope, window=window, causal=False, bias=bias,
            o_bias=bias, scale=common.heads.head_dim**-0.5,
        )  # fmt: skip
        kind = Sequential if number else FirstLayer
        return kind(attention=attention, mlp=mlp, norm=norm)

    classes = _classes(config, norm)
    windows = _windows(config, common.num_layers)
    return common.decoder(
        [layer(number, window) for number, window in enumerate(windows)],
        norm=norm,
        embedding_norm=norm,
        bidirectional=True,
        pooling=PoolingSpec(kind="cls") if classes is None else classes,
        unused=_UNUSED if classes is None else (),
    )


def _windows(config: ConfigReader, num_layers: int) -> tuple[int, ...]:
    """Half of `local_attention` to each side, in all layers but every so many."""
    window = config.integer("local_attention", high=MAX_POSITIONS) // 2 + 1
    windows = windows_of_types(config, num_layers, window)
    every = config.integer("global_attn_every_n_layers", _EVERY, MAX_LAYERS)
    return windows or tuple(window if number % every else 0 for number in range(num_layers))


def _classes(config: ConfigReader, norm: NormSpec) -> PoolingSpec | None:
    activation = _HEAD_ACTIVATIONS.get(str(config.get("classifier_activation")))
    if activation is None:
        raise config.fail("classifier_activation", "is not supported")
    head = HeadSpec(
        name="head.dense", gguf="cls", size=config.integer("hidden_size"), bias=config.flag("classifier_bias", False),
        activation=activation, norm=norm, norm_name="head.norm", norm_gguf="cls.norm",
    )  # fmt: skip
    made = classes_of(config, HeadSpec(name="classifier", gguf="cls.output", size=1), (head,))
    config.refuse_unless("classifier_pooling", ("cls", "mean"))
    return made if made is None or config.get("classifier_pooling") == "cls" else replace(made, kind="mean")
