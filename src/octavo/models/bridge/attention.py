"""The attention that transformers' modules call: keys and values go to the paged cache, and the table's attention reads
it.

A module hands over q, k and v of the step's tokens, rotated already, as [1, heads, T, D]. Which call of a step it is
says which layer's cache it has: `proof` records the calls once, a step then checks that they are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from octavo.models.bridge.refusal import Refusal
from octavo.ops.operands import Buffer, Cache, Heads, Weight
from octavo.ops.operations import Attend, RopeWrite
from octavo.ops.run import HANDLERS, Frame
from octavo.ops.step import KVCaches, StepTensors
from octavo.ops.table import Ops

#: Of the attention and of the experts, in transformers' tables.
NAME: Final = "octavo"
MAX_HEAD_DIM: Final = 256
TRIED_BLOCK_SIZE: Final = 16
#: The name under which an attention finds the sinks that it is handed.
SINKS: Final = "sinks"
OWN_MASK: Final = "its attention has a mask or a bias of its own"
#: What calls may say beside what is honoured, because it changes nothing here.
_HARMLESS: Final = frozenset(
    {
        "dropout", "position_ids", "position_embeddings", "cache_position", "use_cache", "output_attentions",
        "output_hidden_states", "return_dict", "is_causal", "layer_idx", "logits_to_keep", "num_items_in_batch",
        "output_router_logits", "target_dtype", "deterministic", "attn_implementation", "training",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One attention of a step: the operations that compute it."""

    module: str  # its path in the tree
    write: RopeWrite
    attend: Attend
    k_dim: int  # of a head, of what the module hands over; `heads.head_dim` has room for both
    v_dim: int

    @property
    def heads(self) -> Heads:
        return self.attend.heads


@dataclass
class Asked:
    """A mask that a model makes, before it hands it to an attention: `proof` compares the two."""

    allows: Any  # transformers' function of batch, head, query and key

    def __getitem__(self, index: Any) -> Asked:
        return self

    def to(self, *args: Any, **kwargs: Any) -> Asked:
        return self

    def __getattr__(self, name: str) -> Any:
        raise Refusal(OWN_MASK)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise Refusal(OWN_MASK)


@dataclass
class Step:
    """The attentions of one step, in the order of their calls."""

    ops: Ops
    step: StepTensors
    kv_caches: KVCaches
    calls: Sequence[Call]
    done: int = 0


@dataclass
class Recording:
    """The first run of a model, over one short sequence: notes its attentions, and gives each a cache."""

    ops: Ops
    step: StepTensors
    paths: Mapping[nn.Module, str]
    calls: list[Call] = field(default_factory=list)
    kv_caches: list[tuple[Tensor, Tensor]] = field(default_factory=list)


#: What runs now. One model computes in a process, one step at a time.
_now: list[Step | Recording] = []


class running:
    """with running(step): the tree's attentions are that step's."""

    def __init__(self, step: Step | Recording) -> None:
        self._step = step

    def __enter__(self) -> None:
        _now.append(self._step)

    def __exit__(self, *error: object) -> None:
        _now.pop()


def register() -> None:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from octavo.models.bridge.modules import packed_experts

    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_EXPERTS_FUNCTIONS.register(NAME, packed_experts)


