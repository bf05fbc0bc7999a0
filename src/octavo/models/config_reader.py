"""Typed access to a checkpoint's configuration. Nothing in it is trusted: a wrong value is a `CheckpointError`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Final, cast

from octavo.base.errors import CheckpointError
from octavo.models.spec import RopeKind, RopeSpec

#: Above any real model, and low enough that no product of them is a problem.
MAX_SIZE: Final = 1 << 24
MAX_LAYERS: Final = 1024
MAX_HEAD_DIM: Final = 512
MAX_POSITIONS: Final = 1 << 24
#: Of a convolution.
MAX_TAPS: Final = 8
#: Of a scan: numbers of a channel's state.
MAX_STATE_SIZE: Final = 256

#: Keys of rope parameters, by kind. Any other key that is set asks for something that we do not do.
# fmt: off
_ROPE_KEYS: Final[dict[str, frozenset[str]]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor", "original_max_position_embeddings"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
    "yarn": frozenset({
        "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate",
        "mscale", "mscale_all_dim", "finetuned",
    }),
    "factors": frozenset({"factors"}),
    "proportional": frozenset({"factor"}),
    "longrope": frozenset(
        {"short_factor", "long_factor", "original_max_position_embeddings", "attention_factor", "factor"}
    ),
}
# fmt: on
#: The sections of mrope say which part of a position turns which pairs: of a text's token the three parts are equal.
_ROPE_COMMON: Final = frozenset(
    {"rope_theta", "rope_type", "type", "partial_rotary_factor", "mrope_section", "mrope_interleaved"}
)
_ROPE_NAMES: Final = {"su": "longrope", "mrope": "default"}  # older files', and of models that also see images


class ConfigReader:
    """One mapping of the configuration; `place` names it in messages."""

    def __init__(self, values: dict[str, Any], place: str = "config", aliases: Mapping[str, str] | None = None) -> None:
        """`aliases`: what a family calls a key."""
        self._values = values
        self._place = place
        self._aliases = aliases or {}

    def aliased(self, **aliases: str) -> ConfigReader:
        """This mapping where also the family's own name of a key is one: key=name."""
        return ConfigReader(self._values, self._place, {**self._aliases, **aliases})

    def _own(self, key: str) -> str:
        """The name under which the mapping has a key."""
        return key if self._values.get(key) is not None else self._aliases.get(key, key)

    def fail(self, key: str, why: str) -> CheckpointError:
        return CheckpointError(f"{self._place}: {self._own(key)} = {str(self.get(key))[:80]!r} {why}")

    def get(self, key: str) -> Any:
        return self._values.get(self._own(key))

    def integer(self, key: str, default: int | None = None, high: int = MAX_SIZE, low: int = 1) -> int:
        """A whole number from `low` to `high`; `default` where the key is absent or null."""
        value = self.get(key)
        if value is None:
            value = default
        if type(value) is not int or not low <= value <= high:
            raise self.fail(key, f"is not a whole number from {low} to {high}")
        return value

    def number(self, key: str, default: float | None = None, low: float = 0.0) -> float:
        """A finite number above `low`."""
        value = self.get(key)
        if value is None:
            value = default
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= low:
            raise self.fail(key, f"is not a number above {low:g}")
        return float(value)

    def bound(self, key: str) -> float:
        """A finite number above 0; 0.0 where the key is absent or null: there is none."""
        return 0.0 if self.get(key) is None else self.number(key)

    def factors(self, key: str, count: int) -> tuple[float, ...]:
        """So many positive finite numbers; ones where the key is absent or null."""
        factors = (1.0,) * count if self.get(key) is None else self.numbers(key)
        if len(factors) != count:
            raise self.fail(key, f"is not a list of {count} numbers")
        return factors

    def sizes(self, key: str, count: int) -> list[int]:
        """`count` sizes: a list of them, or one for all."""
        values = self.get(key)
        if not isinstance(values, list):
            return [self.integer(key)] * count
        if len(values) != count or not all(type(value) is int and 1 <= value <= MAX_SIZE for value in values):
            raise self.fail(key, f"is not a list of {count} sizes")
        return values

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of positive finite numbers."""
        values = self.get(key)
        if not isinstance(values, list) or not all(
            type(v) in (int, float) and math.isfinite(v) and v > 0 for v in values
        ):
            raise self.fail(key, "is not a list of positive numbers")
        return tuple(float(value) for value in values)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(key, "is neither true nor false")
        return value

    def layer_kinds(self, num_layers: int, known: Collection[str], key: str = "layer_types") -> list[str]:
        """One of the kinds `known` a layer."""
        given = self.get(key)
        if not isinstance(given, list) or len(given) != num_layers:
            raise self.fail(key, f"is not a list of {num_layers} layers")
        for kind in given:
            if not isinstance(kind, str) or kind not in known:
                raise CheckpointError(f"{self._place}: {key}: {str(kind)[:40]!r} is not supported")
        return given

    def section(self, key: str) -> ConfigReader:
        """The mapping under `key`, empty if absent."""
        value = self.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.fail(key, "is not a mapping")
        return ConfigReader(value, f"{self._place}: {key}")

    def refuse_unless(self, key: str, allowed: Collection[Any]) -> None:
        """An option that is implemented for the values `allowed` only; absent and null always pass."""
        value = self.get(key)
        if value is not None and value not in allowed:
            raise self.fail(key, "is not supported")

    def merged(self, values: dict[str, Any]) -> ConfigReader:
        """This mapping with `values` below it: what it says itself wins, but for null."""
        return self.replaced(**{key: value for key, value in values.items() if self._values.get(key) is None})

    def with_defaults(self, defaults: dict[str, Any]) -> ConfigReader:
        """This mapping with `defaults` where it says nothing or null, be it under a family's own name."""
        return self.merged({key: value for key, value in defaults.items() if self.get(key) is None})

    def replaced(self, **values: Any) -> ConfigReader:
        """This mapping with `values` above it: what they say wins."""
        return ConfigReader({**self._values, **values}, self._place, self._aliases)

    def without(self, *keys: str) -> ConfigReader:
        return ConfigReader(
            {key: value for key, value in self._values.items() if key not in keys}, self._place, self._aliases
        )

    def has(self, key: str) -> bool:
        """Whether the key is there, be it with null."""
        return key in self._values

    def unknown_keys(self, known: Collection[str]) -> list[str]:
        return sorted(key for key, value in self._values.items() if value is not None and key not in known)


