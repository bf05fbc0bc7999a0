"""Tries a tree out before it serves: which attentions a step calls, and that no row depends on another one.

The table's operations keep the law, what is left of transformers' modules need not: a matrix product of torch's sums in
an order that depends on the number of rows, and what does not fill a vector of the processor is computed by other code.
Both are seen in a first run, and their modules run one token at a time from then on. A second look compares real rows,
alone and in company, whole and in pieces, bit for bit: what differs is run by itself too, or refused by name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from octavo.base.errors import CheckpointError
from octavo.models.bridge.attention import TRIED_BLOCK_SIZE, Call, Recording, Step, asked_masks, empty_caches, running
from octavo.models.bridge.declare import BridgedDefinition, program_of
from octavo.models.bridge.modules import VECTOR
from octavo.models.bridge.refusal import NO_INTERFACE, Refusal
from octavo.models.decoder import grouped
from octavo.ops.operations import Attend, Linear, RopeWrite
from octavo.ops.table import Ops

if TYPE_CHECKING:
    from octavo.models.bridge.model import BridgedModel

logger = logging.getLogger("octavo.models")

#: Tokens of the sequence that is looked at: a number that no size of a model is likely to have.
_LENGTH: Final = 23
_COMPANY: Final = 44
#: Kinds of modules that are given a row at a time because a look showed a difference, before the model is refused.
_MAX_KINDS: Final = 12
_PRODUCTS: Final = (
    "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "linear", "convolution",
    "_scaled_dot_product", "cudnn_convolution", "mkldnn_convolution", "_conv_depthwise2d",
)  # fmt: skip
_CURVES: Final = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sigmoid", "log_sigmoid_forward", "silu", "gelu", "tanh",
    "sin", "cos", "tan", "erf", "softplus", "mish", "elu", "pow", "logit", "sinh", "cosh", "atan", "hypot",
)  # fmt: skip


def proven(model: BridgedModel, tree: Any, definition: BridgedDefinition, ops: Ops) -> BridgedDefinition:
    """The definition with its attentions, and the modules that run row by row; `model` runs them so from here on.

    Raises Refusal for what cannot be served.
    """
    vocab_size = definition.spec.vocab_size
    if definition.spec.max_position_embeddings < _COMPANY:
        raise Refusal(f"its context of {definition.spec.max_position_embeddings} tokens is too short to be tried out")
    ids = torch.randint(0, vocab_size, (_LENGTH + _COMPANY,), generator=torch.Generator().manual_seed(1)).tolist()
    first, company = ids[:_LENGTH], ids[_LENGTH:]
    recording = Recording(ops, _step([(first, 0)], ops), {module: path for path, module in tree.named_modules()})
    seen = _Seen(tree)
    model.spec = definition.spec
    with _steps_of(tree), asked_masks(), running(recording), seen.watching():
        model.logits(model.hidden(recording.step))
    if not recording.calls:
        raise Refusal(NO_INTERFACE)
    definition = _with_calls(definition, recording.calls)
    if not _holds_rows(ops):
        return definition
    attending = {call.module for call in definition.calls}
    by_itself = _checked(tree, seen.paths, attending)
    model.run_by_row(dict.fromkeys(by_itself))
    looks = _Looks(model, tree, definition, ops, first, company)
    for _ in range(_MAX_KINDS):
        with _steps_of(tree):
            different = looks.first_difference()
        if different is None:
            break
        if different in by_itself:
            raise Refusal(f"what its {_kind(tree, different)} computes of a token depends on the step's other tokens")
        more = _checked(tree, _of_kind(tree, different), attending)
        model.run_by_row(dict.fromkeys(more))
        by_itself |= more
    else:
        raise Refusal("what its modules compute of a token depends on the step's other tokens")
    if by_itself:
        kinds = sorted({_kind(tree, path) for path in by_itself})
        logger.info("run one token at a time, so that no reply depends on others: %s", ", ".join(kinds))
    return replace(definition, row_wise=model.layouts(by_itself))


@contextmanager
def _steps_of(tree: Any) -> Iterator[None]:
    """Whatever modules raise, with other modules than they know inside, is a reason to refuse the model."""
    try:
        yield
    except (Refusal, CheckpointError):
        raise
    except Exception as error:
        if not tree._supports_attention_backend:
            raise Refusal(NO_INTERFACE) from error
        raise Refusal(f"a first step fails: {type(error).__name__}: {str(error)[:300]}") from error


def _holds_rows(ops: Ops) -> bool:
    """Whether the table's operations keep the law: those of the CPU do."""
    return ops.implementations.get("linear") == "cpu"


