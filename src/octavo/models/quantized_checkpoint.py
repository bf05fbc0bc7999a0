"""A checkpoint whose matrices are quantized, each in several tensors, as one that has a `weight` for each module.

Whether a module is quantized is read off its tensors and not from lists of names: what was left as it was
(`modules_to_not_convert`, `ignore`, lm_head) comes as it is.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from octavo.base.config.engine import LoadQuantization
from octavo.base.errors import CheckpointError
from octavo.models.checkpoint import StoredCheckpoint, read_json
from octavo.quant.methods.parts import Method, Parts
from octavo.quant.methods.table import Floats, find_method
from octavo.quant.packed import QuantizedWeight

#: Where tools write, or wrote, what others have as `quantization_config`, and what they leave out of it.
_OTHER_FILES: Final = {
    "quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt",
}  # fmt: skip
#: quanto's library writes nothing but a list of modules.
_MODULES_OF_QUANTO: Final = "quanto_qmap.json"
_KEYS: Final = ("quantization_config", "compression_config")
#: Scales of a KV cache, which a cache of float8 takes (`kv_scales`), and of attention in float8, which octavo does not
#: have: it keeps what they would have rounded.
_IGNORED: Final = r".*\.(?:[qkv]_scale|[qkv]_zero_point|kv_scale|prob_output_scale|[kv]_proj\.output_scale)"


def quantization_config(directory: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """What a directory says of its weights; None: they are not quantized. Raises CheckpointError."""
    for key in _KEYS:
        found = config.get(key)
        if found:
            if not isinstance(found, dict):
                raise CheckpointError(f"{directory}: config: {key} is not a mapping")
            return found
    for file, method in _OTHER_FILES.items():
        if (directory / file).is_file():
            return {"quant_method": method, **read_json(directory / file)}
    if (directory / _MODULES_OF_QUANTO).is_file():
        return {"quant_method": "quanto", "modules": read_json(directory / _MODULES_OF_QUANTO)}
    return None


class QuantizedCheckpoint:
    """Names, shapes and types are those of the matrices; `quantization` counts them by kind."""

    #: Floats are brought to the configuration's type here: of quantized matrices nothing is rounded.
    dtype: Final = None
    naming: Final = "hf"

    def __init__(self, inner: StoredCheckpoint, quantization: dict[str, Any]) -> None:
        self.source = inner.source
        self.config = {key: value for key, value in inner.config.items() if key not in _KEYS}
        self._inner = inner
        with self._named():
            self._method: Method = find_method(quantization, inner.metadata)
        self.method: Final = self._method.name
        #: To what its matrices are quantized while they load, if the files have them as floats.
        self.online: LoadQuantization | None = self._method.name if isinstance(self._method, Floats) else None
        self._matrices: dict[str, Parts] = {}
        self._plain: list[str] = []
        self._sort_names()
        counts = Counter(f"{self.method} {self._bits(parts)} bits" for parts in self._matrices.values())
        self.quantization = ", ".join(f"{kind} x{count}" for kind, count in counts.most_common()) or "none"

    def _sort_names(self) -> None:
        """Finds the modules that are quantized; all other tensors are taken as they are."""
        endings = "|".join(re.escape(part) for part in sorted(self._method.parts, key=len, reverse=True))
        # The module ends at the first place where a part may begin: `weight` is one, and so is `weight.absmax`.
        pattern = re.compile(rf"(.+?)\.({endings})")
        modules: dict[str, dict[str, str]] = {}
        for name in self._inner.names():
            if match := pattern.fullmatch(name):
                modules.setdefault(match[1], {})[match[2]] = name
            elif not re.fullmatch(_IGNORED, name):
                self._plain.append(name)
        for module, names in modules.items():
            parts = Parts(module, {part: self._inner.raw(name) for part, name in names.items()})
            if self._method.holds(parts):
                self._matrices[f"{module}.weight"] = parts
            else:
                self._plain += [name for name in names.values() if not re.fullmatch(_IGNORED, name)]

    def names(self) -> list[str]:
        return [*self._matrices, *self._plain]

    def attention_scales(self) -> dict[str, Tensor]:
        """What the files have of scales for a KV cache and for attention, by name."""
        return {name: self._inner.raw(name) for name in self._inner.names() if re.fullmatch(_IGNORED, name)}

    def shape(self, name: str) -> tuple[int, ...]:
        parts = self._matrices.get(name)
        if parts is None:
            return self._inner.shape(name)
        with self._named():
            return self._method.shape(parts)

    def settle(self, name: str, shape: tuple[int, ...]) -> None:
        """Say which shape the model gives a tensor, for methods whose files have the number of its values only."""
        if len(shape) == 2 and name in self._matrices:
            self._matrices[name].expected = shape[0], shape[1]

    def nbytes(self, name: str, float_bytes: int | None = None) -> int:
        parts = self._matrices.get(name)
        if parts is None:
            return self._inner.nbytes(name, float_bytes)
        return math.prod(self.shape(name)) * self._bits(parts) // 8

    def get(self, name: str) -> Tensor | QuantizedWeight:
        parts = self._matrices.get(name)
        if parts is None:
            tensor = self._inner.get(name)
            return tensor if self._inner.dtype is None else tensor.to(self._inner.dtype)
        with self._named():
            return self._method.weight(parts)

    def _bits(self, parts: Parts) -> int:
        with self._named():
            return self._method.bits(parts)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What a method complains of is said of these files."""
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(f"{self.source}: {error.message}") from None
