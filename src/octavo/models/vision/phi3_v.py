"""Phi-3-V and 3.5-V: CLIP's tower over tiles and the whole, squares of patches are one row, and learned rows stand at
the ends of lines and between tiles and whole, all in front of the projector."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.config_reader import ConfigReader
from octavo.models.spec import ModelSpec, ProjectorSpec, TowerSpec
from octavo.models.tower import ROOM
from octavo.models.vision.llava import CLIP_LARGE
from octavo.models.vision.vit import RENAMES, vit

_PLACE: Final = r"^model\.vision_embed_tokens\."
HF: Final = (
    (rf"{_PLACE}img_processor\.(vision_model\.)?", f"{ROOM}."),
    *RENAMES,
    (rf"{_PLACE}img_projection\.0\.", f"{ROOM}.projector.up."),
    (rf"{_PLACE}img_projection\.2\.", f"{ROOM}.projector.down."),
    (rf"{_PLACE}sub_GN$", f"{ROOM}.separators.0"),
    (rf"{_PLACE}glb_GN$", f"{ROOM}.separators.1"),
    (rf"{_PLACE}", f"{ROOM}."),
)
#: The embedding of tokens, a second time.
_DOUBLE: Final = rf"{ROOM}\.wte\..*"
#: What the configuration names by its repository alone.
CLIP: Final[dict[str, Any]] = dict(CLIP_LARGE)
#: What models were released with; nothing else is implemented.
_PROCESSOR: Final = {"name": "clip_vision_model", "layer_idx": -2, "type_feature": "patch"}
_EMBEDDING: Final = {
    "embedding_cls": "image", "hd_transform_order": "sub_glb", "projection_cls": "mlp", "use_hd_transform": True,
    "with_learnable_separator": True,
}  # fmt: skip


def tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    processor, embedding = config.section("img_processor"), config.section("embd_layer")
    for key, only in _PROCESSOR.items():
        processor.refuse_unless(key, (only,))
    for key, only in _EMBEDDING.items():
        if embedding.get(key) != only:
            raise embedding.fail(key, f"is not {only!r}, and nothing else is supported")
    made, unused = vit(
        ConfigReader(dict(CLIP), "config: img_processor"),
        "clip_vision_model",
        ProjectorSpec(inner_size=text.hidden_size),
        num_layers=CLIP["num_hidden_layers"] - 1,
        has_post_norm=False,
        merge=4,
    )
    return replace(made, num_separators=2), (*unused, _DOUBLE)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "model_type": "phi3", "img_processor": None, "embd_layer": None, "auto_map": None}
