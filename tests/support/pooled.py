"""A model that gives vectors: in octavo's engine, and in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import transformers

from octavo.base.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from octavo.base.params import PoolingParams, SamplingParams
from octavo.core.scheduler.scheduler import Scheduler
from octavo.wire.messages import AddRequest
from octavo.worker.worker import Worker

VOCAB = 96
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 130,
}  # fmt: skip
DECODER = {**SMALL, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}
DISTIL = {"vocab_size": VOCAB, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "max_position_embeddings": 130}
CLASSES = {"num_labels": 3, "id2label": {0: "bad", 1: "good", 2: "so"}}


class Served:
    """Files of a model in octavo's engine."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.directory = path
        self.load(**options)

    def load(self, **options: Any) -> None:
        self.config = EngineConfig(
            model=ModelConfig(**{"model": str(self.directory), "dtype": "float32", **options}),
            cache=CacheConfig(kv_cache_memory_bytes=1 << 22),
            scheduler=SchedulerConfig(max_num_seqs=16),
        )
        self.worker = Worker(self.config, lambda name, detail: None)
        self.info = self.worker.load()

    def run(self, texts: Sequence[list[int]], *params: PoolingParams, step: int = 0) -> list[np.ndarray]:
        """`step`: prompt tokens of a step."""
        info = msgspec.structs.replace(self.info, max_num_prefill_tokens=step) if step else self.info
        scheduler = Scheduler(self.config, info)
        for number, ids in enumerate(texts):
            wanted = params[number % len(params)] if params else PoolingParams()
            refused = scheduler.add(
                AddRequest(number, ids, SamplingParams(max_tokens=1), pooling=wanted, arrival_time=float(number))
            )
            assert refused is None, refused
        found: dict[int, np.ndarray] = {}
        while scheduler.has_work:
            plan = scheduler.schedule()
            for output in scheduler.update(plan, self.worker.execute(plan)):
                assert output.finish_reason == "stop", output.error
                assert output.pooled is not None
                found[output.request_id] = np.frombuffer(output.pooled, "<f4")
        return [found[number] for number in range(len(texts))]


class Pooled(Served):
    """The same, and what transformers has of it."""

    def __init__(self, directory: Path, name: str, values: dict[str, Any], **options: Any) -> None:
        stem = name.removesuffix("ForSequenceClassification").removesuffix("Model").removesuffix("ForCausalLM")
        config = getattr(transformers, f"{stem}Config")(**values)
        config._attn_implementation = "eager"
        torch.manual_seed(0)
        self.reference = getattr(transformers, name)(config).eval()
        with torch.no_grad():
            for parameter in self.reference.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        self.reference.save_pretrained(directory)
        super().__init__(directory, **options)

    @property
    def is_encoder(self) -> bool:
        return self.reference.config.model_type in ("bert", "roberta", "xlm-roberta", "distilbert")

    def hidden(self, ids: list[int], **inputs: Any) -> torch.Tensor:
        with torch.no_grad():
            model = getattr(self.reference, self.reference.base_model_prefix, self.reference)
            rows: torch.Tensor = model(input_ids=torch.tensor([ids]), **inputs).last_hidden_state[0]
        return rows

    def logits(self, ids: list[int], **inputs: Any) -> torch.Tensor:
        with torch.no_grad():
            values: torch.Tensor = self.reference(input_ids=torch.tensor([ids]), **inputs).logits[0]
        return values


def unit(row: torch.Tensor) -> np.ndarray:
    result: np.ndarray = (row / row.norm()).numpy()
    return result


def texts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(4, VOCAB, (length,), generator=generator).tolist() for length in lengths]


TEXTS = texts_of(5, 1, 70, 19, 128)
