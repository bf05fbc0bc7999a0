"""From the files to a model: which checkpoint, exactly which tensors, in which type, packed how."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import torch
from torch import Tensor

from octavo.config import ModelConfig
from octavo.errors import CheckpointError, DeviceError
from octavo.host import FreeMemory, gib
from octavo.models.checkpoint import Checkpoint, DummyCheckpoint, SafetensorsCheckpoint, read_json
from octavo.models.gguf_checkpoint import GGUFCheckpoint
from octavo.models.registry import arch_spec
from octavo.models.spec import ArchSpec, tensor_shapes
from octavo.models.transformer import LayerWeights, ModelWeights, Transformer
from octavo.ops.table import LinearWeight, Ops
from octavo.quant.packed import QuantizedWeight, all_finite

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
_NAMES_LISTED: Final = 10
_REPORTS: Final = 20
#: Buffers that old exports carry; they follow from the configuration.
_IGNORED_SUFFIXES: Final = (".rotary_emb.inv_freq",)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    model: Transformer
    spec: ArchSpec
    dtype: torch.dtype  # of the unquantized matrices; float16 where there are none
    num_params: int
    weight_bytes: int  # packed, as they are read in a step
    quantization: str  # "none", or the formats with their counts


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
    spec = arch_spec(checkpoint.config, checkpoint.source)
    reader = _Reader(checkpoint, DTYPES.get(config.dtype, checkpoint.dtype), ops.to_device, on_phase)
    reader.check_names(spec)
    if free is not None:
        _check_room(checkpoint, spec, _float_bytes(config, checkpoint, ops), free)
    weights = _Packer(reader, spec, ops)
    model_weights = weights.pack()
    reader.check_finite()
    num_positions = min(config.max_model_len or spec.max_position_embeddings, spec.max_position_embeddings)
    return LoadedModel(
        model=Transformer(spec, ops, model_weights, max_num_batched_tokens, num_positions),
        spec=spec,
        dtype=_reported_dtype(reader, config, ops),
        num_params=reader.num_params,
        weight_bytes=weights.nbytes,
        quantization=checkpoint.quantization,
    )


def _reported_dtype(reader: _Reader, config: ModelConfig, ops: Ops) -> torch.dtype:
    """Of the unquantized matrices: on a CPU as they are, else the activations' type, to which they are converted."""
    if ops.torch_device.type != "cpu":
        return ops.activation_dtype
    return reader.matrix_dtype or DTYPES.get(config.dtype, torch.float16)


def _float_bytes(config: ModelConfig, checkpoint: Checkpoint, ops: Ops) -> int | None:
    """Bytes of an unquantized value when it is loaded; None: as many as in the checkpoint."""
    if config.load_quantization is not None:
        return 1
    if ops.torch_device.type != "cpu":
        return ops.activation_dtype.itemsize
    dtype = DTYPES.get(config.dtype, checkpoint.dtype)
    return None if dtype is None else dtype.itemsize


def _check_room(checkpoint: Checkpoint, spec: ArchSpec, float_bytes: int | None, free: FreeMemory) -> None:
    """Refuse weights that cannot fit before the first of them is read: to find out by reading takes minutes, and ends
    with the process killed."""
    needed = sum(checkpoint.nbytes(name, float_bytes) for name in tensor_shapes(spec))
    if needed > free.num_bytes:
        raise DeviceError(
            f"{checkpoint.source}: the weights take {gib(needed)} of memory, and there are {free}. "
            "Take a smaller model, or one whose weights are quantized to fewer bits."
        )


def open_checkpoint(config: ModelConfig, device: torch.device = _CPU) -> Checkpoint:
    """The checkpoint of a configuration. Random weights are made on `device`."""
    path = Path(config.model)
    if config.load_format == "dummy":
        source: Checkpoint | None = GGUFCheckpoint(path) if path.suffix == ".gguf" else None
        values = read_json(path / "config.json") if source is None else source.config
        return DummyCheckpoint(arch_spec(values, str(path)), values, str(path), config.seed, device)
    is_gguf = path.suffix == ".gguf"
    if config.load_format not in ("auto", "gguf" if is_gguf else "safetensors"):
        kind = "a GGUF file" if is_gguf else "a directory of safetensors files"
        raise CheckpointError(f"{path}: {kind} cannot be read with --load-format {config.load_format}")
    return GGUFCheckpoint(path) if is_gguf else SafetensorsCheckpoint(path)