def _with_calls(definition: BridgedDefinition, calls: Sequence[Call]) -> BridgedDefinition:
    ops, groups = grouped([op for call in calls for op in (call.write, call.attend)])
    if len({call.heads for call in calls}) > 1:
        raise Refusal("its layers' attentions have heads of different sizes")
    made = []
    for number, call in enumerate(calls):
        write, attend = ops[2 * number], ops[2 * number + 1]
        assert isinstance(write, RopeWrite) and isinstance(attend, Attend)
        made.append(replace(call, write=write, attend=attend))
    linears = [op.weight for op in definition.program.ops if isinstance(op, Linear)]
    return replace(definition, calls=tuple(made), program=program_of(linears, tuple(made)), cache_groups=groups)


def _checked(tree: nn.Module, paths: frozenset[str], attending: set[str]) -> frozenset[str]:
    """Modules that can run row by row: those without an attention inside. The tree itself: its logits."""
    for path in paths:
        if path and any(call == path or call.startswith(f"{path}.") for call in attending):
            raise Refusal(f"its {_kind(tree, path)} computes in a way that depends on the step's other tokens")
    # A module inside another one that runs row by row sees rows anyway.
    return frozenset(path for path in paths if not any(path.startswith(f"{other}.") for other in paths if other))


def _kind(tree: nn.Module, path: str) -> str:
    return type(tree.get_submodule(path)).__name__


