"""--skip-tokenizer-init: token ids in, token ids out; what needs text is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo import LLM, SamplingParams
from octavo.base.errors import InvalidRequest
from octavo.text.tokenizers.tokenizer import load_tokenizer


def test_ids_alone_give_the_ids_that_they_give_with_a_tokenizer(smollm2_gguf: Path) -> None:
    tokenizer = load_tokenizer(smollm2_gguf)
    ids = tokenizer.encode("The capital of France is")
    with LLM(model=str(smollm2_gguf), skip_tokenizer_init=True, max_model_len=128) as llm:
        greedy = SamplingParams(max_tokens=5, temperature=0.0)
        (reply,) = llm.generate([{"prompt_token_ids": ids}], greedy)
        assert reply.outputs[0].text == ""
        assert "Paris" in tokenizer.decode(reply.outputs[0].token_ids)
        with pytest.raises(InvalidRequest, match="send token ids"):
            llm.generate(["text"], greedy)
        with pytest.raises(InvalidRequest, match="stop_token_ids"):
            llm.generate([{"prompt_token_ids": ids}], SamplingParams(stop=["x"]))
        with pytest.raises(InvalidRequest, match="chat template"):
            llm.chat([{"role": "user", "content": "hi"}], greedy)
