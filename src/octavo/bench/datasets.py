"""The prompts of a benchmark: random ones, all different, or a file's."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.base.errors import InvalidConfig
from octavo.bench.config import DatasetConfig

# Words that nearly every tokenizer has as one token with the space before them.
WORDS = (
    "river", "garden", "paper", "engine", "silver", "window", "market", "letter", "winter", "bridge", "story", "orange",
    "forest", "wheel", "stone", "water", "house", "light", "music", "school", "street", "night", "table", "doctor",
    "number", "island", "summer", "color", "metal", "power", "glass", "horse",
)  # fmt: skip
#: Conversations beyond these, in tokens, are left out, as is usual with this file.
SHORTEST, LONGEST_PROMPT, LONGEST = 4, 1024, 2048
#: Of English text, about: for clients without the model's tokenizer.
CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True)
class Prompt:
    """`content` is a text or token ids."""

    content: str | list[int]
    output_len: int


def random_text(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(num_words))


def random_ids(rng: random.Random, length: int, vocab_size: int) -> list[int]:
    return [rng.randrange(vocab_size) for _ in range(length)]


def estimated_tokens(text: str) -> int:
    return round(len(text) / CHARACTERS_PER_TOKEN)


def prompts(
    config: DatasetConfig,
    count: int,
    rng: random.Random,
    *,
    make: Callable[[random.Random, int], str | list[int]] = random_text,
    num_tokens: Callable[[str], int] = estimated_tokens,
) -> list[Prompt]:
    """`count` prompts, a file's in an order that the seed decides. `make` makes a random one of a length.

    Raises `InvalidConfig` for a file that cannot be read or has too few conversations.
    """
    check_dataset(config)
    if config.dataset_path is None:
        return [Prompt(make(rng, config.random_input_len), config.random_output_len) for _ in range(count)]
    found = _sharegpt(config.dataset_path, config.sharegpt_output_len, num_tokens)
    if len(found) < count:
        raise InvalidConfig(f"{config.dataset_path} has {len(found)} fitting conversations; --num-prompts is {count}")
    return rng.sample(found, count)


def check_dataset(config: DatasetConfig) -> None:
    """Raises `InvalidConfig` for a file without its kind or a kind without its file."""
    if (config.dataset_name == "sharegpt") != (config.dataset_path is not None):
        raise InvalidConfig("--dataset-name sharegpt and --dataset-path must be given together")


def _sharegpt(path: str, output_len: int | None, num_tokens: Callable[[str], int]) -> list[Prompt]:
    """The first question of each conversation, with the length of the first answer."""
    found = []
    for question, answer in _turns(path):
        reply = output_len or num_tokens(answer)
        length = num_tokens(question)
        if length >= SHORTEST and reply >= SHORTEST and length <= LONGEST_PROMPT and length + reply <= LONGEST:
            found.append(Prompt(question, reply))
    return found


def _turns(path: str) -> Sequence[tuple[str, str]]:
    try:
        entries: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise InvalidConfig(f"cannot read --dataset-path {path}: {e.strerror or e}") from e
    except ValueError as e:
        raise InvalidConfig(f"--dataset-path {path} is not JSON: {e}") from e
    try:
        talks = [entry.get("conversations") or entry.get("conversation") or [] for entry in entries]
        return [(str(talk[0]["value"]), str(talk[1]["value"])) for talk in talks if len(talk) >= 2]
    except (AttributeError, KeyError, TypeError):
        raise InvalidConfig(f"--dataset-path {path} is not a list of ShareGPT conversations") from None
