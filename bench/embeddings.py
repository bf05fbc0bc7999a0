"""Texts a second of a model that gives vectors, beside sentence-transformers or, where that is missing, transformers.

    python bench/embeddings.py DIRECTORY [--rounds 3] [--threads 2] [--quantization int8] [--precision highest]
        [--server NAME=URL]...

DIRECTORY is a model of sentence-transformers with a mean of its rows, such as all-MiniLM-L6-v2. All are measured in
turn; transformers is called as sentence-transformers calls it: texts sorted by length, in batches of 32 that are filled
up to the longest. A server gets all texts in one request to its /v1/embeddings. Goals: 3 x the speed of
sentence-transformers, 2 x that of llama.cpp's server. Says how far the vectors are apart.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import time
import urllib.request
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


def server(url: str) -> Callable[[Sequence[str]], np.ndarray]:
    def encode(texts: Sequence[str]) -> np.ndarray:
        body = json.dumps({"input": texts, "encoding_format": "base64"}).encode()
        request = urllib.request.Request(f"{url}/v1/embeddings", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            found = sorted(json.load(reply)["data"], key=lambda each: each["index"])
        return np.array([np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in found])

    return encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quantization", help="of octavo's weights: int8, int4; see octavo serve --help")
    parser.add_argument("--precision", default="auto", help="--float32-matmul-precision of octavo")
    parser.add_argument("--server", action="append", default=[], metavar="NAME=URL")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    own = "octavo"
    with LLM(str(args.model), quantization=args.quantization, float32_matmul_precision=args.precision) as llm:

        def embed(texts: Sequence[str]) -> np.ndarray:
            return np.array([output.outputs.embedding for output in llm.embed(list(texts), use_tqdm=False)])

        sides: dict[str, Callable[[Sequence[str]], np.ndarray]] = {own: embed, **dict([peer(args.model)])}
        for each in args.server:
            name, _, url = each.partition("=")
            sides[name] = server(url)
        for load, (count, low, high) in _LOADS.items():
            texts = texts_of(count, low, high)
            best, made = dict.fromkeys(sides, 0.0), {}
            for _ in range(args.rounds + 1):
                for who, run in sides.items():
                    start = time.perf_counter()
                    vectors = run(texts)
                    best[who] = max(best[who], count / (time.perf_counter() - start))
                    made[who] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            print(f"{load}: {own} {best[own]:.1f} texts/s")
            for who in list(sides)[1:]:
                apart = float(np.max(1 - (made[own] * made[who]).sum(1)))
                print(f"    {who} {best[who]:.1f}: {best[own] / best[who]:.2f} x; cosine apart by {apart:.1e}")


if __name__ == "__main__":
    main()
