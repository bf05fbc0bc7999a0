"""--lora-modules and --prompt-adapters, and where adapters are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.base.config import AdaptersConfig, ModelConfig
from octavo.base.errors import CheckpointError, InvalidConfig
from octavo.files.adapters import adapter_in, resolve_adapter
from octavo.served.adapters import parse_modules


def test_both_forms_are_read() -> None:
    words = ["sql=/a=b", '{"name": "x", "path": "org/y", "base_model_name": "base"}']
    found = parse_modules(AdaptersConfig(lora_modules=words, prompt_adapters=["p={}=c"]), ["base"])
    assert [(each.name, each.path, each.is_prompt) for each in found] == [
        ("sql", "/a=b", False), ("x", "org/y", False), ("p", "{}=c", True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sql"], "not name=path"), (["=x"], "not name=path"), (["a=b", "a=c"], "'a' is taken twice"),
        (["base=b"], "'base' is taken twice"), (['{"name": 1, "path": "p"}'], "needs name and path"),
        (['{"name": "n"'], "not JSON"), (['{"name": "n", "path": "p", "base_model_name": "q"}'], "not the model"),
        (['{"name": "n", "path": "p", "scale": 2}'], "needs name and path"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        parse_modules(AdaptersConfig(lora_modules=words), ["base"])


@pytest.mark.parametrize(
    ("words", "message"),
    [(["p"], "not name=path"), (['{"name": "p"}'], "not name=path"), (["base=b"], "'base' is taken twice"),
     (["sql=b"], "--prompt-adapters: the name 'sql' is taken twice")],
)  # fmt: skip
def test_prompt_adapters_are_named_beside_them(words: list[str], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        parse_modules(AdaptersConfig(lora_modules=["sql=a"], prompt_adapters=words), ["base"])


def test_files_are_found(tmp_path: Path) -> None:
    config = ModelConfig()
    for name in ("peft", "gguf", "none"):
        (tmp_path / name).mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    (tmp_path / "gguf" / "a.gguf").write_bytes(b"")
    assert resolve_adapter(str(tmp_path / "peft"), config) == tmp_path / "peft"
    for name in ("gguf", "gguf/a.gguf"):
        assert resolve_adapter(str(tmp_path / name), config) == tmp_path / "gguf" / "a.gguf"
    for name, message in {"none": "there is no adapter_config.json", "other": "no such", "peft/x": "no such"}.items():
        with pytest.raises(CheckpointError, match=message):
            resolve_adapter(str(tmp_path / name), config)
    with pytest.raises(CheckpointError, match="a directory with adapter_config.json, or a .gguf file"):
        resolve_adapter(str(tmp_path / "peft" / "adapter_config.json"), config)
    assert adapter_in(tmp_path, "peft") == tmp_path / "peft" and adapter_in(tmp_path, "none") is None
    assert adapter_in(tmp_path / "peft", "..") is None and adapter_in(tmp_path / "none", "../peft") is None
