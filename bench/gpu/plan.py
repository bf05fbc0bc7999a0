"""Which stages run, in which order, and whether there is still time for one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: Seconds kept back for the table at the end.
RESERVE: Final = 5.0
#: Seconds of one part of a run, for machines that are lent for minutes at a time; the two parts together check all and
#: measure a figure of each workload.
PART_SECONDS: Final = 270.0
#: A stage may take so many times what it usually does before it is ended.
_PATIENCE: Final = 2.5


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`seconds`: what it takes on an H100, about. `is_check`: the run has failed when it does. `parts`: those that it
    belongs to."""

    name: str
    about: str
    seconds: float
    is_check: bool = False
    parts: tuple[int, ...] = ()

    @property
    def limit(self) -> float:
        """Seconds after which it hangs."""
        return max(60.0, _PATIENCE * self.seconds)


#: In order of worth: what comes last is left out first.
STAGES: Final = (
    Stage(name="limits", about="what the GPU can do: copies, products, launches", seconds=15, parts=(1, 2)),
    Stage(name="check-ops", about="every operation against the reference", seconds=70, is_check=True, parts=(1,)),
    Stage(
        name="check-models",
        about="tiny models against transformers, graphs, company",
        seconds=50,
        is_check=True,
        parts=(1,),
    ),
    Stage(name="small", about="Qwen3-0.6B: W1, W9, 256 streams", seconds=45, parts=(1,)),
    Stage(name="llama", about="Llama-3.1-8B: W9, W4, W6, W7", seconds=70, parts=(2,)),
    Stage(name="qwen", about="Qwen3-8B: W2", seconds=50, parts=(2,)),
    Stage(name="kernels", about="operations beside cuBLAS and torch's attention", seconds=60, parts=(1,)),
    Stage(name="idle", about="GPU idle between steps, Qwen3-0.6B, 64 streams", seconds=20, parts=(2,)),
    Stage(name="start", about="process start to the first token over HTTP, 8B", seconds=30),
    Stage(name="invariant", about="Qwen3-8B: W2, the same bits alone and in company", seconds=35, parts=(2,)),
    Stage(name="fp8-kv", about="Llama-3.1-8B with a cache of fp8: W6", seconds=35, parts=(2,)),
    Stage(name="server", about="Qwen3-0.6B over HTTP: 256 streams, W3, first token", seconds=45, parts=(1,)),
    Stage(name="generate", about="transformers: continuous batching, Qwen3-0.6B", seconds=45),
    Stage(name="compiled", about="transformers: compiled decoding with a static cache", seconds=60),
    Stage(name="fp8", about="Llama-3.1-8B with weights in fp8: W9, W5", seconds=35, parts=(2,)),
    Stage(name="gemma", about="Gemma-3-1B: W9, 64 streams", seconds=25),
    Stage(name="uniform", about="Llama-3.1-8B: W8", seconds=60, parts=(2,)),
    Stage(name="rates", about="Llama-3.1-8B over HTTP: W3 at 16 and 32 requests a second", seconds=60),
)
BY_NAME: Final = {stage.name: stage for stage in STAGES}


def chosen(only: Sequence[str], part: int | None = None) -> list[Stage]:
    """The stages of these names in their order; without names those of a part, or all. Raises KeyError for a name that
    does not exist."""
    if not only:
        return [stage for stage in STAGES if part is None or part in stage.parts]
    wanted = {BY_NAME[name].name for name in only}
    return [stage for stage in STAGES if stage.name in wanted]


def time_limit(stage: Stage, left: float, scale: float = 1.0) -> float | None:
    """Seconds that the stage gets of those that are left; None when it could not end in them.

    `scale`: how long stages take here, as a share of `Stage.seconds`; 0: nobody knows.
    """
    usable = left - RESERVE
    if usable < scale * stage.seconds:
        return None
    return min(usable, stage.limit) if scale else usable