def flat_rope(config: ConfigReader, default_theta: float = 10_000.0) -> ConfigReader:
    """The rope parameters of a configuration, be it in the form of transformers 5 (`rope_parameters`, which holds
    theta) or in the older one (`rope_theta` and `rope_scaling`)."""
    section = config.section("rope_scaling" if config.get("rope_parameters") is None else "rope_parameters")
    theta = config.get("rope_theta")
    common = {
        "rope_theta": default_theta if theta is None else theta,
        "partial_rotary_factor": config.get("partial_rotary_factor"),
    }
    if section.get("long_factor") is not None:  # stands beside the section
        common["original_max_position_embeddings"] = config.get("original_max_position_embeddings")
    return section.merged(common)


def read_rope(rope: ConfigReader, max_positions: int) -> RopeSpec:
    """A `RopeSpec` from flat rope parameters. An unknown kind or key is refused by name."""
    key = "type" if rope.get("rope_type") is None else "rope_type"
    kind = "default" if rope.get(key) is None else rope.get(key)
    kind = _ROPE_NAMES.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        raise rope.fail(key, "is a rope scaling that is not supported")
    # Written for some default ropes too, without a meaning there.
    harmless = {"factor", "original_max_position_embeddings"} if kind == "default" else {"max_position_embeddings"}
    for unknown in rope.unknown_keys(_ROPE_COMMON | _ROPE_KEYS[kind] | harmless):
        raise rope.fail(unknown, "is a rope option that is not supported")
    theta = rope.number("rope_theta")
    if kind == "default":
        return RopeSpec(theta=theta)
    if kind == "factors":
        return RopeSpec(theta=theta, kind="factors", factors=rope.numbers("factors"))
    if kind == "longrope":
        return _longrope(rope, max_positions)
    if kind == "proportional":
        share = rope.number("partial_rotary_factor", 1.0)
        if share > 1:
            raise rope.fail("partial_rotary_factor", "is above 1")
        return RopeSpec(theta=theta, kind="proportional", factor=rope.number("factor", 1.0), share=share)
    factor = rope.number("factor")
    if kind == "linear":
        return RopeSpec(theta=theta, kind="linear", factor=factor)
    original = rope.integer("original_max_position_embeddings", max_positions, MAX_POSITIONS)
    if kind == "dynamic":
        if not 1 <= factor <= MAX_POSITIONS:
            raise rope.fail("factor", f"is not between 1 and {MAX_POSITIONS}")
        return RopeSpec(theta=theta, kind="dynamic", factor=factor, original_max_position_embeddings=original)
    if kind == "llama3":
        low, high = rope.number("low_freq_factor", 1.0), rope.number("high_freq_factor", 4.0)
        if low > high:
            raise rope.fail("high_freq_factor", f"is below low_freq_factor {low:g}")
        return RopeSpec(
            theta=theta,
            kind="llama3",
            factor=factor,
            original_max_position_embeddings=original,
            low_freq_factor=low,
            high_freq_factor=high,
        )
    return RopeSpec(
        theta=theta,
        kind=cast(RopeKind, kind),
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        attention_factor=rope.number("attention_factor", _yarn_attention_factor(rope, factor)),
        truncate=rope.flag("truncate", True),
    )


def yarn_mscale(factor: float, mscale: float) -> float:
    """By how much scores or rotations grow with the factor by which a context was stretched."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn_attention_factor(rope: ConfigReader, factor: float) -> float:
    """What is left for the rotations where scores grow, too."""
    mscale, all_dim = (rope.number(key, 0.0, low=-1.0) for key in ("mscale", "mscale_all_dim"))
    if mscale and all_dim:
        return yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
    return yarn_mscale(factor, 1.0)


def _longrope(rope: ConfigReader, max_positions: int) -> RopeSpec:
    original = rope.integer("original_max_position_embeddings", max_positions, MAX_POSITIONS)
    factor = max_positions / original
    scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return RopeSpec(
        theta=rope.number("rope_theta"),
        kind="longrope",
        factors=rope.numbers("short_factor"),
        long_factors=rope.numbers("long_factor"),
        original_max_position_embeddings=original,
        attention_factor=rope.number("attention_factor", scale),
    )
