"""From the files to a model: which checkpoint, exactly which tensors, in which type, packed how."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn, get_args

import torch
from torch import Tensor

from octavo.base.config import ModelConfig
from octavo.base.config.engine import LoadQuantization, shard_pattern, tensorizer_settings
from octavo.base.errors import CheckpointError, DeviceError, InvalidConfig
from octavo.base.host import FreeMemory, gib
from octavo.files.parts import with_part_configs
from octavo.models.checkpoint import Checkpoint, DummyCheckpoint, StoredCheckpoint, read_json
from octavo.models.decoder import LM_HEAD, Definition
from octavo.models.directory import open_directory
from octavo.models.gguf_checkpoint import GGUFCheckpoint
from octavo.models.implementation import Tensors, definition_of, tensors_of, transformer
from octavo.models.mxfp4_checkpoint import Mxfp4Checkpoint
from octavo.models.overrides import overridden
from octavo.models.params import Param, TensorDecl
from octavo.models.parts_checkpoint import with_parts
from octavo.models.quantized_checkpoint import QuantizedCheckpoint, quantization_config
from octavo.models.rope import derived_values
from octavo.models.spec import ModelSpec
from octavo.models.stored_checkpoints import tensorizer_checkpoint
from octavo.models.task_checkpoint import TaskCheckpoint, has_task
from octavo.models.transformer import Transformer
from octavo.ops.operands import Weight
from octavo.ops.table import LinearWeight, Ops
from octavo.quant.methods.table import method_name
from octavo.quant.online import quantize
from octavo.quant.packed import QuantizedWeight, all_finite, as_floats, scaled

logger = logging.getLogger("octavo.models")

OnPhase = Callable[[str, str], None]

DTYPES: Final = {
    "float32": torch.float32,
    "float": torch.float32,
    "float16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
}
_CPU: Final = torch.device("cpu")
_REPORTS: Final = 20


@dataclass(frozen=True, eq=False)
class LoadedModel:
    model: Transformer
    spec: ModelSpec
    dtype: torch.dtype  # of the unquantized matrices; float16 where there are none
    num_params: int
    weight_bytes: int  # packed, as they are read in a step
    expert_bytes: int  # of these, those of experts
    quantization: str  # "none", or the formats with their counts
    weights: Mapping[str, Any]  # packed, by the names of the program's weights


def load_model(
    config: ModelConfig,
    ops: Ops,
    max_num_batched_tokens: int,
    on_phase: OnPhase,
    checkpoint: Checkpoint | None = None,
    free: FreeMemory | None = None,
) -> LoadedModel:
    """Load the model of a resolved configuration (`config.model` is a directory or a .gguf file).

    `on_phase("weights", "n of m tensors")` is called now and then; `checkpoint` is the configuration's, if it was
    opened before; `free` is what the weights must fit, if that is known. Raises CheckpointError for files that are
    missing, damaged, not finite, or of a kind that is not supported, and DeviceError for weights that do not fit.
    """
    checkpoint = checkpoint or open_checkpoint(config)
    online = online_quantization(config, checkpoint)
    definition = definition_of(config, checkpoint.config, checkpoint.source, ops.activation_dtype)
    tensors = tensors_of(definition, checkpoint)
    reader = _Reader(checkpoint, tensors, DTYPES.get(config.dtype, checkpoint.dtype), ops.to_device, on_phase)
    rounded = _rounded(config, definition)
    if free is not None:
        needed = reader.num_bytes(
            _float_bytes(config, checkpoint, ops, online, is_rounded=len(rounded) == len(definition.params))
        )
        _check_room(checkpoint.source, needed // 2 if online in ("int4", "bitsandbytes") else needed, free)
    packer = _Packer(reader, ops, online, rounded)
    for param in definition.params:
        packer.pack(param)
    reader.check_finite()
    spec = definition.spec
    num_positions = min(config.max_model_len or spec.default_positions, spec.max_position_embeddings)
    # Of towers and encoders the context says nothing: they have positions of their own.
    others = {weight for part in (definition.tower, definition.encoder) if part is not None for weight in part.derived}
    for weight, of in definition.derived.items():
        count = weight.shape[0] if weight in others else num_positions
        packer.weights[weight.name] = ops.to_device(derived_values(of, weight.shape, count))
    return LoadedModel(
        model=transformer(definition, ops, packer.weights, max_num_batched_tokens),
        spec=spec,
        dtype=_reported_dtype(reader, config, ops),
        num_params=reader.num_params,
        weight_bytes=packer.nbytes,
        expert_bytes=packer.expert_bytes,
        quantization=f"{online} at load" if online and checkpoint.quantization == "none" else checkpoint.quantization,
        weights=packer.weights,
    )


def _rounded(config: ModelConfig, definition: Definition) -> frozenset[Weight]:
    """Those whose products may be rounded to be faster, where they are float matrices."""
    everything = frozenset(param.weight for param in definition.params)
    if config.float32_matmul_precision == "high":
        return everything
    if config.float32_matmul_precision == "highest" or config.dtype != "auto":
        return frozenset()
    if definition.spec.pooling is not None or definition.encoder is not None:
        return everything
    return frozenset() if definition.tower is None else frozenset(param.weight for param in definition.tower.params)


def online_quantization(config: ModelConfig, checkpoint: Checkpoint) -> LoadQuantization | None:
    """To what float matrices are quantized while they load.

    Raises InvalidConfig where --quantization names something else than what the checkpoint's weights are.
    """
    asked = config.quantization
    if isinstance(checkpoint, QuantizedCheckpoint):
        if asked is None or method_name(asked) == checkpoint.method:
            return checkpoint.online
        raise InvalidConfig(
            f"--quantization {asked}: the weights of {checkpoint.source} are quantized already, as "
            f"{checkpoint.method}. Leave the flag out."
        )
    if asked is not None and asked != "gguf" and config.load_quantization is None:
        raise InvalidConfig(
            f"--quantization {asked}: the weights of {checkpoint.source} are not of this kind. To quantize while they "
            f"load, there are {', '.join(get_args(LoadQuantization))}."
        )
    return config.load_quantization


def _reported_dtype(reader: _Reader, config: ModelConfig, ops: Ops) -> torch.dtype:
    """Of the unquantized matrices: on a CPU as they are, else the activations' type, to which they are converted."""
    if ops.torch_device.type != "cpu":
        return ops.activation_dtype
    return reader.matrix_dtype or DTYPES.get(config.dtype, torch.float16)


