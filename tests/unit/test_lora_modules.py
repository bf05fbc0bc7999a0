"""--lora-modules, and where adapters are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.base.config import ModelConfig
from octavo.base.errors import CheckpointError, InvalidConfig
from octavo.files.adapters import adapter_in, resolve_adapter
from octavo.served.adapters import parse_modules


def test_both_forms_are_read() -> None:
    words = ["sql=/a=b", '{"name": "x", "path": "org/y", "base_model_name": "base"}']
    assert [(each.name, each.path) for each in parse_modules(words, ["base"])] == [("sql", "/a=b"), ("x", "org/y")]


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
        parse_modules(words, ["base"])


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
