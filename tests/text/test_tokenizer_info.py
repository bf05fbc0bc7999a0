"""What /tokenizer_info tells, from a directory and from a .gguf file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from octavo.base.errors import CheckpointError
from octavo.server.tokenizer_info import tokenizer_info
from octavo.text.tokenizers.tokenizer import load_tokenizer


def info_of(path: Path, templates: dict[str, str] | None = None) -> dict[str, Any]:
    tokenizer = load_tokenizer(path)
    info: dict[str, Any] = json.loads(
        tokenizer_info(tokenizer, tokenizer.chat_templates if templates is None else templates)
    )
    return info


@pytest.mark.model
def test_of_a_directory_it_is_the_configuration_with_the_template_in_use(smollm2_hf: Path) -> None:
    given = json.loads((smollm2_hf / "tokenizer_config.json").read_text(encoding="utf-8"))
    info = info_of(smollm2_hf)
    given.pop("chat_template", None)
    assert given.items() <= info.items() and info["eos_token"] == "<|im_end|>"
    assert info["added_tokens_decoder"]["2"]["content"] == "<|im_end|>" and info["added_tokens_decoder"]["2"]["special"]
    assert info["chat_template"] == load_tokenizer(smollm2_hf).chat_templates["default"]
    assert info_of(smollm2_hf, {"default": "{{ own }}"})["chat_template"] == "{{ own }}"
    assert "chat_template" not in info_of(smollm2_hf, {})


@pytest.mark.model
def test_of_a_gguf_file_it_says_the_same_of_the_tokens(smollm2_gguf: Path, smollm2_hf: Path) -> None:
    info, other = info_of(smollm2_gguf), info_of(smollm2_hf)
    for name in ("bos_token", "eos_token"):
        assert info[name] == other[name]
    assert info["tokenizer_class"] == "PreTrainedTokenizerFast" and info["model_max_length"] > 0
    assert info["add_bos_token"] is False and "<|im_start|>" in info["chat_template"]
    special = {i: token["content"] for i, token in info["added_tokens_decoder"].items() if token["special"]}
    assert special.items() <= {i: token["content"] for i, token in other["added_tokens_decoder"].items()}.items()


@pytest.mark.model
def test_files_of_this_machine_are_not_told_and_several_templates_have_names(smollm2_hf: Path, tmp_path: Path) -> None:
    shutil.copy(smollm2_hf / "tokenizer.json", tmp_path)
    config: dict[str, Any] = {
        "name_or_path": "/home/me",
        "vocab_file": "/x",
        "auto_map": {},
        "model_max_length": 10**30,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    info = info_of(tmp_path, {"default": "a", "tool_use": "b"})
    assert not {"name_or_path", "vocab_file", "auto_map"} & info.keys()
    assert info["model_max_length"] == 10**30 and info["added_tokens_decoder"]
    assert info["chat_template"] == [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    (tmp_path / "tokenizer_config.json").write_text('{"x": NaN}')
    with pytest.raises(CheckpointError, match="number that JSON does not have"):
        info_of(tmp_path)