def _float_bytes(
    config: ModelConfig, checkpoint: Checkpoint, ops: Ops, online: LoadQuantization | None, *, is_rounded: bool
) -> int | None:
    """Bytes of an unquantized value when it is loaded, at least; None: as many as in the checkpoint."""
    if online is not None:
        return 1
    if ops.torch_device.type != "cpu":
        return ops.activation_dtype.itemsize
    if is_rounded:
        return torch.int16.itemsize
    dtype = DTYPES.get(config.dtype, checkpoint.dtype)
    return None if dtype is None else dtype.itemsize


def _check_room(source: str, needed: int, free: FreeMemory) -> None:
    """Refuse weights that cannot fit before the first of them is read: to find out by reading takes minutes, and ends
    with the process killed."""
    if needed > free.num_bytes:
        raise DeviceError(
            f"{source}: the weights take {gib(needed)} of memory, and there are {free}. "
            "Take a smaller model, or one whose weights are quantized to fewer bits."
        )


def open_checkpoint(config: ModelConfig, device: torch.device = _CPU) -> Checkpoint:
    """The checkpoint of a configuration, which may say otherwise than the files. `device`: for random weights."""
    path, projector = Path(config.model), None if config.mmproj is None else Path(config.mmproj)
    if config.load_format == "dummy":
        source: Checkpoint | None = GGUFCheckpoint(path, projector) if path.suffix == ".gguf" else None
        stored = with_part_configs(read_json(path / "config.json"), path) if source is None else source.config
        values = overridden(stored, config)
        if source is None and quantization_config(path, values) is not None:
            raise CheckpointError(
                f"{path}: --load-format dummy makes floats, and this model is quantized: take quantization_config out "
                f"of a copy of its config.json, and give --quantization"
            )
        tensors = definition_of(config, values, str(path), torch.float32).tensors
        return DummyCheckpoint(tensors, values, str(path), config.seed, device)
    if path.suffix == ".gguf":
        if config.load_format not in ("auto", "gguf"):
            raise CheckpointError(f"{path}: a GGUF file cannot be read with --load-format {config.load_format}")
        found: GGUFCheckpoint | StoredCheckpoint | QuantizedCheckpoint | Mxfp4Checkpoint = GGUFCheckpoint(
            path, projector
        )
    else:
        extra = config.model_loader_extra_config
        if config.load_format == "tensorizer":
            plain = tensorizer_checkpoint(path, tensorizer_settings(extra))
        else:
            plain = open_directory(path, config.load_format, shard_pattern(extra, config.load_format))
        plain = with_parts(plain, partial(open_directory, load_format="auto"))
        quantization = quantization_config(path, plain.config)
        if quantization is None:
            found = plain
        elif quantization.get("quant_method") == "mxfp4":
            found = Mxfp4Checkpoint(plain)
        else:
            found = QuantizedCheckpoint(plain, quantization)
    found.config = overridden(found.config, config)
    return TaskCheckpoint(found) if isinstance(found, StoredCheckpoint) and has_task(found.config) else found


