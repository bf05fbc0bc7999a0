"""Texts a second of a model that gives vectors, beside sentence-transformers or, where that is missing, transformers.

    python bench/embeddings.py DIRECTORY [--rounds 3] [--threads 2] [--quantization int8]

DIRECTORY is a model of sentence-transformers with a mean of its rows, such as all-MiniLM-L6-v2. Both are measured in
turn in one process; transformers is called as sentence-transformers calls it: texts sorted by length, in batches of 32
that are filled up to the longest. Goal: 3 x its speed. Says how far the vectors are apart.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from octavo import LLM

_BATCH: Final = 32
_WORDS: Final = (
    "the river of light over old city people who work at night and think about what they saw in winter when water "
    "rises slowly under bridges while children play music near small houses made from stone wood glass"
)
#: Of the lines of the table: how many texts, and how many words the shortest and the longest has.
_LOADS: Final = {"256 short texts": (256, 5, 20), "64 texts of any length": (64, 5, 150)}


def texts_of(count: int, low: int, high: int) -> list[str]:
    rng, words = random.Random(count), _WORDS.split()
    return [" ".join(rng.choices(words, k=rng.randint(low, high))) for _ in range(count)]


def peer(directory: Path) -> tuple[str, Callable[[Sequence[str]], np.ndarray]]:
    """Its name, and from texts to vectors [texts, width]."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return "transformers", _transformers(directory)
    model: Any = SentenceTransformer(str(directory), device="cpu")
    return "sentence-transformers", lambda texts: model.encode(list(texts), batch_size=_BATCH)


def _transformers(directory: Path) -> Callable[[Sequence[str]], np.ndarray]:
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).eval()

    def encode(texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda number: -len(texts[number]))
        found: dict[int, torch.Tensor] = {}
        for first in range(0, len(order), _BATCH):
            numbers = order[first : first + _BATCH]
            values = tokenizer([texts[number] for number in numbers], padding=True, return_tensors="pt")
            with torch.no_grad():
                rows = model(**values).last_hidden_state
            mask = values["attention_mask"][..., None]
            means = torch.nn.functional.normalize((rows * mask).sum(1) / mask.sum(1))
            found |= dict(zip(numbers, means, strict=True))
        return torch.stack([found[number] for number in range(len(texts))]).numpy()

    return encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quantization", help="of octavo's weights: int8, int4; see octavo serve --help")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    name, encode = peer(args.model)
    with LLM(str(args.model), quantization=args.quantization) as llm:

        def own(texts: Sequence[str]) -> np.ndarray:
            return np.array([output.outputs.embedding for output in llm.embed(list(texts), use_tqdm=False)])

        for load, (count, low, high) in _LOADS.items():
            texts = texts_of(count, low, high)
            best = {"octavo": 0.0, name: 0.0}
            for _ in range(args.rounds + 1):
                made = {}
                for who, run in (("octavo", own), (name, encode)):
                    start = time.perf_counter()
                    made[who] = run(texts)
                    best[who] = max(best[who], count / (time.perf_counter() - start))
            ours, theirs = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in made.values())
            apart = float(np.max(1 - (ours * theirs).sum(1)))
            speeds = ", ".join(f"{who} {speed:.1f}" for who, speed in best.items())
            print(f"{load}: texts/s: {speeds}; {best['octavo'] / best[name]:.2f} x; cosine apart by {apart:.1e}")


if __name__ == "__main__":
    main()
