"""Reads the files of adapters for one model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from octavo.base.config import LoraConfig
from octavo.models.adapters.fitting import Adapter, Fit, Fitting, ReadBase
from octavo.models.adapters.gguf import read_gguf
from octavo.models.adapters.peft import read_peft
from octavo.models.adapters.targets import targets
from octavo.models.decoder import Definition
from octavo.models.layout import STACKED_EXPERTS, Places
from octavo.models.registry import find_family


class AdapterReader:
    """Reads adapters for one model; from any thread."""

    def __init__(
        self,
        definition: Definition,
        config: Mapping[str, Any],
        base: Callable[[], ReadBase],
        limits: LoraConfig,
        dtype: torch.dtype | None,
        max_model_len: int,
    ) -> None:
        """`config`: the model's, in Hugging Face's form. `base` opens the model's files. `dtype`: of the adapters'
        matrices; None: as they are stored."""
        family = find_family(dict(config), "the model")
        tensors = definition.tensors.values()
        # Adapters name modules as they are in memory, where experts are stacked whatever the model's files have.
        in_memory = replace(family.hf, splits=(*STACKED_EXPERTS, *family.hf.splits))
        self._places = {
            False: Places(in_memory, {tensor.name: tensor for tensor in tensors}),
            True: Places(family.gguf, {tensor.gguf: tensor for tensor in tensors}),
        }
        spec = definition.spec
        table = spec.vocab_size, spec.embedding_size or spec.hidden_size
        self._fit = Fit(
            targets=targets(definition),
            table=table,
            positions=spec.max_position_embeddings,
            max_model_len=max_model_len,
            is_tied=spec.tie_word_embeddings,
            limits=limits,
            dtype=dtype,
        )
        self._base = base

    def read(self, path: str) -> Adapter:
        """Raises CheckpointError, naming the tensor that does not fit."""
        place = Path(path)
        files = read_gguf(place) if place.suffix == ".gguf" else read_peft(place)
        return Fitting(self._fit, self._places[files.is_gguf], files, self._base).adapter()