class _Reader:
    """Takes tensors from the checkpoint one by one: checked, in the type asked for, counted."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tensors: Tensors,
        dtype: torch.dtype | None,
        to_device: Callable[[Tensor], Tensor],
        on_phase: OnPhase,
    ) -> None:
        self._tensors = tensors
        self._source = checkpoint.source
        self._dtype = dtype
        self._to_device = to_device
        self._on_phase = on_phase
        #: Tensors that another device than the CPU is checking: name, and whether all of it is finite.
        self._checks: list[tuple[str, Tensor]] = []
        self._num_read = 0
        self.num_params = 0
        self.matrix_dtype: torch.dtype | None = None

    def num_bytes(self, float_bytes: int | None) -> int:
        """What all tensors take at least when they are loaded, a value of a float tensor so many bytes."""
        return self._tensors.num_bytes(float_bytes)

    def matrix(self, tensor: TensorDecl) -> Tensor | QuantizedWeight:
        weight = scaled(self._take(tensor), tensor.scale)
        if isinstance(weight, Tensor):
            weight = self._to_device(weight)
            weight = weight if self._dtype is None else weight.to(self._dtype)
            self.matrix_dtype = self.matrix_dtype or weight.dtype
        self._check_finite(tensor, weight)
        return weight

    def vector(self, tensor: TensorDecl) -> Tensor:
        """A norm or a bias: float32, and a copy that does not keep the file mapped."""
        weight = self._take(tensor)
        assert isinstance(weight, Tensor)
        values = self._to_device(weight).to(torch.float32, copy=True).contiguous()
        values = values if tensor.scale == 1.0 else values * tensor.scale
        self._check_finite(tensor, values)
        return values

    def rows(self, tensor: TensorDecl, rows: Sequence[int]) -> Tensor:
        """Of a table so many rows, in their order, float32."""
        weight, wanted = self._take(tensor), torch.tensor(rows)
        taken = weight.select_rows(wanted) if isinstance(weight, QuantizedWeight) else weight[wanted]
        values = self._to_device(as_floats(taken).to(torch.float32, copy=True))
        self._check_finite(tensor, values)
        return values

    def _take(self, tensor: TensorDecl) -> Tensor | QuantizedWeight:
        weight = self._tensors.get(tensor)
        self.num_params += math.prod(weight.shape)
        self._num_read += 1
        count = len(self._tensors)
        if self._num_read % max(1, count // _REPORTS) == 0 or self._num_read == count:
            self._on_phase("weights", f"{self._num_read} of {count} tensors")
        return weight

    def _check_finite(self, tensor: TensorDecl, weight: Tensor | QuantizedWeight) -> None:
        name = self._tensors.name(tensor)
        if isinstance(weight, Tensor) and weight.device.type != "cpu":
            self._checks.append((name, weight.isfinite().all()))  # known later: a look at it would wait for the copy
            return
        finite = weight.is_finite() if isinstance(weight, QuantizedWeight) else all_finite(weight)
        if not finite:
            self._refuse(name)

    def check_finite(self) -> None:
        """The checks that another device was left to do."""
        if self._checks:
            found = torch.stack([finite for _, finite in self._checks]).tolist()
            for (name, _), finite in zip(self._checks, found, strict=True):
                if not finite:
                    self._refuse(name)

    def _refuse(self, name: str) -> NoReturn:
        raise CheckpointError(f"{self._source}: tensor {name!r} holds NaN or infinite values")


class _Packer:
    """Packs parameters for the device one after the other, so that only one is ever held unpacked."""

    def __init__(self, reader: _Reader, ops: Ops, online: LoadQuantization | None, rounded: frozenset[Weight]) -> None:
        self._reader = reader
        self._rounded = rounded
        self._ops = ops
        # A GPU has products of its own for these two, and quantizes what it packs.
        self._online = None if ops.torch_device.type != "cpu" and online in ("fp8", "int8") else online
        self.weights: dict[str, Any] = {}
        self.nbytes = self.expert_bytes = 0

    def pack(self, param: Param) -> None:
        if param.packing == "vector":
            packed: Any = self._vector(param)
        elif param.packing == "linear":
            packed = self._linear(param)
        elif param.packing == "experts":
            packed = self._experts(param, self._ops.pack_experts)
        elif param.packing == "heads":
            packed = self._experts(param, self._ops.pack_heads)
        elif param.packing == "embedding":
            packed = self._ops.pack_embedding(self._table(param))
        elif param.packing == "router":
            packed = self._router(param)
        else:
            packed = self._output(param)
        nbytes = sum(each.nbytes for each in packed) if param.packing in ("experts", "heads") else packed.nbytes
        self.nbytes += nbytes
        self.expert_bytes += nbytes if param.packing == "experts" else 0
        if param.packing == "tied":
            self.weights[LM_HEAD] = packed
            packed = self._ops.tied_embedding(packed)
        self.weights[param.weight.name] = packed

    def _linear(self, param: Param) -> LinearWeight:
        weights = [self._matrix(part, param) for part in param.parts]
        biases = self._biases(param.biases)
        if len(weights) == 1:
            return self._ops.pack_linear(weights[0], biases[0])
        return self._ops.pack_linear_many(weights, biases)

    def _table(self, param: Param) -> Tensor | QuantizedWeight:
        table = self._reader.matrix(param.parts[0])
        if param.made is not None:
            table = param.made([as_floats(table)])
        if param.first_row is not None:
            table = as_floats(table).to(torch.float32, copy=True)
            table[0] += self._reader.vector(param.first_row)
            if param.other_rows is not None:
                table[1:] += self._reader.vector(param.other_rows)
        if param.added_rows is not None:
            plain = as_floats(table).to(torch.float32)
            rows = self._reader.vector(param.added_rows)[: param.weight.shape[0] // len(plain)]
            table = (plain + rows[:, None]).flatten(0, 1)
        return table

    def _output(self, param: Param) -> LinearWeight:
        weight, bias = self._reader.matrix(param.parts[0]), param.biases[0]
        if missing := param.weight.shape[0] - param.parts[0].shape[0]:  # tokens that are never sampled
            weight = torch.nn.functional.pad(as_floats(weight).to(_dtype(weight)), (0, 0, 0, missing))
        if param.unit_rows:
            weight = torch.nn.functional.normalize(as_floats(weight).to(torch.float32)).to(_dtype(weight))
        return self._ops.pack_output(weight, None if bias is None else self._reader.vector(bias))

    def _experts(self, param: Param, pack: Callable[..., Any]) -> Any:
        """Read and packed one by one."""
        count = len(param.parts) // param.weight.shape[0]
        groups = (slice(at, at + count) for at in range(0, len(param.parts), count))
        return pack(
            ([self._matrix(part, param) for part in param.parts[group]], self._biases(param.biases[group]))
            for group in groups
        )

    def _biases(self, biases: Sequence[TensorDecl | None]) -> list[Tensor | None]:
        return [None if bias is None else self._reader.vector(bias) for bias in biases]

    def _router(self, param: Param) -> LinearWeight:
        weight = as_floats(self._reader.matrix(param.parts[0])).to(torch.float32)
        return self._ops.pack_output(weight, *self._biases(param.biases))

    def _matrix(self, tensor: TensorDecl, param: Param) -> Any:
        """Of a layer: quantized, if it is not yet and shall be."""
        weight = self._reader.matrix(tensor)
        if isinstance(weight, QuantizedWeight):
            return weight
        if self._online is not None and (param.packing != "linear" or self._online != "experts_int8"):
            return quantize(weight.cpu(), self._online)
        return self._ops.fixed_point(weight) if param.weight in self._rounded else weight

    def _vector(self, param: Param) -> Tensor:
        if param.rows:
            return self._rows(param)
        values = [self._reader.vector(part) for part in param.parts]
        if param.made is not None:
            return param.made(values).view(param.weight.shape)
        joined = values[0] if len(values) == 1 else torch.cat(values, dim=-1)
        joined = joined + param.offset if param.offset else joined
        return joined * param.scale if param.scale != 1.0 else joined

    def _rows(self, param: Param) -> Tensor:
        table = self._reader.rows(param.parts[0], (*param.rows, *param.minus_rows))
        taken, rest = table[: len(param.rows)], table[len(param.rows) :]
        made = taken - rest if len(rest) else taken
        return made.t().contiguous() if param.transposed else made


def _dtype(weight: Tensor | QuantizedWeight) -> torch.dtype:
    return torch.float32 if isinstance(weight, QuantizedWeight) else weight.dtype
