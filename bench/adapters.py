"""What adapters cost: tokens a second of many streams over several adapters, beside those of the model alone.

    python bench/adapters.py [MODEL] [--streams 32] [--adapters 8] [--rank 16] [--tokens 64] [--rounds 3]

One engine; the two are measured in turn, so that whatever else the machine does is in both. The adapters are random,
of all products of attention and MLP. Goal: 75 % of the model's own tokens on a CPU, 90 % on a GPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from octavo import LLM, LoRARequest, SamplingParams
from octavo.base.config import ModelConfig
from octavo.files.sources import resolve
from octavo.models.adapters.targets import targets
from octavo.models.implementation import definition_of
from octavo.models.loader import open_checkpoint


def write_adapters(model: str, directory: Path, count: int, rank: int) -> list[Path]:
    """Random adapters of all products but the output's, in PEFT's layout."""
    config = resolve(ModelConfig(model=model))
    checkpoint = open_checkpoint(config)
    definition = definition_of(config, checkpoint.config, checkpoint.source, torch.float32)
    shapes = {name: target.tensor.shape for name, target in targets(definition).items() if name != "lm_head.weight"}
    paths = []
    for number in range(count):
        path = directory / str(number)
        path.mkdir()
        torch.manual_seed(number)
        tensors = {}
        for name, (rows, columns) in shapes.items():
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = (torch.randn(rank, columns) * columns**-0.5).bfloat16()
            tensors[f"{module}.lora_B.weight"] = (torch.randn(rows, rank) * 0.01).bfloat16()
        save_file(tensors, path / "adapter_model.safetensors")
        (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))
        paths.append(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    for name, default in {"streams": 32, "adapters": 8, "rank": 16, "tokens": 64, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    prompts = [{"prompt_token_ids": [100 + i, *range(200, 230)]} for i in range(args.streams)]
    params = SamplingParams(temperature=0.0, max_tokens=args.tokens, ignore_eos=True)
    best = {"model": 0.0, "adapters": 0.0}
    with tempfile.TemporaryDirectory() as directory:
        paths = write_adapters(args.model, Path(directory), args.adapters, args.rank)
        rank = next(size for size in (8, 16, 32, 64, 128, 256) if size >= args.rank)
        with LLM(args.model, enable_lora=True, max_loras=args.adapters, max_lora_rank=rank, max_model_len=512) as llm:
            mixed = [LoRARequest(str(i % args.adapters), 0, str(paths[i % args.adapters])) for i in range(args.streams)]
            for _ in range(args.rounds + 1):  # the first round reads the adapters
                for name, adapters in (("model", None), ("adapters", mixed)):
                    start = time.perf_counter()
                    llm.generate(prompts, params, use_tqdm=False, lora_request=adapters)
                    best[name] = max(best[name], args.streams * args.tokens / (time.perf_counter() - start))
    print(f"{args.streams} streams of the model:        {best['model']:8.1f} tokens/s")
    share = best["adapters"] / best["model"]
    print(f"over {args.adapters} adapters of rank {args.rank:3}:    {best['adapters']:8.1f} tokens/s, {share:.0%}")


if __name__ == "__main__":
    main()
