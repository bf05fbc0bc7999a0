"""One adapter's tensors, brought to the products of a model: shapes, rows and names as the model has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor

from octavo.base.config import LoraConfig
from octavo.base.errors import CheckpointError
from octavo.models.adapters.parts import AdapterFiles, Module, Named
from octavo.models.adapters.targets import Target
from octavo.models.layout import Place, Places
from octavo.models.params import TensorDecl
from octavo.ops.lora import LoraPart, LoraWeights
from octavo.quant.packed import all_finite

#: A declared tensor of the model, as it is stored, in float32.
ReadBase = Callable[[TensorDecl], Tensor]
#: Of a product; of one of experts by the numbers of those that the adapter changes.
ProductWeights = LoraWeights | dict[int, LoraWeights]

EMBEDDING: Final = "model.embed_tokens.weight"
HEAD: Final = "lm_head.weight"
_FLOATS: Final = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class TableDelta:
    """What an adapter's rows read in place of a table's: `whole`, or the table's and scaling * a[:, token] b. Tokens
    behind the table's have the rows of `extra`."""

    whole: Tensor | None = None  # [rows, width]
    a: Tensor | None = None  # [rows, rank]
    b: Tensor | None = None  # [rank, width]
    scaling: float = 1.0
    extra: Tensor | None = None  # [extra rows, width]


