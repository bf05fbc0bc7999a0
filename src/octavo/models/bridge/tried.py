"""Families of transformers that octavo has none of its own for, and that its tests run by way of it on tiny random
models: model_type -> what is special about them."""

from __future__ import annotations

from typing import Final

TRIED: Final[dict[str, str]] = {
    "afmoe": "experts, windows, gated attention",
    "cwm": "windows",
    "diffllama": "two softmaxes a head",
    "dots1": "experts, shared experts",
    "flex_olmo": "experts, norms of outputs",
    "granite_swa": "windows, sinks",
    "helium": "pairs side by side",
    "jais2": "layer norms, relu squared",
    "nanochat": "norms without weights, bounded logits",
    "solar_open": "experts, shared experts",
    "vaultgemma": "windows, norms around one, bounded scores",
    "biogpt": "learned positions, layer norms",
}
