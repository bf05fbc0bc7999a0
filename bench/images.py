"""What pictures cost: encoding beside transformers, a second question about a picture, streams with pictures.

    PYTHONPATH=tests python bench/images.py SMOLLM2_DIRECTORY [--parts encode,second,streams] [--small] [--rounds 3]

SMOLLM2_DIRECTORY is SmolLM2-135M-Instruct as a Hugging Face directory; before it stands a tower of SmolVLM's sizes with
random weights: 93 million parameters, 1,024 patches and 64 rows a picture. Goals: encoding at least 2 x transformers',
the second question's first token no later than that of a text of as many tokens, p99 over p50 between tokens within 3.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from openai import AsyncOpenAI, OpenAI
from PIL import Image
from servers import Server, free_port, octavo_command, running

from octavo.base.config import ModelConfig, ParallelConfig
from octavo.base.media import MediaItem, place_media
from octavo.device.cpu import CPUDevice
from octavo.models.loader import load_model
from octavo.ops.table import bind
from octavo.text.media.files import image_settings
from octavo.text.media.table import media_processor
from octavo.wire.step import MediaPart, SchedulerOutput
from octavo.worker.media import MediaEncoder
from seeing.compose import compose

VISION: Final = {
    "image_size": 512, "patch_size": 16, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12,
}  # fmt: skip
SCALE_FACTOR: Final = 4


def write_model(text_model: Path, directory: Path) -> None:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    config = SmolVLMConfig(
        vision_config=VISION, scale_factor=SCALE_FACTOR, pad_token_id=None,
        text_config={"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 0, "vocab_size": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration(config).bfloat16()
    parts = ("model.vision_model.", "model.connector.")
    tower = {name: each for name, each in model.state_dict().items() if name.startswith(parts)}
    compose(text_model, directory, VISION, SCALE_FACTOR, tower)


def any_picture(seed: int) -> np.ndarray:
    """uint8 [512, 512, 3]"""
    return np.random.default_rng(seed).integers(0, 256, (512, 512, 3), np.uint8)


def item_of(directory: Path, pixels: np.ndarray) -> MediaItem:
    """What the engine gets of a picture, as if it were all of a prompt."""
    config = json.loads((directory / "config.json").read_text())
    files = (
        json.loads((directory / name).read_text()) for name in ("processor_config.json", "preprocessor_config.json")
    )
    processor = media_processor(config, image_settings(*files), lambda text: None)
    assert processor is not None
    media = processor.image(pixels, {})
    count = (VISION["image_size"] // VISION["patch_size"] // SCALE_FACTOR) ** 2
    return place_media([processor.placeholder_id] * count, processor.placeholder_id, [media])[0]


def encode(directory: Path, args: argparse.Namespace) -> None:
    """Rows of one picture, float32 arithmetic in both, from what its own image processor gives."""
    from transformers import SmolVLMForConditionalGeneration

    device = CPUDevice(ParallelConfig(num_threads=args.threads))
    ops = bind("cpu")
    model = load_model(ModelConfig(model=str(directory)), ops, 512, lambda name, detail: None).model
    encoder = MediaEncoder(model, ops, device, device.default_batched_tokens)
    torch.set_num_threads(args.threads)
    theirs = {
        dtype: SmolVLMForConditionalGeneration.from_pretrained(directory, dtype=dtype).eval()
        for dtype in (torch.float32, torch.bfloat16)
    }
    seconds: dict[str, list[float]] = {}
    for number in range(args.rounds + 1):
        item = item_of(directory, any_picture(number))
        plan = SchedulerOutput([], [], {}, [], 0, number, media_encoded=[MediaPart(item.digest, item)])
        start = time.perf_counter()
        encoder.apply(plan)
        if number:
            seconds.setdefault("octavo", []).append(time.perf_counter() - start)
        values = torch.rand(1, 1, 3, 512, 512) * 2 - 1
        for dtype, other in theirs.items():
            start = time.perf_counter()
            with torch.no_grad():
                other.get_image_features(values.to(dtype))
            if number:
                seconds.setdefault(f"transformers {dtype}", []).append(time.perf_counter() - start)
    own = min(seconds["octavo"])
    for name, each in seconds.items():
        print(f"a picture, {name:28} {min(each) * 1e3:7.1f} ms, {min(each) / own:4.2f} x octavo's time", flush=True)


def message(pixels: np.ndarray | None, question: str) -> list[Any]:
    content: list[Any] = []
    if pixels is not None:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        url = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
        content.append({"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def second(server: Server, args: argparse.Namespace) -> None:
    """Time to the first token of a first and of a second question about a picture, and of one without a picture."""
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    times: dict[str, list[float]] = {"first question": [], "second question": [], "no picture": []}
    for number in range(args.rounds + 1):
        pixels = any_picture(1000 + number)
        for name in times:
            asked = message(None if name == "no picture" else pixels, f"This is the {name}: what is shown ({number})?")
            start = time.perf_counter()
            client.chat.completions.create(model="bench", messages=asked, max_tokens=1, temperature=0)
            if number:
                times[name].append(time.perf_counter() - start)
    for name, each in times.items():
        print(f"first token, {name:28} {statistics.median(each) * 1e3:7.1f} ms", flush=True)


async def streams(server: Server, args: argparse.Namespace, *, pictures: bool) -> None:
    """Times between tokens of streams that each ask about picture after picture."""
    client = AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=600)
    gaps: list[float] = []
    seeds = range(args.streams * args.turns)
    messages = [message(any_picture(5_000 + seed) if pictures else None, f"What is shown ({seed})?") for seed in seeds]

    async def stream(number: int) -> None:
        for turn in range(args.turns):
            asked = messages[number * args.turns + turn]
            events = await client.chat.completions.create(
                model="bench", messages=asked, max_tokens=args.tokens, temperature=0, stream=True,
                extra_body={"ignore_eos": True},
            )  # fmt: skip
            last = None
            async for event in events:
                if event.choices and event.choices[0].delta.content:
                    now = time.perf_counter()
                    if last is not None:
                        gaps.append(now - last)
                    last = now

    start = time.perf_counter()
    await asyncio.gather(*(stream(number) for number in range(args.streams)))
    spent = time.perf_counter() - start
    p50, p99 = (float(np.quantile(gaps, share)) * 1e3 for share in (0.5, 0.99))
    name = "with pictures" if pictures else "without"
    print(
        f"{args.streams} streams {name:14} {len(gaps) / spent:7.1f} tokens/s; between tokens p50 {p50:.1f} ms, "
        f"p99 {p99:.1f} ms, {p99 / p50:.2f} x",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text_model", type=Path)
    parser.add_argument("--parts", default="encode,second,streams")
    parser.add_argument("--small", action="store_true", help="the trained tower of the tests for questions and streams")
    numbers = {"rounds": 3, "streams": 16, "turns": 4, "tokens": 64, "threads": os.cpu_count() or 1}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    parts = args.parts.split(",")
    with tempfile.TemporaryDirectory() as kept:
        directory = Path(kept) / "large"
        write_model(args.text_model, directory)
        if "encode" in parts:
            encode(directory, args)
        if args.small:
            directory = Path(kept) / "small"
            compose(args.text_model, directory)
        if {"second", "streams"} & set(parts):
            port = free_port()
            flags = ("--max-model-len", "1024", "--max-num-seqs", str(args.streams))
            with running("octavo", octavo_command(str(directory), port, flags), port) as server:
                if "second" in parts:
                    second(server, args)
                if "streams" in parts:
                    for pictures in (False, True):
                        asyncio.run(streams(server, args, pictures=pictures))


if __name__ == "__main__":
    main()
