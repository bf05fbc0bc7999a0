"""Which of the table's operations takes which weight of a module tree, and what a checkpoint must hold for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import nn

from octavo.models.bridge.attention import Call
from octavo.models.bridge.refusal import Refusal
from octavo.models.bridge.skeleton import Skeleton
from octavo.models.decoder import EMBEDDING, LM_HEAD, Definition
from octavo.models.params import Packing, Param, Role, TensorDecl
from octavo.models.spec import ModelSpec, NormSpec
from octavo.ops.operands import Buffer, Weight
from octavo.ops.operations import Linear
from octavo.ops.program import Program

#: Of modules with experts (transformers' `use_experts_implementation`): which of their tensors are matrices.
EXPERT_MATRICES: Final = ("gate_up_proj", "up_proj", "down_proj")
#: Linear layers of one module that are given one input, by their names: they are packed as one, and x is read once.
_SIBLINGS: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"), ("query", "key", "value"))


@dataclass(frozen=True)
class Place:
    """Where a declared tensor is in the tree's tensors."""

    name: str  # of the tree's tensor
    number: int | None = None  # of the expert
    transposed: bool = False  # it stands as [in, out]


@dataclass(frozen=True)
class Share:
    """A linear layer's columns of what its siblings and it are packed as."""

    weight: str
    first: int
    end: int


@dataclass(frozen=True, eq=False)
class BridgedDefinition(Definition):
    """A model whose modules are transformers'. Its program lists what the table computes in them, for those who count;
    nobody runs it."""

    skeleton: Skeleton
    places: Mapping[str, Place]  # by the declared name
    shares: Mapping[str, Share]  # by the path of the linear layer
    tied: str | None  # the output matrix's name in the tree, where it is the embedding's
    calls: tuple[Call, ...] = ()  # the attentions, once they are known
    #: Modules that run row by row, with the layouts of their arguments, once they are known.
    row_wise: Mapping[str, Mapping[int | str, Any]] = field(default_factory=dict)


def declared(skeleton: Skeleton, max_positions: int) -> BridgedDefinition:
    """Before its attentions are known. Raises Refusal for weights that two modules share."""
    model = skeleton.make()
    declare = _Declarer(model)
    for path, module in model.named_modules():
        declare.module(path, module)
    output = declare.output
    spec = ModelSpec(
        model_type=skeleton.model_type,
        vocab_size=output.shape[0],
        hidden_size=output.shape[1],
        max_position_embeddings=max_positions,
        layers=(),
        norm=NormSpec(eps=1.0),  # of no layers: the modules know
        tie_word_embeddings=declare.tied is not None,
    )
    linears = [param.weight for param in declare.params if param.packing == "linear" and param.weight != output]
    return BridgedDefinition(
        spec,
        program_of(linears),
        tuple(declare.params),
        {},
        output,
        (),
        skeleton,
        declare.places,
        declare.shares,
        declare.tied,
    )


def program_of(linears: Iterable[Weight], calls: tuple[Call, ...] = ()) -> Program:
    """A list of what the table computes in a step, for counts of work and caches."""
    products = [
        Linear(out=Buffer(each.name, each.shape[0]), x=Buffer(each.name, each.shape[1]), weight=each)
        for each in linears
    ]
    attentions = [op for call in calls for op in (call.write, call.attend)]
    return Program((*products, *attentions), Buffer("hidden", 0))


def is_conv1d(module: nn.Module) -> bool:
    """GPT-2's name of a linear layer whose matrix stands as [in, out]."""
    return type(module).__module__ == "transformers.pytorch_utils" and type(module).__name__ == "Conv1D"


def has_experts(module: nn.Module) -> bool:
    return hasattr(module, "has_gate") and hasattr(module, "is_transposed") and hasattr(module, "down_proj")


def expert_weight(path: str, matrix: str, number: int) -> str:
    """The name of one expert's packed matrix."""
    return f"{path}.{matrix}.{number}"


