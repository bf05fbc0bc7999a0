"""Vectors, classes and scores for programs: `LLM.embed`, `encode`, `classify` and `score`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from tqdm import tqdm  # type: ignore[import-untyped]

from octavo.base.errors import InvalidRequest, Overloaded
from octavo.base.params import PoolingParams
from octavo.served.pooling import PooledText, TextsTurn, pool, pooling_info, score
from octavo.served.turn import Continuation

if TYPE_CHECKING:
    from octavo.launch.engine_thread import EngineThread
    from octavo.served.model import ServedModel

#: Texts of one turn, and turns that are under way at once: the engine soon has the first, and always the next at hand.
_TEXTS: Final = 32
_TURNS: Final = 12
#: Seconds between two tries while other threads' requests fill the queue.
_RETRY_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class EmbeddingOutput:
    embedding: list[float]


@dataclass(frozen=True, slots=True)
class PoolingOutput:
    data: list[float] | list[list[float]]  # one for each token with the kind `all`


@dataclass(frozen=True, slots=True)
class ClassificationOutput:
    probs: list[float]
    label: str

    @property
    def num_classes(self) -> int:
        return len(self.probs)


@dataclass(frozen=True, slots=True)
class ScoringOutput:
    score: float


@dataclass(frozen=True, slots=True)
class PoolingRequestOutput:
    """Of one text, or of one pair of texts. `num_tokens`: of the text."""

    request_id: str
    outputs: EmbeddingOutput | PoolingOutput | ClassificationOutput | ScoringOutput
    num_tokens: int = 0
    finished: bool = True


class PoolingCalls:
    """The calls of `octavo.LLM` for models that give vectors. All of them raise `RequestError` naming what is wrong, or
    `ServerError`, and return results in the order of the texts.

    A text is one, or token ids, or a dictionary with either under `prompt` or `prompt_token_ids`.
    """

    _thread: EngineThread
    _model: ServedModel

    def embed(
        self,
        prompts: Any,
        *,
        use_tqdm: bool = False,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate_prompt_tokens: int | None = None,
        prompt_name: str | None = None,
    ) -> list[PoolingRequestOutput]:
        """Vectors. `dimensions`: so many of the first values, where the model allows it. `normalize`: to length 1;
        None: as the model has it. `prompt_name`: of what the model's files put in front of a text."""
        if pooling_info(self._model).classes:
            raise InvalidRequest("The model gives classes and no embeddings: call classify or score.", "model")
        wanted = PoolingParams(dimensions=dimensions, normalize=normalize)
        found = self._pooled(prompts, wanted, truncate_prompt_tokens, use_tqdm, prompt_name)
        return [_output(EmbeddingOutput(each.floats()), each) for each in found]

    def encode(
        self,
        prompts: Any,
        *,
        use_tqdm: bool = False,
        pooling_type: str | None = None,
        normalize: bool | None = None,
        truncate_prompt_tokens: int | None = None,
    ) -> list[PoolingRequestOutput]:
        """What the model's pooling gives; `pooling_type`: CLS, LAST, MEAN or ALL in place of the model's own."""
        kinds: dict[str, Any] = {"CLS": "cls", "LAST": "last", "MEAN": "mean", "ALL": "all"}
        if pooling_type is not None and pooling_type.upper() not in kinds:
            raise InvalidRequest(f"`pooling_type` is one of {', '.join(kinds)}.", "pooling_type")
        info = pooling_info(self._model)
        kind: Any = kinds[pooling_type.upper()] if pooling_type else ""
        if info.classes and kind:
            raise InvalidRequest("The model gives classes, which are made as its files say.", "pooling_type")
        wanted = PoolingParams(kind=kind, normalize=normalize)
        found = self._pooled(prompts, wanted, truncate_prompt_tokens, use_tqdm, None)
        by_token = (kind or info.kind) == "all"
        return [
            _output(PoolingOutput(each.rows(info.hidden_size) if by_token else each.floats()), each) for each in found
        ]

    def classify(
        self, prompts: Any, *, use_tqdm: bool = False, truncate_prompt_tokens: int | None = None
    ) -> list[PoolingRequestOutput]:
        """The values of the model's classes, and the label of the largest."""
        info = pooling_info(self._model, "Classification")
        if not info.classes:
            raise InvalidRequest("The model has no classes.", "model")
        outputs = []
        for each in self._pooled(prompts, PoolingParams(), truncate_prompt_tokens, use_tqdm, None):
            probs = each.floats()
            outputs.append(_output(ClassificationOutput(probs, info.labels[probs.index(max(probs))]), each))
        return outputs

    def score(
        self, text_1: str | Sequence[str], text_2: str | Sequence[str], *, truncate_prompt_tokens: int | None = None
    ) -> list[PoolingRequestOutput]:
        """How well each text of `text_2` fits its counterpart of `text_1`, or the only one there."""
        ones, others = ([given] if isinstance(given, str) else list(given) for given in (text_1, text_2))
        if not ones or len(ones) not in (1, len(others)):
            raise InvalidRequest("`text_1` is one text, or as many as `text_2` has.", "text_1")
        pairs = list(zip(ones * len(others) if len(ones) == 1 else ones, others, strict=True))
        turn = TextsTurn(request_id=_id(), texts=(), param="text_2", truncate=truncate_prompt_tokens)

        async def run() -> list[float]:
            values: list[float] = []
            for at in range(0, len(pairs), _TEXTS):
                scores = await score(self._model, turn, pairs[at : at + _TEXTS])
                values += scores.values
            return values

        return [PoolingRequestOutput(turn.request_id, ScoringOutput(value)) for value in self._thread.run(run())]

    def _pooled(
        self, prompts: Any, wanted: PoolingParams, truncate: int | None, use_tqdm: bool, prompt_name: str | None
    ) -> list[PooledText]:
        is_one = isinstance(prompts, str | Mapping) or (bool(prompts) and isinstance(prompts[0], int))
        items = [prompts] if is_one else list(prompts)
        info = pooling_info(self._model)
        if prompt_name is not None and prompt_name not in info.prompts:
            raise InvalidRequest(f"The model has no prompt {prompt_name!r}.", "prompt_name")
        front = info.prompts.get(prompt_name or info.default_prompt or "", "")
        texts = [_text(item, f"prompts.{place}", front) for place, item in enumerate(items)]
        turn = TextsTurn(request_id=_id(), texts=(), param="prompts", wanted=wanted, truncate=truncate)
        with tqdm(total=len(texts), desc="Processed texts", unit="text", disable=not use_tqdm) as bar:
            return self._thread.run(_pool_all(self._model, turn, texts, bar))