class _Reader:
    """Takes tensors from the checkpoint one by one: checked, in the type asked for, counted."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype | None,
        to_device: Callable[[Tensor], Tensor],
        on_phase: OnPhase,
    ) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._to_device = to_device
        self._on_phase = on_phase
        #: Tensors that another device than the CPU is checking: name, and whether all of it is finite.
        self._checks: list[tuple[str, Tensor]] = []
        self._num_read = 0
        self._num_tensors = 0
        self.num_params = 0
        self.matrix_dtype: torch.dtype | None = None

    def check_names(self, spec: ArchSpec) -> None:
        """The checkpoint must hold what the architecture has, in these shapes, and nothing else."""
        source, shapes = self._checkpoint.source, tensor_shapes(spec)
        names = {name for name in self._checkpoint.names() if not name.endswith(_IGNORED_SUFFIXES)}
        if spec.tie_word_embeddings and "lm_head.weight" in names:
            # Some exports save the tied matrix twice.
            logger.info("%s: lm_head.weight is ignored: the embeddings are tied", source)
            names.discard("lm_head.weight")
        complaints = []
        for what, wrong in (("missing", set(shapes) - names), ("unexpected", names - set(shapes))):
            if wrong:
                listed = ", ".join(sorted(wrong)[:_NAMES_LISTED]) + (", ..." if len(wrong) > _NAMES_LISTED else "")
                complaints.append(f"{len(wrong)} {what} tensor{'s' if len(wrong) > 1 else ''}: {listed}")
        if complaints:
            raise CheckpointError(f"{source}: not a complete {spec.model_type} model: {'; '.join(complaints)}")
        for name, shape in shapes.items():
            found = self._checkpoint.shape(name)
            if found != shape:
                raise CheckpointError(f"{source}: tensor {name!r} has the shape {list(found)}, not {list(shape)}")
        self._num_tensors = len(shapes)

    def matrix(self, name: str) -> Tensor | QuantizedWeight:
        weight = self._take(name)
        if isinstance(weight, Tensor):
            weight = self._to_device(weight)
            weight = weight if self._dtype is None else weight.to(self._dtype)
            self.matrix_dtype = self.matrix_dtype or weight.dtype
        self._check_finite(name, weight)
        return weight

    def vector(self, name: str) -> Tensor:
        """A norm or a bias: float32, and a copy that does not keep the file mapped."""
        weight = self._take(name)
        assert isinstance(weight, Tensor)
        values = self._to_device(weight).to(torch.float32, copy=True)
        self._check_finite(name, values)
        return values

    def _take(self, name: str) -> Tensor | QuantizedWeight:
        weight = self._checkpoint.get(name)
        rows = weight.shape[0]
        self.num_params += rows * (weight.shape[1] if len(weight.shape) > 1 else 1)
        self._num_read += 1
        if self._num_read % max(1, self._num_tensors // _REPORTS) == 0 or self._num_read == self._num_tensors:
            self._on_phase("weights", f"{self._num_read} of {self._num_tensors} tensors")
        return weight

    def _check_finite(self, name: str, weight: Tensor | QuantizedWeight) -> None:
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
        raise CheckpointError(f"{self._checkpoint.source}: tensor {name!r} holds NaN or infinite values")


class _Packer:
    """Packs the tensors for the device in the order of the layers, so that only one is ever held unpacked."""

    def __init__(self, reader: _Reader, spec: ArchSpec, ops: Ops) -> None:
        self._reader = reader
        self._spec = spec
        self._ops = ops
        self.nbytes = 0

    def pack(self) -> ModelWeights:
        table = self._reader.matrix("model.embed_tokens.weight")
        if self._spec.tie_word_embeddings:
            lm_head = self._counted(self._ops.pack_output(table))
            embedding = self._ops.tied_embedding(lm_head)
        else:
            embedding = self._ops.pack_embedding(table)
            self.nbytes += embedding.nbytes
            table = self._reader.matrix("lm_head.weight")
            lm_head = self._counted(self._ops.pack_output(table))
        del table
        layers = [self._layer(f"model.layers.{layer}.") for layer in range(self._spec.num_layers)]
        return ModelWeights(embedding, layers, self._norm("model.norm"), lm_head)

    def _layer(self, prefix: str) -> LayerWeights:
        spec = self._spec
        # Gemma's names: post_attention_layernorm is behind the attention there, and in front of the MLP elsewhere.
        mlp_norm = "pre_feedforward_layernorm" if spec.sandwich_norms else "post_attention_layernorm"
        return LayerWeights(
            attn_norm=self._norm(prefix + "input_layernorm"),
            qkv=self._linear([prefix + f"self_attn.{part}_proj" for part in "qkv"], spec.attention_bias),
            q_norm=self._norm(prefix + "self_attn.q_norm") if spec.qk_norm else None,
            k_norm=self._norm(prefix + "self_attn.k_norm") if spec.qk_norm else None,
            o=self._linear([prefix + "self_attn.o_proj"], spec.o_bias),
            attn_post_norm=self._norm(prefix + "post_attention_layernorm") if spec.sandwich_norms else None,
            mlp_norm=self._norm(prefix + mlp_norm),
            gate_up=self._linear([prefix + "mlp.gate_proj", prefix + "mlp.up_proj"], spec.mlp_bias),
            down=self._linear([prefix + "mlp.down_proj"], spec.mlp_bias),
            mlp_post_norm=self._norm(prefix + "post_feedforward_layernorm") if spec.sandwich_norms else None,
        )

    def _linear(self, names: list[str], has_bias: bool) -> LinearWeight:
        weights = [self._reader.matrix(name + ".weight") for name in names]
        biases = [self._reader.vector(name + ".bias") if has_bias else None for name in names]
        if len(names) == 1:
            return self._counted(self._ops.pack_linear(weights[0], biases[0]))
        return self._counted(self._ops.pack_linear_many(weights, biases))

    def _norm(self, name: str) -> Tensor:
        weight = self._reader.vector(name + ".weight")
        self.nbytes += weight.nbytes
        return weight + self._spec.norm_offset if self._spec.norm_offset else weight

    def _counted(self, weight: LinearWeight) -> LinearWeight:
        self.nbytes += weight.nbytes
        return weight