class _Declarer:
    def __init__(self, model: Any) -> None:
        self.params: list[Param] = []
        self.places: dict[str, Place] = {}
        self.shares: dict[str, Share] = {}
        self._seen: dict[int, str] = {}
        self._embedding, self._head = model.get_input_embeddings(), model.get_output_embeddings()
        if self._embedding is None or self._head is None or model.base_model is model:
            raise Refusal("it has no embedding or no output matrix of the usual kind")
        if self._embedding.weight.shape[0] < self._head.weight.shape[0]:
            raise Refusal("its embedding has fewer tokens than its output matrix")
        is_tied = self._head.weight is self._embedding.weight
        head = next(f"{path}.weight" for path, each in model.named_modules() if each is self._head)
        self.tied: str | None = head if is_tied else None
        self.output = Weight(LM_HEAD, tuple(self._head.weight.shape), 0)

    def module(self, path: str, module: nn.Module) -> None:
        """Declare what is the module's own."""
        own: dict[str, Any] = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        own |= {
            name: buffer
            for name, buffer in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set
        }
        prefix = f"{path}." if path else ""
        if module is self._head and self.tied is not None:
            if "bias" in own:
                self._vector(f"{prefix}bias", own["bias"])
            return
        self._siblings(path, module)
        for name, tensor in own.items():
            if id(tensor) in self._seen:
                raise Refusal(f"{prefix}{name} and {self._seen[id(tensor)]} are one tensor")
            self._seen[id(tensor)] = f"{prefix}{name}"
        if has_experts(module):
            self._experts(path, module, own)
        elif module is self._embedding or isinstance(module, nn.Embedding):
            self._embeddings(path, module, own.pop("weight"))
        elif path in self.shares:
            return
        elif isinstance(module, nn.Linear) or is_conv1d(module):
            self._linear(path, module, own.pop("weight"), own.pop("bias", None))
        for name, tensor in own.items():
            self._vector(f"{prefix}{name}", tensor, is_norm="Norm" in type(module).__name__ and name == "weight")

    def _siblings(self, path: str, module: nn.Module) -> None:
        """Declare those of its linear layers that are packed as one."""
        for names in _SIBLINGS:
            children: list[Any] = [getattr(module, name, None) for name in names]
            if any(type(child) is not nn.Linear or child is self._head for child in children):
                continue
            linears = {f"{path}.{name}": child for name, child in zip(names, children, strict=True)}
            if len({child.in_features for child in linears.values()}) > 1:
                continue
            name, first = f"{path}.{'+'.join(names)}", 0
            parts, biases = [], []
            for own, child in linears.items():
                shape = tuple(child.weight.shape)
                parts.append(self._tensor(f"{own}.weight", shape, "matrix"))
                biases.append(None if child.bias is None else self._tensor(f"{own}.bias", shape[:1], "bias"))
                self.shares[own] = Share(name, first, first + shape[0])
                first += shape[0]
            weight = Weight(name, (first, parts[0].shape[1]))
            self.params.append(Param(weight=weight, parts=tuple(parts), biases=tuple(biases), packing="linear"))

    def _linear(self, path: str, module: nn.Module, weight: Any, bias: Any) -> None:
        transposed = is_conv1d(module)
        shape = tuple(weight.shape)[::-1] if transposed else tuple(weight.shape)
        part = self._tensor(f"{path}.weight", shape, "matrix", Place(f"{path}.weight", transposed=transposed))
        offset = None
        if bias is not None:
            offset = self._tensor(f"{path}.bias", tuple(bias.shape), "bias")
        is_output = module is self._head
        packing: Packing = "output" if is_output and bias is None else "linear"
        name = self.output if is_output else Weight(path, shape)
        self.params.append(Param(weight=name, parts=(part,), biases=(offset,), packing=packing))

    def _embeddings(self, path: str, module: nn.Module, weight: Any) -> None:
        part = self._tensor(f"{path}.weight", tuple(weight.shape), "matrix")
        packing: Packing = "tied" if module is self._embedding and self.tied is not None else "embedding"
        name = EMBEDDING if module is self._embedding else path
        # Without a bias, which an output matrix may have.
        self.params.append(
            Param(weight=Weight(name, tuple(weight.shape)), parts=(part,), biases=(None,), packing=packing)
        )

    def _experts(self, path: str, module: Any, own: dict[str, Any]) -> None:
        """Each expert's matrices by themselves."""
        if module.has_post_expert_norm:
            raise Refusal("its experts have norms of their own")
        for matrix in EXPERT_MATRICES:
            stacked = own.pop(matrix, None)
            bias = own.pop(f"{matrix}_bias", None)
            if stacked is None:
                continue
            tree_name = f"{path}.{matrix}"
            shape = tuple(stacked.shape[1:])
            shape = shape[::-1] if module.is_transposed else shape
            for number in range(len(stacked)):
                name = expert_weight(path, matrix, number)
                part = self._tensor(name, shape, "matrix", Place(tree_name, number, module.is_transposed))
                offset = None
                if bias is not None:
                    place = Place(f"{tree_name}_bias", number)
                    offset = self._tensor(f"{name}.bias", shape[:1], "bias", place)
                self.params.append(Param(weight=Weight(name, shape), parts=(part,), biases=(offset,), packing="linear"))

    def _vector(self, name: str, tensor: Any, is_norm: bool = False) -> None:
        """A tensor that no operation packs: float32, of any shape."""
        role: Role = "norm" if is_norm else "bias" if tensor.dim() < 2 else "matrix"
        part = self._tensor(name, tuple(tensor.shape), role)
        self.params.append(Param(weight=Weight(name, tuple(tensor.shape)), parts=(part,), packing="vector"))

    def _tensor(self, name: str, shape: tuple[int, ...], role: Role, place: Place | None = None) -> TensorDecl:
        """`place`: default, the tree's tensor of this name."""
        self.places[name] = place or Place(name)
        return TensorDecl(name=name, gguf="", shape=shape, role=role)
