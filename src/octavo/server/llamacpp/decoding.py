"""From bodies of llama.cpp's API to prompts, and to what is sampled with."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from octavo.base.errors import InvalidRequest
from octavo.base.params import GrammarSpec
from octavo.served.model import ServedModel
from octavo.served.prompts import THREAD_CHARS
from octavo.served.turn import Continuation
from octavo.server.llamacpp.protocol import ExtraContext, InfillRequest, NativeFields
from octavo.server.openai.protocol.common import check_progress
from octavo.text.grammars.grammar import spec_of, spec_of_schema

#: Their name -> that in `SamplingParams`.
_SAMPLING: Final = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "ignore_eos": "ignore_eos",
}
#: What this API calls our fields.
NAMES: Final = {ours: theirs for theirs, ours in _SAMPLING.items()} | {
    "logprobs": "n_probs",
    "max_tokens": "n_predict",
    "guided_grammar": "grammar",
}
#: What `false` as a bias says: never.
_NEVER: Final = -100.0


def sampling_of(request: NativeFields, model: ServedModel) -> dict[str, Any]:
    given = {ours: getattr(request, theirs) for theirs, ours in _SAMPLING.items()}
    values = {name: value for name, value in given.items() if value is not None} | request.sampler_values()
    values["stop"] = tuple(request.stop)
    if request.n_predict is not None and request.n_predict not in (-1, -2):
        if request.n_predict < 1:
            raise InvalidRequest("`n_predict` must be at least 1, or -1 for as many as fit.", "n_predict")
        values["max_tokens"] = request.n_predict
    if request.n_probs:
        values["logprobs"] = request.n_probs
    if request.return_progress:
        check_progress(is_streamed=bool(request.stream))
        values["return_progress"] = True
    if request.repetition_detection is not None:
        values["repetition_detection"] = request.repetition_detection.detection()
    if request.logit_bias:
        values["logit_bias"] = _biases(request.logit_bias, model)
    return values


def _biases(pairs: Sequence[Sequence[Any]], model: ServedModel) -> dict[int, float]:
    """Of [token id or text, number or false]: a text's tokens have its bias each."""
    biases: dict[int, float] = {}
    for i, (token, bias) in enumerate(pairs):
        if isinstance(bias, str) or bias is True or isinstance(token, bool | float):
            raise InvalidRequest("An entry should be [token id or text, number or false].", f"logit_bias.{i}")
        ids = [token] if isinstance(token, int) else model.renderer.render_text(token, False)
        biases |= dict.fromkeys(ids, _NEVER if bias is False else float(bias))
    return biases


def constraint_of(request: NativeFields, model: ServedModel) -> GrammarSpec | None:
    if request.json_schema is not None:
        if request.grammar:
            raise InvalidRequest("A request has either `grammar` or `json_schema`.", "json_schema")
        return spec_of_schema(request.json_schema, "json_schema", model.grammar_limits)
    return spec_of({"guided_grammar": request.grammar or None}, model.grammar_limits)


def prompts_of(prompt: str | list[Any], model: ServedModel) -> tuple[list[Continuation], bool]:
    """The prompts, and whether they came as a list, so that the reply is one."""
    if isinstance(prompt, str):
        return [Continuation(prompt=prompt)], False
    if not prompt:
        raise InvalidRequest("Prompt cannot be empty.", "prompt")
    if any(type(item) is int for item in prompt):
        return [Continuation(prompt=_mixed(prompt, "prompt", model))], False
    made = [
        Continuation(prompt=item if isinstance(item, str) else _mixed(item, f"prompt.{i}", model))
        for i, item in enumerate(prompt)
    ]
    return made, True


def _mixed(items: Any, param: str, model: ServedModel) -> list[int]:
    """Token ids, with texts between them; a text that begins the prompt has the tokenizer's own tokens before it."""
    if not isinstance(items, list) or not all(type(item) in (int, str) for item in items):
        raise InvalidRequest("A prompt should be a text, or a list of token ids and texts.", param)
    ids: list[int] = []
    for i, item in enumerate(items):
        ids += [item] if isinstance(item, int) else model.renderer.render_text(item, i == 0)
    return ids


async def infill_of(request: InfillRequest, model: ServedModel) -> tuple[list[int], tuple[int, ...]]:
    """The prompt for what stands between two texts, and the tokens that end it."""
    extra = request.input_extra or []
    size = len(request.input_prefix) + len(request.input_suffix) + sum(len(file.text) for file in extra)

    def render() -> tuple[list[int], tuple[int, ...]]:
        found = model.renderer.render_infill(request.input_prefix, request.input_suffix, not extra)
        if found is None:
            raise InvalidRequest(
                "/infill is not supported: the model's vocabulary has no tokens to fill in the middle.", "input_prefix"
            )
        ids, ends = found
        begun = model.renderer.render_text(request.prompt, False) if request.prompt else []
        return [*_context(extra, model), *ids, *begun], ends

    return await asyncio.to_thread(render) if size > THREAD_CHARS else render()


def _context(extra: Sequence[ExtraContext], model: ServedModel) -> list[int]:
    """Other files before the prefix: as the models with tokens for them were trained, else as snippets."""
    if not extra:
        return []
    has_files = all(len(model.renderer.render_text(mark, False)) == 1 for mark in ("<|repo_name|>", "<|file_sep|>"))
    if not has_files:
        text = "".join(f"\n\n--- {file.filename or 'snippet'} ---\n\n{file.text}" for file in extra)
        return model.renderer.render_text(text + "\n\n", True)
    files = [f"<|file_sep|>{file.filename or 'tmp'}\n{file.text}" for file in extra]
    return model.renderer.render_text("<|repo_name|>myproject\n" + "".join(files) + "<|file_sep|>filename\n", True)
