"""The files of prompt adapters: rows as they were trained; what does not fit is refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from octavo.base.errors import CheckpointError
from octavo.files.adapters import is_prompt_adapter
from octavo.models.adapters.prompts import PromptFit, read_prompt
from support.adapters import write_prompt_adapter
from support.tensors import randn

FIT = PromptFit(width=24, max_tokens=8)
ROWS = randn(5, 24, seed=1)


@pytest.mark.parametrize("method", ["PROMPT_TUNING", "P_TUNING"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_those_of_the_file(tmp_path: Path, method: str, dtype: torch.dtype) -> None:
    path = write_prompt_adapter(tmp_path, ROWS.to(dtype), peft_type=method, encoder_hidden_size=7)
    assert is_prompt_adapter(path)
    assert torch.equal(read_prompt(path, FIT), ROWS.to(dtype).float())
    (path / "adapter_model.safetensors").unlink()
    torch.save({"prompt_embeddings": ROWS.to(dtype)}, path / "adapter_model.bin")
    assert torch.equal(read_prompt(path, FIT), ROWS.to(dtype).float())


@pytest.mark.parametrize(
    ("rows", "config", "message"),
    [
        (ROWS, {"num_virtual_tokens": 4}, r"'prompt_embeddings': its shape is \[5, 24\], not \[4, 24\]"),
        (randn(5, 32, seed=2), {}, r"'prompt_embeddings': its shape is \[5, 32\], not \[5, 24\]"),
        (randn(9, 24, seed=2), {}, "num_virtual_tokens is 9, and --max-prompt-adapter-token is 8"),
        (ROWS, {"num_virtual_tokens": True}, "num_virtual_tokens is not a number of tokens"),
        (ROWS, {"num_virtual_tokens": 0}, "num_virtual_tokens is not a number of tokens"),
        (ROWS, {"num_virtual_tokens": None}, "num_virtual_tokens is not a number of tokens"),
        (ROWS, {"task_type": "SEQ_2_SEQ_LM"}, "task_type is 'SEQ_2_SEQ_LM'"),
        (ROWS, {"num_transformer_submodules": 2}, "num_transformer_submodules is 2"),
        (torch.full((5, 24), torch.nan), {}, "'prompt_embeddings': it holds NaN or infinite values"),
        (torch.ones(5, 24, dtype=torch.int32), {}, "'prompt_embeddings': its type is int32"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(tmp_path: Path, rows: torch.Tensor, config: dict[str, Any], message: str) -> None:
    path = write_prompt_adapter(tmp_path / "mine", rows, **config)
    with pytest.raises(CheckpointError, match=f"mine: .*{message}"):
        read_prompt(path, FIT)


def test_damaged_files_are_told(tmp_path: Path) -> None:
    path = write_prompt_adapter(tmp_path, ROWS)
    save_file({"prompt_embeddings": ROWS, "prefix_task_cols": ROWS.clone()}, path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="tensor 'prefix_task_cols': not a part of a prompt adapter"):
        read_prompt(path, FIT)
    save_file({}, path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="there is no tensor 'prompt_embeddings'"):
        read_prompt(path, FIT)
    (path / "adapter_model.safetensors").write_bytes(b"\xff" * 7)
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        read_prompt(path, FIT)
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        read_prompt(path, FIT)


@pytest.mark.parametrize("content", ["", "[]", "nothing", json.dumps({"peft_type": ["PROMPT_TUNING"]})])
def test_a_configuration_that_cannot_be_read_names_no_kind(tmp_path: Path, content: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    assert not is_prompt_adapter(tmp_path) and not is_prompt_adapter(tmp_path / "none")
