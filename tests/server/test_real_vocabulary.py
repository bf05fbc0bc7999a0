"""What is made of a real vocabulary: prompts to fill in the middle, and the tokens of DRY's breakers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.base.errors import InvalidRequest
from octavo.base.params import SamplingParams
from octavo.served.breakers import BreakerTokens
from octavo.server.llamacpp.decoding import infill_of
from octavo.server.llamacpp.protocol import InfillRequest
from octavo.text.templates.renderer import Renderer
from octavo.text.tokenizers.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def model(qwen_gguf: Path) -> Any:
    tokenizer = load_tokenizer(str(qwen_gguf))
    return SimpleNamespace(tokenizer=tokenizer, renderer=Renderer(tokenizer))


def test_an_infill_prompt_is_what_the_model_was_trained_on(model: Any) -> None:
    body = {"input_prefix": "def f(", "input_suffix": "\n    return a", "prompt": "a"}
    ids, ends = asyncio.run(infill_of(InfillRequest.model_validate(body), model))
    assert model.tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|fim_prefix|>def f(<|fim_suffix|>\n    return a<|fim_middle|>a"
    )
    assert model.tokenizer.token_to_id("<|endoftext|>") in ends
    body["input_extra"] = [{"filename": "b.py", "text": "x = 1\n"}]  # type: ignore[assignment]
    ids, _ = asyncio.run(infill_of(InfillRequest.model_validate(body), model))
    assert model.tokenizer.decode(ids, skip_special_tokens=False).startswith(
        "<|repo_name|>myproject\n<|file_sep|>b.py\nx = 1\n<|file_sep|>filename\n<|fim_prefix|>def f("
    )


def test_breakers_are_found_however_the_vocabulary_spells_them(model: Any) -> None:
    breakers = BreakerTokens(model.tokenizer, model.renderer, model.tokenizer.vocab_size)
    params = SamplingParams(dry_multiplier=1.0, dry_sequence_breakers=("\n", "\u00e9", "<|User|>"))
    found = asyncio.run(breakers.resolved(params)).dry_breaker_token_ids
    texts = {ids: b"".join(model.tokenizer.token_bytes(i) for i in ids) for ids in found}
    assert all(any(mark.encode() in text for mark in params.dry_sequence_breakers) for text in texts.values())
    for written in ("a\n\nb", "caf\u00e9s", "x.<|User|>y"):
        ids = model.renderer.render_text(written, False)
        windows = {tuple(ids[i:j]) for i in range(len(ids)) for j in range(i + 1, len(ids) + 1)}
        assert windows & set(found), written
    assert asyncio.run(breakers.resolved(SamplingParams())).dry_breaker_token_ids == ()
    with pytest.raises(InvalidRequest, match="dry_sequence_breakers"):
        asyncio.run(breakers.resolved(SamplingParams(dry_sequence_breakers=("",))))
