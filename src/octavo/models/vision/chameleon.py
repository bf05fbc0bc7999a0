"""Chameleon: the encoder of a VQ-VAE makes of a picture codes, which are tokens of the vocabulary."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.codes import NUM_GROUPS
from octavo.models.config_reader import ConfigReader
from octavo.models.families.chameleon import code_tokens
from octavo.models.spec import CodesSpec, ModelSpec, TowerSpec
from octavo.models.tower import CODES

HF: Final = ((r"^model\.vqmodel\.", f"{CODES}."),)
_UNUSED: Final = (rf"{CODES}\.(post_quant_conv|decoder|loss)\..*",)
_DEFAULTS: Final[dict[str, Any]] = {
    "embed_dim": 256, "num_embeddings": 8192, "latent_channels": 256, "resolution": 512, "base_channels": 128,
    "channel_multiplier": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_type": "vanilla",
}  # fmt: skip


def tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    codes = _codes(config)
    return TowerSpec(
        patch_values=3 * codes.side**2,  # a picture is one patch
        hidden_size=text.hidden_size,
        num_positions=0,
        layers=(),
        is_projected=False,
        codes=codes,
    ), _UNUSED


def text_config(config: dict[str, Any]) -> Any:
    """Files have both parts in one."""
    found = config.get("text_config")
    return {**config, "model_type": "chameleon"} if found is None else found


def _codes(config: ConfigReader) -> CodesSpec:
    tokens = code_tokens(config)
    config = config.section("vq_config").with_defaults(_DEFAULTS)
    config.refuse_unless("in_channels", (3,))
    config.refuse_unless("double_latent", (False,))
    config.refuse_unless("attn_type", ("vanilla", "none"))
    factors, base = config.get("channel_multiplier"), config.integer("base_channels")
    if not isinstance(factors, list) or not factors or not all(type(each) is int and each > 0 for each in factors):
        raise config.fail("channel_multiplier", "is not a list of whole numbers")
    if base % NUM_GROUPS:
        raise config.fail("base_channels", f"is not in {NUM_GROUPS} groups")
    side, attended = config.integer("resolution", high=4096), config.get("attn_resolutions") or []
    if side % 2 ** (len(factors) - 1):
        raise config.fail("resolution", f"cannot be halved {len(factors) - 1} times")
    attends = config.get("attn_type") == "vanilla"
    number = config.integer("num_embeddings")
    if missing := [code for code in range(number) if code not in tokens]:
        raise config.fail("num_embeddings", f"is more than vocabulary_map has: the code {missing[0]} has no token")
    return CodesSpec(
        side=side,
        code_size=config.integer("embed_dim"),
        latent_channels=config.integer("latent_channels"),
        base_channels=base,
        multipliers=tuple(factors),
        num_blocks=config.integer("num_res_blocks"),
        attended=frozenset(level for level in range(len(factors)) if attends and side >> level in attended),
        attends_last=attends,
        token_ids=tuple(tokens[code] for code in range(number)),
    )