@dataclass(frozen=True, eq=False)
class Adapter:
    """`weights`: by the names of the products' weights. `head`: an output matrix [V, H] in place of the model's;
    `extra_head`: [n, H], of the tokens behind the model's."""

    weights: dict[str, ProductWeights]
    embedding: TableDelta | None = None
    head: Tensor | None = None
    extra_head: Tensor | None = None
    long_factor: float = 1.0  # of its positions
    context_length: int = 0  # that it was made for; 0: the model's

    @property
    def num_extra(self) -> int:
        """Tokens that it adds, of prompts or of outputs."""
        tables = self.extra_head, None if self.embedding is None else self.embedding.extra
        return max(0 if table is None else len(table) for table in tables)

    @property
    def num_bytes(self) -> int:
        products = [
            product
            for found in self.weights.values()
            for product in (found.values() if isinstance(found, dict) else (found,))
        ]
        table = self.embedding or TableDelta()
        others = table.whole, table.a, table.b, table.extra, self.head, self.extra_head
        tensors = [tensor for product in products for tensor in product.tensors]
        return sum(tensor.nbytes for tensor in (*tensors, *others) if tensor is not None)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What adapters must fit. `dtype`: of their matrices; None: as they are stored. `table`: rows and columns of the
    embedding. `positions`: of the model; `max_model_len`: of what is served."""

    targets: Mapping[str, Target]
    table: tuple[int, int]
    positions: int
    max_model_len: int
    is_tied: bool  # the output matrix to the embedding
    limits: LoraConfig
    dtype: torch.dtype | None


class Fitting:
    """One adapter on its way."""

    def __init__(self, fit: Fit, places: Places, files: AdapterFiles, base: Callable[[], ReadBase]) -> None:
        """`base` opens the model's files; it is called if the adapter asks for values of them."""
        self._fit, self._places, self._files, self._open_base = fit, places, files, base
        self._source = files.source
        self._base: ReadBase | None = None
        self._found: dict[tuple[str, int], _Product] = {}  # by the weight, and the expert, -1: it is none of experts
        self._embedding: TableDelta | None = None
        self._head: Tensor | None = None
        self._extra_head: Tensor | None = None

    def adapter(self) -> Adapter:
        for name, module in self._files.modules.items():
            self._add(name, module)
        self._add_new_rows()
        weights: dict[str, ProductWeights] = {}
        for (name, expert), product in self._found.items():
            found = product.weights(self._dtype(product))
            if expert < 0:
                weights[name] = found
            else:
                of_experts = weights.setdefault(name, {})
                assert isinstance(of_experts, dict)
                of_experts[expert] = found
        factor, length = self._context()
        return Adapter(weights, self._embedding, self._head, self._extra_head, factor, length)

    def _context(self) -> tuple[float, int]:
        """The factor of its positions, and how long contexts may be; 0: as the model's."""
        length, factors = self._files.context_length, self._fit.limits.long_lora_scaling_factors
        factor = float(-(-length // self._fit.positions))
        if factor <= 1.0:
            return 1.0, 0
        if factor not in factors:
            known = ", ".join(map(str, factors)) or "none"
            raise CheckpointError(
                f"{self._source}: adapter_config.json: context_length {length} is {factor:g} times the model's "
                f"{self._fit.positions} positions, and of --long-lora-scaling-factors there is {known}"
            )
        return factor, min(length, self._fit.max_model_len)

    def _add(self, name: str, module: Module) -> None:
        where = next(value[0] for value in _values(module))
        self._check_allowed(name, where)
        declared = self._places.places_of(name)
        if not any(self._places.declared(key) for key in declared):
            # Of a model without an output matrix, whose modules stand at the top.
            inner = self._places.places_of(f"model.{name}")
            declared = inner if all(self._places.declared(key) for key in inner) else declared
        if name in ("output.weight", HEAD) and self._places.declared(name) is None:  # the tied one
            declared = {HEAD: next(iter(declared.values()))}
        keys = {self._name(key): place for key, place in declared.items()}
        if EMBEDDING in keys:
            self._add_table(module, where)
            if self._fit.is_tied and HEAD not in self._files.modules:
                self._add_tied_head(module)
            return
        if any(key not in self._fit.targets for key in keys):
            known = any(self._places.declared(key) for key in declared)
            what = "octavo has adapters of products alone" if known else "the model has no such module"
            raise self._fail(where, what)
        if module.whole is not None:
            self._add_whole(module, keys)
            return
        if module.is_stack:
            self._add_stack(module, keys)
            return
        if list(keys) == [HEAD]:
            module = self._without_extra_rows(module)
        num_rows = sum(self._fit.targets[key].tensor.shape[0] for key in keys) + next(iter(keys.values())).skipped
        checked = self._checked(module, num_rows, self._fit.targets[next(iter(keys))].tensor.shape[1])
        for key, place in keys.items():
            if place.is_turned or place.is_stack:
                raise self._fail(where, "octavo computes with this module in another form, which adapters cannot have")
            target = self._fit.targets[key]
            rows = None if key == HEAD else self._places.ordered_rows(place, target.tensor, num_rows)
            self._add_part(target, checked, rows)

    def _check_allowed(self, name: str, where: str) -> None:
        allowed, module = self._fit.limits.lora_target_modules, name.removesuffix(".weight")
        if allowed and not any(f".{module}".endswith(f".{each}") for each in allowed):
            raise self._fail(where, f"--lora-target-modules allows adapters of {', '.join(allowed)} alone")

    def _add_stack(self, module: Module, keys: Mapping[str, Place]) -> None:
        """Of all experts at once: a [experts, rank, in], b [experts, out, rank]."""
        first = next(iter(keys.values()))
        (a_name, a), (b_name, b) = self._halves(module)
        targets = [self._fit.targets[key] for key in keys]
        num_experts, group = len(targets) // first.num_parts, targets[: first.num_parts]
        rows, columns = sum(target.tensor.shape[0] for target in group), group[0].tensor.shape[1]
        if not first.is_stack or any(target.expert < 0 for target in targets):
            raise self._fail(a_name, "the model has no experts there")
        if a.dim() != 3 or b.dim() != 3:
            raise self._fail(a_name if a.dim() != 3 else b_name, "it is not of all experts, as its other half is")
        if rows == columns and not self._files.is_gguf:
            version = self._files.peft_version
            if version < (0, 21) and not (first.transposed and version < (0, 19)):
                raise self._fail(a_name, "its matrix is square: PEFT before 0.21 does not say which way round it is")
        elif a.shape[2] == rows and b.shape[1] == columns:
            # Older versions of PEFT take a matrix for its transposed: [in, out] += b' a'.
            (a_name, a), (b_name, b) = (b_name, b.transpose(1, 2)), (a_name, a.transpose(1, 2))
        if (len(a), len(b)) != (num_experts, num_experts):
            raise self._fail(a_name, f"it is not of {num_experts} experts, as the model has them")
        for key, place in keys.items():
            target, (expert, _) = self._fit.targets[key], divmod(place.number, place.num_parts)
            own = Module(scaling=module.scaling, a=(a_name, a[expert]), b=(b_name, b[expert]))
            taken = self._places.ordered_rows(place, target.tensor, rows)
            own_rows = None if taken is None else taken - expert * rows
            self._add_part(target, self._checked(own, rows, columns), own_rows)

    def _halves(self, module: Module) -> tuple[Named, Named]:
        if module.a is None or module.b is None:
            name, _ = module.a or module.b or ("", None)
            raise self._fail(name, "its other half is missing")
        return module.a, module.b

    def _name(self, key: str) -> str:
        """The declared name in Hugging Face's form."""
        tensor = self._places.declared(key)
        return key if tensor is None else tensor.name

    # ------------------------------------------------------------ one product
    def _checked(self, module: Module, rows: int, columns: int) -> Module:
        """The module's tensors in their right shapes, finite and of floats."""
        if module.a is not None or module.b is not None:
            self._halves(module)
        rank = 0 if module.a is None else module.a[1].shape[0]
        if rank > self._fit.limits.max_lora_rank:
            name = module.a[0] if module.a else ""
            raise self._fail(name, f"its rank is {rank}, and --max-lora-rank {self._fit.limits.max_lora_rank}")
        shapes = {
            "a": (rank, columns), "b": (rows, rank), "b_bias": (rows,), "magnitude": (rows,), "bias": (rows,),
        }  # fmt: skip
        found = Module(scaling=module.scaling)
        for field_name, shape in shapes.items():
            value = getattr(module, field_name)
            if value is not None:
                setattr(found, field_name, (value[0], self._tensor(value, shape)))
        if found.magnitude is not None and found.a is None:
            raise self._fail(found.magnitude[0], "the matrices that it belongs to are missing")
        return found

    def _tensor(self, value: Named, shape: tuple[int, ...]) -> Tensor:
        name, tensor = value
        if len(shape) == 1:
            tensor = tensor.flatten()
        if tuple(tensor.shape) != shape or 0 in shape:
            raise self._fail(name, f"its shape is {list(tensor.shape)}, not {list(shape)}")
        if tensor.dtype not in _FLOATS:
            raise self._fail(name, f"its type is {str(tensor.dtype).removeprefix('torch.')}, not one of floats")
        if not all_finite(tensor):
            raise self._fail(name, "it holds NaN or infinite values")
        return tensor

    def _add_part(self, target: Target, module: Module, rows: Tensor | None) -> None:
        product = self._found.setdefault((target.weight.name, target.expert), _Product(target.weight.shape[-2]))

        def of(value: Named | None) -> Tensor | None:
            return None if value is None else value[1] if rows is None else value[1][rows]

        a, b = None if module.a is None else module.a[1], of(module.b)
        if a is not None and b is not None:
            scaling = module.scaling * target.tensor.scale
            product.parts.append((target.first, a, b, scaling))
        columns = slice(target.first, target.first + target.tensor.shape[0])
        magnitude, bias, b_bias = of(module.magnitude), of(module.bias), of(module.b_bias)
        gain = None
        if magnitude is not None and a is not None and b is not None:
            norms = (self._of_base(target.tensor) + module.scaling * b.float() @ a.float()).norm(dim=1)
            gain = product.scale[columns] = magnitude.float() / norms
            product.has_scale = True
        own = None
        if target.bias is not None and (gain is not None or bias is not None):
            own = self._of_base(target.bias)
        shift = torch.zeros(target.tensor.shape[0])
        if bias is not None:
            if own is None:
                raise self._fail(module.bias[0] if module.bias else "", "the model has no such bias")
            shift += (bias.float() - own) * target.bias.scale if target.bias is not None else 0.0
        if gain is not None and own is not None and target.bias is not None:
            shift += (1.0 - gain) * own * target.bias.scale
        if b_bias is not None:
            shift += b_bias.float() * module.scaling * target.tensor.scale
        if shift.any():
            product.shift[columns] = shift
            product.has_shift = True

    def _of_base(self, tensor: TensorDecl) -> Tensor:
        if self._base is None:
            self._base = self._open_base()
        return self._base(tensor)

    def _dtype(self, product: _Product) -> torch.dtype:
        if self._fit.dtype is not None:
            return self._fit.dtype
        found = {each.dtype for _, a, b, _ in product.parts for each in (a, b)}
        return found.pop() if len(found) == 1 else torch.float32

    # ------------------------------------------------------------ tables
    def _add_table(self, module: Module, where: str) -> None:
        vocab, width = self._fit.table
        if module.magnitude is not None or module.b_bias is not None:
            raise self._fail(where, "DoRA of embeddings is not supported")
        if module.whole is not None:
            whole, extra = self._parts(module.whole, (vocab, width))
            self._embedding = TableDelta(whole=whole, extra=extra)
            return
        (a_name, a), b = self._halves(module)
        rank, count = a.shape[0], a.shape[-1] - vocab
        self._check_extra(a_name, max(count, 0))
        a = self._tensor((a_name, a), (rank, vocab + max(count, 0)))
        factors, columns = self._tensor(b, (width, rank)), a.t()
        extra = None
        if count > 0:
            own = self._own_rows(module, a_name, count, (vocab, width))
            extra = own + module.scaling * columns[vocab:].float() @ factors.float().t()
        self._embedding = TableDelta(
            a=columns[:vocab].contiguous(), b=factors.t().contiguous(), scaling=module.scaling, extra=extra
        )

    def _add_tied_head(self, module: Module) -> None:
        """The output matrix has the rows of added tokens as the embedding has them before it is changed."""
        rows = module.base or module.whole
        if rows is not None:
            _, self._extra_head = self._parts(rows, self._fit.table)

    def _without_extra_rows(self, module: Module) -> Module:
        """Of the output matrix: the rows of added tokens become a matrix of their own."""
        vocab, width = self._fit.targets[HEAD].tensor.shape
        if module.a is None or module.b is None or module.b[1].shape[0] <= vocab:
            return module
        (name, b), count = module.b, module.b[1].shape[0] - vocab
        self._check_extra(name, count)
        if module.magnitude is not None or module.b_bias is not None or module.bias is not None:
            raise self._fail(name, "DoRA and biases of an output matrix that adds tokens are not supported")
        rank = module.a[1].shape[0]
        b = self._tensor((name, b), (vocab + count, rank))
        own = self._own_rows(module, name, count, (vocab, width))
        self._extra_head = own + module.scaling * b[vocab:].float() @ self._tensor(module.a, (rank, width)).float()
        return replace(module, b=(name, b[:vocab].contiguous()))

    def _own_rows(self, module: Module, name: str, count: int, shape: tuple[int, ...]) -> Tensor:
        """What rows of added tokens are before an adapter changes them, float32."""
        if module.base is None:
            raise self._fail(name, f"it adds {count} tokens, and the matrix with their rows (base_layer) is missing")
        _, extra = self._parts(module.base, shape)
        if extra is None or len(extra) != count:
            raise self._fail(name, f"it adds {count} tokens, and {module.base[0]!r} others")
        return extra.float()

    def _add_new_rows(self) -> None:
        """Those that stand in a file of their own."""
        for name, value in self._files.new_rows.items():
            if name not in ("input_embeddings", "output_embeddings") or value[1].dim() != 2:
                raise self._fail(value[0], "no rows of an embedding or of an output matrix")
            self._check_extra(value[0], len(value[1]))
            rows = self._tensor(value, (len(value[1]), self._fit.table[1]))
            if name == "output_embeddings":
                self._extra_head = rows
            else:
                self._embedding = replace(self._embedding or TableDelta(), extra=rows)

    def _add_whole(self, module: Module, keys: Mapping[str, Any]) -> None:
        assert module.whole is not None
        if list(keys) != [HEAD]:
            raise self._fail(module.whole[0], "modules_to_save: octavo has these of embed_tokens and lm_head alone")
        self._head, self._extra_head = self._parts(module.whole, self._fit.targets[HEAD].tensor.shape)

    def _parts(self, value: Named, shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """A matrix of a row for each token: the model's, and those that are added."""
        name, tensor = value
        rows = shape[0]
        if tensor.dim() == 2 and tensor.shape[0] > rows and tensor.shape[1] == shape[1]:
            self._check_extra(name, tensor.shape[0] - rows)
            self._tensor(value, tuple(tensor.shape))
            return tensor[:rows].contiguous(), tensor[rows:].contiguous()
        return self._tensor(value, shape), None

    def _check_extra(self, name: str, count: int) -> None:
        most = self._fit.limits.lora_extra_vocab_size
        if count > most:
            raise self._fail(name, f"it adds {count} tokens to the model's, and --lora-extra-vocab-size is {most}")

    def _fail(self, name: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self._source}: tensor {name!r}: {what}")


@dataclass(slots=True)
class _Product:
    """What an adapter does to one product, on its way."""

    num_columns: int
    parts: list[tuple[int, Tensor, Tensor, float]] = field(default_factory=list)  # first column, a, b, scaling
    scale: Tensor = field(init=False)
    shift: Tensor = field(init=False)
    has_scale: bool = False
    has_shift: bool = False

    def __post_init__(self) -> None:
        self.scale, self.shift = torch.ones(self.num_columns), torch.zeros(self.num_columns)

    def weights(self, dtype: torch.dtype) -> LoraWeights:
        parts = tuple(
            LoraPart(first, a.to(dtype).contiguous(), b.t().to(dtype).contiguous(), scaling)
            for first, a, b, scaling in sorted(self.parts, key=lambda part: part[0])
        )
        return LoraWeights(parts, self.scale if self.has_scale else None, self.shift if self.has_shift else None)


def _values(module: Module) -> list[Named]:
    values = (module.a, module.b, module.b_bias, module.magnitude, module.bias, module.whole, module.base)
    return [value for value in values if value is not None]
