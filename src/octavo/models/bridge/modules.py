"""What stands in the place of transformers' modules: forwards that call the table's operations on packed weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from octavo.models.bridge.declare import (
    EXPERT_MATRICES,
    BridgedDefinition,
    Share,
    expert_weight,
    has_experts,
    is_conv1d,
)
from octavo.models.decoder import EMBEDDING, LM_HEAD
from octavo.ops.operations import Activation
from octavo.ops.table import Ops

Forward = Callable[..., Any]
#: Which dimension of a value has a row a token: of tuples, of each part.
Dims = int | tuple["Dims", ...] | None
#: By the place or the name of an argument.
Layout = Mapping[int | str, Dims]
#: Values of which torch computes a whole number at a time with every instruction set: what is left of a row is computed
#: by other code, which rounds otherwise.
VECTOR = 32
_ACTIVATIONS: Final[tuple[Activation, ...]] = ("silu", "gelu_tanh", "gelu", "relu")


def attach(model: Any, definition: BridgedDefinition, ops: Ops, weights: Mapping[str, Any]) -> None:
    """Give a tree the weights that were packed for its definition."""
    for param in definition.params:
        if param.packing == "vector":
            _set_tensor(model, param.weight.name, weights[param.weight.name])
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            if module._buffers[name] is not None:
                module._buffers[name] = ops.to_device(module._buffers[name])
    _attach_head(model.get_output_embeddings(), definition, ops, weights)
    siblings = {
        name: _Siblings(_linear(ops, weights[name], ops.activation_dtype))
        for name in {share.weight for share in definition.shares.values()}
    }
    embedding = model.get_input_embeddings()
    for path, module in model.named_modules():
        if (share := definition.shares.get(path)) is not None:
            module.forward = siblings[share.weight].forward(share)
        elif isinstance(module, nn.Embedding):
            _replace(module, _embedding(ops, weights[EMBEDDING if module is embedding else path], module), nn.Embedding)
        elif (isinstance(module, nn.Linear) or is_conv1d(module)) and path in weights:
            _replace(module, _linear(ops, weights[path], ops.activation_dtype), nn.Linear)
        else:
            _attach_other(path, module, ops, weights)
    for path, module in model.named_modules():
        if (share := definition.shares.get(f"{path}.gate_proj")) is not None:
            _put_gated_mlp(ops, module, weights[share.weight], weights.get(f"{path}.down_proj"))


def _attach_head(head: Any, definition: BridgedDefinition, ops: Ops, weights: Mapping[str, Any]) -> None:
    forward = _linear(ops, weights[LM_HEAD], torch.float32)
    if definition.tied is not None and getattr(head, "bias", None) is not None:
        forward = _with_bias(forward, head.bias)
    _replace(head, forward, nn.Linear)


def _attach_other(path: str, module: Any, ops: Ops, weights: Mapping[str, Any]) -> None:
    if has_experts(module):
        module.octavo_experts = _experts(path, ops, weights)
    elif type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:
        module.forward = _layer_norm(ops, module)  # type: ignore[method-assign]
    elif _may_be_rms_norm(module):
        _put_rms_norm(ops, module)


def take_shortcuts(model: nn.Module) -> None:
    """Let modules call what stands in their children's places without what `nn.Module` does around a call, which on a
    CPU takes as long as a small matrix. Hooks on those children are not called from then on."""
    for module in model.modules():
        for name, child in module._modules.items():
            if child is not None and "forward" in child.__dict__:
                module.__dict__[name] = _Shortcut(child)


class _Shortcut:
    """A module that is called directly; anything else of it is the module's."""

    __slots__ = ("_forward", "_module")

    def __init__(self, module: Any) -> None:
        self._module, self._forward = module, module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def packed_experts(module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """[T, H], for transformers' `ExpertsInterface`: top_k_index and top_k_weights are [T, k].

    The sum of a row's experts goes by their numbers, whoever else a step has.
    """
    matrices = module.octavo_experts
    out = torch.zeros_like(hidden)
    up = matrices["gate_up_proj" if module.has_gate else "up_proj"]
    for expert in torch.unique(top_k_index).tolist():
        rows, places = torch.where(top_k_index == expert)
        inner = up[expert](hidden[rows])
        if module.has_gate:
            inner = _rows_alike(module._apply_gate, inner, inner.shape[-1] // 2)
        else:
            inner = _rows_alike(module.act_fn, inner, inner.shape[-1])
        values = matrices["down_proj"][expert](inner) * top_k_weights[rows, places, None]
        out.index_add_(0, rows, values.to(out.dtype))
    return out


class ByRow:
    """The same of one token after the other, for what computes a token otherwise in company."""

    def __init__(self, forward: Forward, num_rows: Callable[[], int], layout: Layout | None) -> None:
        """`num_rows`: tokens of the step. `layout`: which dimension of each argument has one each; None: it is seen in
        the first call, whose number of tokens no size of the model must have."""
        self._forward, self._num_rows = forward, num_rows
        self.layout = layout

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        count = self._num_rows()
        named: dict[int | str, Any] = dict(enumerate(args))
        named.update(kwargs)
        if self.layout is None:
            self.layout = {name: _row_dims(value, count) for name, value in named.items()}
        dims = {name: self.layout.get(name) for name in named}
        if count == 1 or not any(_has_rows(named[name], dims[name], count) for name in named):
            return self._forward(*args, **kwargs)
        results = []
        for row in range(count):
            own = {name: _row(named[name], dims[name], row, count) for name in named}
            results.append(self._forward(*(own[i] for i in range(len(args))), **{name: own[name] for name in kwargs}))
        return _joined(results)


def _row_dims(value: Any, count: int) -> Dims:
    if isinstance(value, tuple | list):
        return tuple(_row_dims(each, count) for each in value)
    if not isinstance(value, Tensor):
        return None
    return next((dim for dim, size in enumerate(value.shape[:2]) if size == count), None)


def _has_rows(value: Any, dims: Dims, count: int) -> bool:
    if isinstance(dims, tuple):
        return any(_has_rows(each, dim, count) for each, dim in zip(value, dims, strict=True))
    return dims is not None and value.dim() > dims and value.shape[dims] == count


def _row(value: Any, dims: Dims, row: int, count: int) -> Any:
    if isinstance(dims, tuple):
        return type(value)(_row(each, dim, row, count) for each, dim in zip(value, dims, strict=True))
    return value.narrow(dims, row, 1) if _has_rows(value, dims, count) else value


def _joined(results: list[Any]) -> Any:
    first = results[0]
    if isinstance(first, tuple | list):
        return type(first)(_joined([each[i] for each in results]) for i in range(len(first)))
    if not isinstance(first, Tensor):
        return first
    # One token's result is [1, ...] or [1, 1, ...].
    return torch.cat(results, 1 if first.dim() >= 3 and first.shape[:2] == (1, 1) else 0)


def _rows_alike(function: Forward, x: Tensor, width: int) -> Any:
    if width % VECTOR == 0 or x.device.type != "cpu":
        return function(x)
    return torch.cat([function(x[row : row + 1]) for row in range(len(x))])


def _replace(module: Any, forward: Forward, kind: type[nn.Module]) -> None:
    """Of a subclass, what it adds to its kind's forward stays."""
    base = type(module)
    if base is kind or not issubclass(base, kind) or base.forward is kind.forward:
        module.forward = forward
        return
    module.octavo_forward = forward
    module.__class__ = type(base.__name__, (base, _Packed[kind]), {"__module__": base.__module__})


class _PackedLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return self.octavo_forward(input)  # type: ignore[no-any-return, operator]


class _PackedEmbedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return self.octavo_forward(input)  # type: ignore[no-any-return, operator]


_Packed: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _PackedLinear, nn.Embedding: _PackedEmbedding}


def _linear(ops: Ops, packed: Any, dtype: torch.dtype) -> Forward:
    """`dtype`: of the result."""
    linear, columns, activations = ops.linear, packed.N, ops.activation_dtype

    def forward(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if rows.dtype is not activations or not rows.is_contiguous():
            rows = rows.to(activations).contiguous()
        out = torch.empty(len(rows), columns, dtype=dtype, device=rows.device)
        linear(out, rows, packed)
        return out.view(*x.shape[:-1], columns)

    return forward


class _Siblings:
    """Linear layers that are packed as one: the first that is called computes all of them, the others take their
    columns if they are given the same tensor."""

    def __init__(self, whole: Forward) -> None:
        self._whole = whole
        self._starts: set[int] = set()
        self._x: Tensor | None = None
        self._result: Any = None
        self._left: set[int] = set()  # of the result: where the columns begin that nobody has taken

    def forward(self, share: Share) -> Forward:
        first, end = share.first, share.end
        self._starts.add(first)

        def forward(x: Tensor) -> Tensor:
            if x is not self._x or first not in self._left:
                self._x, self._result, self._left = x, self._whole(x), set(self._starts)
            self._left.discard(first)
            columns: Tensor = self._result[..., first:end]
            if not self._left:
                self._x = self._result = None
            return columns

        return forward


def _with_bias(forward: Forward, bias: Tensor) -> Forward:
    return lambda x: forward(x) + bias


def _embedding(ops: Ops, packed: Any, module: nn.Embedding) -> Forward:
    num_rows, width = module.weight.shape

    def forward(ids: Tensor) -> Tensor:
        flat = ids.reshape(-1).to(torch.int32)
        if flat.device.type == "cpu" and not 0 <= int(flat.min()) <= int(flat.max()) < num_rows:
            raise IndexError(f"an embedding of {num_rows} rows is asked for others")  # the kernel reads what it is told
        out = torch.empty(len(flat), width, dtype=ops.activation_dtype, device=flat.device)
        ops.embedding(out, flat, packed)
        return out.view(*ids.shape, width)

    return forward


def _experts(path: str, ops: Ops, weights: Mapping[str, Any]) -> dict[str, list[Forward]]:
    found: dict[str, list[Forward]] = {}
    for matrix in EXPERT_MATRICES:
        forwards: list[Forward] = []
        while (packed := weights.get(expert_weight(path, matrix, len(forwards)))) is not None:
            forwards.append(_linear(ops, packed, ops.activation_dtype))
        found[matrix] = forwards
    return found


def _layer_norm(ops: Ops, module: nn.LayerNorm) -> Forward:
    width, eps = module.normalized_shape[0], module.eps
    given: Tensor | None = module.weight
    weight = torch.ones(width, device=ops.torch_device) if given is None else given.detach().float()
    bias = None if module.bias is None else module.bias.detach().float()
    return _normed(ops, lambda out, x: ops.layer_norm(out, x, weight, bias, eps))


def _normed(ops: Ops, norm: Callable[[Tensor, Tensor], None]) -> Forward:
    def forward(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if rows.dtype is not ops.activation_dtype or not rows.is_contiguous():
            rows = rows.to(ops.activation_dtype).contiguous()
        out = torch.empty_like(rows)
        norm(out, rows)
        return out.view(x.shape)

    return forward


def _may_be_rms_norm(module: nn.Module) -> bool:
    own = dict(module.named_parameters())
    return "Norm" in type(module).__name__ and list(own) == ["weight"] and own["weight"].dim() == 1 and _eps(module) > 0


def _eps(module: nn.Module) -> float:
    found = next((getattr(module, name) for name in ("variance_epsilon", "eps", "epsilon") if hasattr(module, name)), 0)
    return float(found) if isinstance(found, int | float) else 0.0


def _put_rms_norm(ops: Ops, module: Any) -> None:
    """The table's norm in the place of one that computes the same, which is tried out: with its weight or with 1 + its
    weight. Any other stays as it is."""
    eps, weight = _eps(module), module.weight.detach().float()
    x = _noise(ops, 3, len(weight))
    try:
        expected = module(x)
    except (RuntimeError, TypeError):
        return
    for tried in (weight, weight + 1.0):
        forward = _normed(ops, lambda out, rows, tried=tried: ops.rms_norm(out, rows, tried, eps))  # type: ignore[misc]
        if _close(forward(x), expected):
            module.forward = forward
            return


def _put_gated_mlp(ops: Ops, module: Any, gate_up: Any, down: Any) -> None:
    """down(act(gate) * up) in three operations, in the place of one that computes the same, which is tried out."""
    kind = _activation(ops, getattr(module, "act_fn", None))
    if kind is None or down is None:
        return
    first, last = _linear(ops, gate_up, ops.activation_dtype), _linear(ops, down, ops.activation_dtype)
    width = gate_up.N // 2

    def forward(x: Tensor) -> Tensor:
        both = first(x).view(-1, 2 * width)
        inner = torch.empty(len(both), width, dtype=both.dtype, device=both.device)
        ops.act_mul(inner, both, kind)
        result: Tensor = last(inner)
        return result.view(x.shape)

    x = _noise(ops, 3, gate_up.K)
    try:
        expected = module(x)
    except (RuntimeError, TypeError):
        return
    if expected.shape == x.shape and _close(forward(x), expected):
        module.forward = forward


def _activation(ops: Ops, function: Any) -> Activation | None:
    """What the table calls a function of one value, which is tried out."""
    if not callable(function):
        return None
    x = _noise(ops, 3, 2 * VECTOR) * 3
    try:
        expected = function(x)
    except (RuntimeError, TypeError):
        return None
    for kind in _ACTIVATIONS:
        out = torch.empty_like(x)
        ops.act(out, x, kind)
        if _close(out, expected):
            return kind
    return None


def _noise(ops: Ops, rows: int, width: int) -> Tensor:
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(7))
    return values.to(ops.activation_dtype).to(ops.torch_device)


def _close(found: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-5 if found.dtype is torch.float32 else 0.02
    scale = float(expected.abs().max())
    return torch.allclose(found.float(), expected.float(), rtol=tolerance, atol=tolerance * max(scale, 1e-30))


def _set_tensor(model: nn.Module, name: str, value: Tensor) -> None:
    """A parameter or a buffer that keeps its type."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    if own in module._buffers:
        module._buffers[own] = value.to(module._buffers[own].dtype)  # type: ignore[union-attr]
    else:
        dtype = module._parameters[own].dtype  # type: ignore[union-attr]
        module._parameters[own] = nn.Parameter(value.to(dtype), requires_grad=False)
