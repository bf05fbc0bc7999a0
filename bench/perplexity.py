"""Perplexity of a text under octavo, and how far its distribution is from float32's on the same .gguf file.

    python bench/perplexity.py TEXT.txt [MODEL.gguf] [--windows 8] [--length 512]

The text is cut into windows of equal length, each seen alone. The reference is transformers in float32 with the weights
of the file dequantised. KL is the mean divergence of octavo's distribution from the reference's, over the most likely
tokens that octavo tells of (--top), whose share of the probability is told beside it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from octavo import LLM, SamplingParams
from octavo.base.config import ModelConfig
from octavo.files.sources import resolve_model


def windows(llm: LLM, text: str, length: int, count: int) -> list[list[int]]:
    ids = llm.tokenizer.encode(text)
    found = [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)][:count]
    if len(found) < count:
        raise SystemExit(f"bench: the text has {len(ids)} tokens; {count} windows of {length} are more")
    return found


def octavo_scores(llm: LLM, given: Sequence[list[int]], top: int) -> list[list[dict[int, float]]]:
    """Of each window and each of its tokens but the first: log probabilities of it and of the most likely ones."""
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=top)
    outputs = llm.generate(list(given), params, use_tqdm=False)
    found = []
    for output in outputs:
        assert output.prompt_logprobs is not None
        found.append([{i: entry.logprob for i, entry in one.items()} for one in output.prompt_logprobs if one])
    return found


def reference_scores(path: Path, given: Sequence[list[int]]) -> list[torch.Tensor]:
    """float32 [length - 1, vocabulary] of each window."""
    from transformers import AutoModelForCausalLM

    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    with torch.no_grad():
        return [torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1], -1) for ids in given]


def divergence(ours: dict[int, float], theirs: torch.Tensor) -> tuple[float, float]:
    """KL of the shared tokens and what is left as one, and the share of these tokens in the reference."""
    ids = torch.tensor(list(ours))
    q, p = torch.tensor(list(ours.values())).double().exp(), theirs[ids].double().exp()
    rest_q, rest_p = max(1e-12, 1 - float(q.sum())), max(1e-12, 1 - float(p.sum()))
    return float((p * (p.log() - q.log())).sum()) + rest_p * math.log(rest_p / rest_q), float(p.sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="a file of plain text")
    parser.add_argument("model", nargs="?", default="smollm2", help="a .gguf file [the demo model]")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512, help="tokens of a window [512]")
    parser.add_argument("--top", type=int, default=20, help="log probabilities of each token [20]")
    args = parser.parse_args()
    path = Path(resolve_model(ModelConfig(model=args.model)))
    with LLM(str(path)) as llm:
        given = windows(llm, args.text.read_text(encoding="utf-8"), args.length, args.windows)
        ours = octavo_scores(llm, given, args.top)
    theirs = reference_scores(path, given)
    own = [
        one[token] for ids, scores in zip(given, ours, strict=True) for token, one in zip(ids[1:], scores, strict=True)
    ]
    exact = [float(t[i, ids[i + 1]]) for ids, t in zip(given, theirs, strict=True) for i in range(len(ids) - 1)]
    pairs = [divergence(one, t[i]) for s, t in zip(ours, theirs, strict=True) for i, one in enumerate(s)]
    perplexity, reference = (math.exp(-sum(x) / len(x)) for x in (own, exact))
    kl, share = (sum(x) / len(pairs) for x in zip(*pairs, strict=True))
    print(f"{len(own)} tokens in {len(given)} windows of {args.length}")
    print(f"perplexity: octavo {perplexity:.4f}, float32 {reference:.4f}: {perplexity / reference - 1:+.3%}")
    print(f"KL from float32: {kl:.2e} (over {share:.1%} of the probability)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