async def _pool_all(model: ServedModel, turn: TextsTurn, texts: list[Continuation], bar: Any) -> list[PooledText]:
    """A few turns at a time. The first failure ends the others."""
    room = asyncio.Semaphore(_TURNS)
    per_turn = min(_TEXTS, model.max_fanout)

    async def run(at: int) -> list[PooledText]:
        async with room:
            part = texts[at : at + per_turn]
            while True:
                try:
                    found = await pool(model, replace(turn, texts=part, request_id=_id()))
                except Overloaded:
                    await asyncio.sleep(_RETRY_SECONDS)
                else:
                    bar.update(len(part))
                    return found

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(at)) for at in range(0, len(texts), per_turn)]
    return [result for task in tasks for result in task.result()]


def _text(item: Any, param: str, front: str) -> Continuation:
    if isinstance(item, Mapping):
        item = item.get("prompt_token_ids") or item.get("prompt", "")
    if isinstance(item, str):
        return Continuation(prompt=front + item if item else item)
    if isinstance(item, Sequence) and all(type(each) is int for each in item):
        return Continuation(prompt=list(item))
    raise InvalidRequest("A text is a text, a list of token ids, or a dictionary with one.", param)


def _output(value: Any, found: PooledText) -> PoolingRequestOutput:
    return PoolingRequestOutput(_id(), value, found.num_tokens)


def _id() -> str:
    return f"llm-{uuid.uuid4().hex}"