def _of_kind(tree: nn.Module, path: str) -> frozenset[str]:
    kind = type(tree.get_submodule(path))
    return frozenset(other for other, module in tree.named_modules() if type(module) is kind)


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes in whose code torch computes what may round otherwise in company."""

    def __init__(self, tree: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._paths = {module: path for path, module in tree.named_modules()}
        self._stack: list[nn.Module] = []
        self._found: set[str] = set()

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(self._found)

    @contextmanager
    def watching(self) -> Iterator[None]:
        def enter(module: nn.Module, args: Any) -> None:
            self._stack.append(module)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self._stack.pop()

        handles = [
            nn.modules.module.register_module_forward_pre_hook(enter),
            nn.modules.module.register_module_forward_hook(leave),
        ]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.removesuffix("_")
        owner = next((self._paths[module] for module in reversed(self._stack) if module in self._paths), "")
        is_product = name.startswith(_PRODUCTS) and not _is_outer(args)
        is_square = name == "pow" and args[1:] == (2,)
        if is_product or (name in _CURVES and not is_square and _leaves_a_rest(result)):
            self._found.add(owner)
        return result


def _is_outer(args: Any) -> bool:
    """Whether a product of matrices sums over one value only, as tables of rotations are made."""
    factors = [each for each in args if isinstance(each, Tensor) and each.dim() >= 2]
    return len(factors) >= 2 and factors[-2].shape[-1] == 1


def _leaves_a_rest(result: Any) -> bool:
    if not isinstance(result, Tensor) or not result.is_floating_point() or result.numel() % _LENGTH:
        return False
    return bool(result.numel() // _LENGTH % VECTOR)


@dataclass(frozen=True)
class _Plan:
    """`StepTensors` of a look."""

    token_ids: Tensor
    positions: Tensor
    query_start_loc: Tensor
    seq_lens: Tensor
    cache_groups: list[tuple[Tensor, Tensor]]
    state_slots: Tensor | None = None
    input_rows: Tensor | None = None
    key_ends: Tensor | None = None
    encoder_lens: Tensor | None = None
    encoder_plan: None = None
    position_parts: Tensor | None = None
    replaced_index: Tensor | None = None
    replaced_rows: Tensor | None = None
    adapter_slots: Tensor | None = None
    attention_plan: Any = None


def _step(parts: Sequence[tuple[Sequence[int], int]], ops: Ops, num_groups: int = 1) -> _Plan:
    """A step of some sequences' tokens: of each its ids up to the end of the step, and how many are computed already.
    Sequence i has its own blocks."""
    most = -(-(_LENGTH + _COMPANY) // TRIED_BLOCK_SIZE)
    device = ops.torch_device
    ids, positions, slots = [], [], []
    for number, (tokens, start) in enumerate(parts):
        for position in range(start, len(tokens)):
            ids.append(tokens[position])
            positions.append(position)
            slots.append((1 + number * most) * TRIED_BLOCK_SIZE + position)
    lengths = [len(tokens) for tokens, _ in parts]
    starts = np.cumsum([0, *(len(tokens) - start for tokens, start in parts)])
    tables = torch.arange(1, 1 + most * len(parts), dtype=torch.int32, device=device).view(len(parts), most)

    def int32(values: Any) -> Tensor:
        return torch.tensor(np.asarray(values), dtype=torch.int32, device=device)

    group = tables, torch.tensor(slots, dtype=torch.int64, device=device)
    return _Plan(int32(ids), int32(positions), int32(starts), int32(lengths), [group] * num_groups)


class _Looks:
    """The rows of one sequence, computed in several ways."""

    def __init__(
        self,
        model: BridgedModel,
        tree: nn.Module,
        definition: BridgedDefinition,
        ops: Ops,
        first: list[int],
        company: list[int],
    ) -> None:
        self._model, self._ops = model, ops
        self._paths = {module: path for path, module in tree.named_modules()}
        self._calls, self._groups = definition.calls, definition.cache_groups
        n = len(first)
        other, some = (company, 0), first[:9]
        #: Each a list of steps; the rows looked at are those of the first sequence.
        self._whole: list[Any] = [[(first, 0)]]
        self._in_company: list[Any] = [[(first, 0), other]]
        self._in_pieces: list[Any] = [
            [(first[:1], 0)],
            [(some, 1), other],
            [(first[: n - 1], 9)],
            [(first, n - 1), (company, 40)],
        ]

    def first_difference(self) -> str | None:
        """The path of the module that first gives other rows; None if all are the same, bit for bit."""
        expected = self._run(self._whole)
        for way in (self._in_company, self._in_pieces):
            found = self._run(way)
            for path, rows in expected.items():
                if path in found and not _same(rows, found[path]):
                    return path.partition("#")[0]
        return None

    def _run(self, steps: list[Any]) -> dict[str, Tensor]:
        """By the path of each module and its turn: its rows of the first sequence. Modules end in this order."""
        caches = self._caches()
        parts: dict[str, list[Tensor]] = {}
        for plan in steps:
            step = _step(plan, self._ops, len(self._groups))
            own = len(plan[0][0]) - plan[0][1]
            notes = _Notes(self._paths, len(step.token_ids), own, parts)
            # The head's own modules see one row after the other where it runs by row: its result is looked at instead.
            with notes, running(Step(self._ops, step, caches, self._calls)):
                hidden = self._model.hidden(step)
            parts.setdefault("#logits", []).append(self._model.logits(hidden)[:own])
        return {path: torch.cat(each) for path, each in parts.items() if _alike(each)}

    def _caches(self) -> list[tuple[Tensor, Tensor]]:
        most = 1 + 2 * -(-(_LENGTH + _COMPANY) // TRIED_BLOCK_SIZE)
        return [empty_caches(self._ops, call.heads, most) for call in self._calls]


class _Notes:
    """Collects the rows that modules give for the first `own` of a step's `total` tokens."""

    def __init__(self, paths: dict[nn.Module, str], total: int, own: int, parts: dict[str, list[Tensor]]) -> None:
        self._paths, self._total, self._own, self._parts = paths, total, own, parts
        self._turns: dict[str, int] = {}

    def __enter__(self) -> None:
        self._handle = nn.modules.module.register_module_forward_hook(self._note)

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def _note(self, module: nn.Module, args: Any, output: Any) -> None:
        path = self._paths.get(module)
        if path is None:
            return
        turn = self._turns[path] = self._turns.get(path, 0) + 1
        for number, rows in enumerate(_rows_of(output, self._total)):
            self._parts.setdefault(f"{path}#{turn}.{number}", []).append(rows[: self._own].clone())


def _rows_of(output: Any, total: int) -> Iterator[Tensor]:
    """The tensors of a module's output that have a row for each of the step's tokens."""
    if isinstance(output, tuple | list):
        for each in output:
            yield from _rows_of(each, total)
    elif isinstance(output, dict):
        yield from _rows_of(tuple(output.values()), total)
    elif isinstance(output, Tensor) and output.dim() >= 2 and output.shape[:2] == (1, total):
        yield output[0]
    elif isinstance(output, Tensor) and output.dim() >= 1 and output.shape[0] == total:
        yield output


def _alike(parts: list[Tensor]) -> bool:
    return len({tuple(part.shape[1:]) for part in parts}) == 1


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or torch.equal(a, b)
