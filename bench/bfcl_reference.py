"""A second opinion on BFCL's questions: transformers on the same file made float32, and a plain reader of its text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bfcl_data import Question
from bfcl_score import Call

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_FENCED = re.compile(r"\s*```(?:json)?\n(.*?)(?:```|$)", re.DOTALL)


@dataclass
class Generated:
    """`margins`: at each token, by how much its logit is above the next best one."""

    prompt_ids: list[int]
    token_ids: list[int]
    margins: list[float]
    text: str


class Transformers:
    def __init__(self, gguf: Path, num_threads: int | None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if num_threads:
            torch.set_num_threads(num_threads)
        where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        self._torch = torch
        self._tokenizer: Any = AutoTokenizer.from_pretrained(**where)
        self._model: Any = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()

    def prompt_ids(self, question: Question) -> list[int]:
        text = self._tokenizer.apply_chat_template(
            question.messages, tools=question.tools, add_generation_prompt=True, tokenize=False
        )
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def generate(self, question: Question, max_tokens: int) -> Generated:
        prompt_ids = self.prompt_ids(question)
        tensor = self._torch.tensor([prompt_ids])
        with self._torch.inference_mode():
            output = self._model.generate(
                tensor, attention_mask=self._torch.ones_like(tensor), do_sample=False, num_beams=1,
                temperature=None, top_p=None, top_k=None, repetition_penalty=1.0, max_new_tokens=max_tokens,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        best = [logits[0].topk(2).values.tolist() for logits in output.logits]
        token_ids = output.sequences[0, len(prompt_ids) :].tolist()
        text = self._tokenizer.decode(token_ids, skip_special_tokens=False).removesuffix("<|im_end|>")
        return Generated(prompt_ids, token_ids, [first - second for first, second in best], text)


def read_calls(text: str, names: Sequence[str]) -> list[Call]:
    """The calls in a text: between tags, else bare or in a code block at its start if the functions exist."""
    tagged = _TAGGED.findall(text)
    if tagged:
        return [call for part in tagged for call in _objects(part)]
    fenced = _FENCED.match(text)
    calls = _objects(fenced.group(1) if fenced else text)
    return calls if all(name in names for name, _ in calls) else []


def _objects(text: str) -> list[Call]:
    """The calls with which `text` begins, one after the other or in a list."""
    decoder, calls, place = json.JSONDecoder(strict=False), [], 0
    while True:
        place += len(text[place:]) - len(text[place:].lstrip(" \n\t,;"))
        try:
            value, place = decoder.raw_decode(text, place)
        except ValueError:
            return calls
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, dict) or not isinstance(one.get("name"), str):
                return calls
            calls.append((one["name"], one.get("arguments", {})))
