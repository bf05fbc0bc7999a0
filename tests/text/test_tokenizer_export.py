"""`octavo export-tokenizer`: what transformers reads from the directory is octavo's own tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.cli import main
from octavo.text.templates.chat_template import ChatTemplate
from octavo.text.tokenizers.tokenizer import Tokenizer, load_tokenizer
from text.test_tokenizer_ids import CORPUS, random_texts
from text.test_tokenizer_load import BYTE_LEVEL, backend, from_metadata

CHAT = [
    {"role": "system", "content": "Sei kurz."},
    {"role": "user", "content": "  Größe?\n\n\tüber <|im_start|> 🙂 "},
    {"role": "assistant", "content": "Ja."},
    {"role": "user", "content": "Ça va?"},
]


def exported(model: Path, target: Path) -> tuple[Tokenizer, Tokenizer, Any]:
    """octavo's tokenizer of the model, octavo's of what was written, transformers' of what was written."""
    from transformers import AutoTokenizer

    assert main(["export-tokenizer", str(model), str(target)]) == 0
    return load_tokenizer(model), load_tokenizer(target), AutoTokenizer.from_pretrained(str(target))


@pytest.fixture(
    scope="module",
    params=[
        "smollm2_gguf",
        "smollm2_hf",
        pytest.param("qwen_gguf", marks=pytest.mark.slow),
        pytest.param("gemma_gguf", marks=pytest.mark.slow),
    ],
)
def three(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer, Any]:
    target = tmp_path_factory.mktemp("export") / "new" / "directory"
    return exported(request.getfixturevalue(request.param), target)


def test_ids_and_texts_are_equal(three: tuple[Tokenizer, Tokenizer, Any]) -> None:
    ours, again, theirs = three
    for text in [*CORPUS, *random_texts(11, 150)]:
        for special in (False, True):
            ids = ours.encode(text, special)
            assert theirs.encode(text, add_special_tokens=special) == ids, text
            assert again.encode(text, special) == ids
            assert theirs.decode(ids, skip_special_tokens=special) == ours.decode(ids, special)


def test_facts_are_equal(three: tuple[Tokenizer, Tokenizer, Any]) -> None:
    ours, again, theirs = three
    assert len(theirs) == ours.vocab_size  # no token got a new id
    assert {i for i, token in theirs.added_tokens_decoder.items() if token.special} == ours.special_ids
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_token_id, ours.eos_token_ids[0])
    assert dict(theirs.special_tokens_map) == ours.special_tokens_map
    if ours.model_max_length is not None:
        assert theirs.model_max_length == ours.model_max_length
    for name in (
        "special_tokens_map", "eos_token_ids", "special_ids", "chat_templates", "model_max_length", "max_token_id",
    ):  # fmt: skip
        assert getattr(again, name) == getattr(ours, name), name


def test_chats_are_rendered_alike(three: tuple[Tokenizer, Tokenizer, Any]) -> None:
    ours, _, theirs = three
    if not ours.chat_templates:
        assert theirs.chat_template is None  # a base model
        return
    template = ChatTemplate(ours.chat_templates["default"], ours.special_tokens_map)
    for messages in (CHAT, CHAT[1:]):
        for prompt in (False, True):
            text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert text == template.render(messages, add_generation_prompt=prompt)


def test_named_templates_and_ends_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from octavo.text.tokenizers.export import tokenizer_files, write_tokenizer

    names = {"tokenizer.chat_template.../../evil": "up", "tokenizer.ggml.add_eos_token": True}
    ours = from_metadata(monkeypatch, tmp_path, {**BYTE_LEVEL, **names})
    write_tokenizer(tokenizer_files(ours), tmp_path / "out", force=False)
    theirs, again = AutoTokenizer.from_pretrained(str(tmp_path / "out")), load_tokenizer(tmp_path / "out")
    assert theirs.chat_template == again.chat_templates == ours.chat_templates
    assert theirs.encode("abab") == again.encode("abab") == ours.encode("abab") == [258, 257, 259]
    config = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert config == {"bos_token_id": 258, "eos_token_id": [259]}
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf", "out"}


def test_a_special_token_without_an_id_gets_none(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = tmp_path / "model"
    source.mkdir()
    backend().save(str(source / "tokenizer.json"))
    (source / "config.json").write_text("{}")
    (source / "generation_config.json").write_text('{"temperature": 0.5}')
    (source / "tokenizer_config.json").write_text('{"unk_token": "<nowhere>", "eos_token": "</s>"}')
    assert main(["export-tokenizer", str(source), str(tmp_path / "out")]) == 0
    assert len(AutoTokenizer.from_pretrained(str(tmp_path / "out"))) == load_tokenizer(source).vocab_size
    assert (tmp_path / "out" / "generation_config.json").read_text() == '{"temperature": 0.5}'


def test_a_tokenizer_that_is_there_is_replaced_by_force_only(
    tmp_path: Path, smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "chat_template.jinja").write_text("stale")
    (tmp_path / "config.json").write_text("{}")
    words = ["export-tokenizer", str(smollm2_gguf), str(tmp_path)]
    assert main(words) == 1
    assert f"{tmp_path} holds a tokenizer already (chat_template.jinja); --force replaces it" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"chat_template.jinja", "config.json"}
    assert main([*words, "--force"]) == 0
    assert load_tokenizer(tmp_path).chat_templates == load_tokenizer(smollm2_gguf).chat_templates
    assert main([*words, "--force"]) == 0
    capsys.readouterr()
    assert main(words) == 1
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
    }  # fmt: skip


def test_errors_are_one_line(tmp_path: Path, smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-tokenizer", str(tmp_path / "nothing"), str(tmp_path / "out")]) == 1
    assert "no such file or directory" in capsys.readouterr().err
    (tmp_path / "file").touch()
    for target in ("file", "file/below"):
        assert main(["export-tokenizer", str(smollm2_gguf), str(tmp_path / target)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("octavo export-tokenizer: error: cannot write") and error.count("\n") == 1
    assert main(["export-tokenizer", str(smollm2_gguf)]) == 2
    assert "DIRECTORY" in capsys.readouterr().err
