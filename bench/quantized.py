"""Perplexity of one model in every form of quantized checkpoints that the tests can write, beside its floats.

    PYTHONPATH=tests python bench/quantized.py TEXT.txt MODEL_DIR [--forms gptq,awq] [--windows 4] [--length 512]

MODEL_DIR is a Hugging Face directory of floats. Matrices of layers are rounded to the nearest, with no data: what a
tool with data would lose is less. "as floats" is the perplexity of the very same weights held as float32, so that what
octavo's own arithmetic changes is the difference of the two. Prints a table of Markdown.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from perplexity import octavo_scores, windows

from octavo import LLM
from support import quantized_checkpoints as q
from support import quantized_forms as f

CT = {"quant_method": "compressed-tensors"}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
AO, OPT, ROUND = ({"quant_method": name} for name in ("torchao", "modelopt", "auto-round"))
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
#: Name, writer, configuration, what the metadata say of each tensor.
FORMS: dict[str, tuple[q.Writer, dict[str, Any], str | None]] = {
    "gptq": (lambda w: q.gptq(w, group=64, act_order=True), {"quant_method": "gptq", "bits": 4}, None),
    "awq": (lambda w: q.awq(w, 64), {"quant_method": "awq", "bits": 4, "version": "gemm"}, None),
    "compressed-tensors W4A16": (q.ct_packed, {**CT, "config_groups": {"g": {"weights": INT4}}}, None),
    "compressed-tensors W8A8": (q.ct_int8, CT, None),
    "compressed-tensors MXFP4": (f.ct_mx, {**CT, "format": "mxfp4-pack-quantized"}, None),
    "compressed-tensors marlin-24": (
        lambda w: f.sparse(w, 4, 64, ("weight_packed", "meta", "scale_packed")), {**CT, "format": "marlin-24"}, None,
    ),
    "fp8": (q.float8, {"quant_method": "fp8"}, None),
    "bitsandbytes nf4": (q.bnb_nf4, BNB, None),
    "hqq": (q.hqq, {"quant_method": "hqq"}, None),
    "marlin": (q.marlin, {"quant_method": "marlin"}, None),
    "auto-round": (lambda w: q.awq(w, 64), {**ROUND, "packing_format": "auto_round:auto_awq"}, None),
    "modelopt FP8": (lambda w: q.float8(w, kind="matrix"), {**OPT, "quant_algo": "FP8"}, None),
    "modelopt NVFP4": (f.modelopt_nvfp4, {**OPT, "quant_algo": "NVFP4"}, None),
    "modelopt MXFP8": (f.modelopt_mx, {**OPT, "quant_algo": "MXFP8"}, None),
    "quanto qint8": (f.quanto_bytes, {"quant_method": "quanto"}, None),
    "quanto qint4": (f.quanto, {"quant_method": "quanto"}, None),
    "torchao int8": (f.ao_int8, AO, f.about("Int8Tensor")),
    "torchao int4": (f.ao_int4, AO, f.about("Int4Tensor")),
    "torchao float8": (f.ao_float8, AO, f.about("Float8Tensor")),
}  # fmt: skip


def perplexity(model: Path, tokenizer: Path, text: str, args: argparse.Namespace) -> float:
    with LLM(str(model), tokenizer=str(tokenizer)) as llm:
        given = windows(llm, text, args.length, args.windows)
        scores = octavo_scores(llm, given, 0)
    own = [one[token] for ids, row in zip(given, scores, strict=True) for token, one in zip(ids[1:], row, strict=True)]
    return math.exp(-sum(own) / len(own))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="a file of plain text")
    parser.add_argument("model", type=Path, help="a Hugging Face directory of floats")
    parser.add_argument("--forms", default=",".join(FORMS), help="which, with commas between [all]")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512, help="tokens of a window [512]")
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    torch.set_num_threads(1)
    print("| form | perplexity | as floats |\n|---|---|---|")
    print(f"| floats | {perplexity(args.model, args.model, text, args):.3f} | |", flush=True)
    for name in args.forms.split(","):
        writer, config, about = FORMS[name]
        with tempfile.TemporaryDirectory() as kept:
            path = q.write(args.model, Path(kept) / "model", writer, config, about=about)
            found, dense = (perplexity(each, args.model, text, args) for each in (path, path / "dense"))
        print(f"| {name} | {found:.3f} | {dense:.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