class asked_masks:
    """with asked_masks(): the tree makes `Asked` masks. Else it makes none, which costs nothing."""

    def __enter__(self) -> None:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *, mask_function, **rest: Asked(mask_function))

    def __exit__(self, *error: object) -> None:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

        del ALL_MASK_ATTENTION_FUNCTIONS._global_mapping[NAME]


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query [1, Hq, T, D], key [1, Hkv, T, D], value [1, Hkv, T, Dv]; s_aux [Hq]: sinks. Returns [1, T, Hq, Dv], and no
    probabilities."""
    current = _now[-1]
    if isinstance(current, Recording):
        _check_others(module, attention_mask, sliding_window, others)
        call = _recorded(
            current, module, query, key, value, scaling, sliding_window or 0, softcap or 0.0, s_aux is not None
        )
    else:
        call = current.calls[current.done]
        current.done += 1
    heads, num_tokens = call.heads, query.shape[2]
    parts = [part.transpose(1, 2) for part in (query, key, value)]
    if call.k_dim != heads.head_dim or call.v_dim != heads.head_dim:
        parts = [nn.functional.pad(part, (0, heads.head_dim - part.shape[-1])) for part in parts]
    qkv = torch.cat(parts, 2).view(num_tokens, heads.qkv_size)
    out = qkv.new_empty(num_tokens, heads.size)
    weights = {} if s_aux is None else {SINKS: s_aux.detach().float().contiguous()}
    frame = _Frame(current.step, current.kv_caches, {call.attend.qkv: qkv, call.attend.out: out}, weights)
    HANDLERS[RopeWrite](current.ops, call.write, frame)
    HANDLERS[Attend](current.ops, call.attend, frame)
    result = out.view(1, num_tokens, heads.num_heads, heads.head_dim)
    return (result if call.v_dim == heads.head_dim else result[..., : call.v_dim]), None


class _Frame(Frame):
    """The buffers of one attention."""

    def __init__(
        self, step: StepTensors, kv_caches: KVCaches, buffers: Mapping[Buffer, Tensor], weights: Mapping[str, Tensor]
    ) -> None:
        self.step, self.kv_caches, self.needed = step, kv_caches, None
        self._buffers, self._weights = buffers, weights

    def __getitem__(self, buffer: Buffer) -> Tensor:
        return self._buffers[buffer]


def _recorded(
    now: Recording,
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    window: int,
    softcap: float,
    has_sinks: bool,
) -> Call:
    k_dim, v_dim = k.shape[-1], v.shape[-1]
    head_dim = -(-max(k_dim, v_dim) // 2) * 2
    if q.shape[0] != 1 or q.shape[2] != k.shape[2] or q.shape[2] != len(now.step.token_ids):
        raise Refusal("its attention sees other tokens than the step's")
    if head_dim > MAX_HEAD_DIM or q.shape[1] % k.shape[1]:
        raise Refusal(f"no kernel has {q.shape[1]} heads of {head_dim} for {k.shape[1]} of keys")
    heads = Heads(num_heads=q.shape[1], num_kv_heads=k.shape[1], head_dim=head_dim)
    index = len(now.calls)
    path = now.paths[module]
    number = re.search(r"\.(\d+)\.", path)
    cache = Cache(index=index, heads=heads, window=window, layer=int(number[1]) if number else None)
    qkv, out = Buffer(f"{index}.qkv", heads.qkv_size), Buffer(f"{index}.attention", heads.size)
    call = Call(
        path,
        RopeWrite(qkv=qkv, heads=heads, cache=cache, rotation=None),
        Attend(
            out=out,
            qkv=qkv,
            heads=heads,
            cache=cache,
            softcap=softcap,
            scale=k_dim**-0.5 if scale is None else scale,
            sinks=Weight(SINKS, (heads.num_heads,)) if has_sinks else None,
        ),
        k_dim,
        v_dim,
    )
    now.calls.append(call)
    blocks = now.step.cache_groups[0][0].shape[1] + 1
    now.kv_caches.append(empty_caches(now.ops, heads, blocks))
    return call


def empty_caches(ops: Ops, heads: Heads, num_blocks: int) -> tuple[Tensor, Tensor]:
    """Of an attention that is tried out: keys and values, in blocks of `TRIED_BLOCK_SIZE` tokens."""
    shapes = ops.kv_cache_shapes(num_blocks, TRIED_BLOCK_SIZE, heads.num_kv_heads, heads.head_dim)
    keys, values = (torch.zeros(shape, dtype=ops.activation_dtype, device=ops.torch_device) for shape in shapes)
    return keys, values


def _check_others(module: nn.Module, mask: Any, window: int | None, others: Mapping[str, Any]) -> None:
    """Refuse what would have to change the result and is not honoured."""
    for name, value in others.items():
        if name not in _HARMLESS and value is not None and value is not False:
            raise Refusal(f"its attention asks for {name!r}, which is not known here")
    if not getattr(module, "is_causal", True) or others.get("is_causal") is False:
        raise Refusal("its attention sees later tokens too")
    if mask is None:
        return
    if not isinstance(mask, Asked):
        raise Refusal(OWN_MASK)
    far = 1 << 20
    near = [(3, 3, True), (3, 4, False), (5, 0, not window or window > 5)]
    ends = [(far, far - window + 1, True), (far, far - window, False)] if window else [(far, 0, True)]
    for q, k, expected in near + ends:
        zero, query, key = (torch.tensor(each) for each in (0, q, k))
        if bool(mask.allows(zero, zero, query, key)) != expected:
            raise Refusal("its attention sees neither all earlier tokens nor a window of them")
