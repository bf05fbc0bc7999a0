"""Loading: what a directory and a .gguf file may hold, and hostile files as one `CheckpointError`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from octavo.base.errors import CheckpointError
from octavo.text.tokenizers import gguf as gguf_tokenizer
from octavo.text.tokenizers.decoder_plan import BYTE_OF_CHAR, byte_token
from octavo.text.tokenizers.pre_tokenizers import PRE_TOKENIZERS
from octavo.text.tokenizers.tokenizer import Tokenizer, load_tokenizer


def backend() -> Backend:
    made = Backend(models.BPE(vocab={**BYTE_OF_CHAR, "ab": 256}, merges=[("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<s>", "</s>", "<end>")])
    return made


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    backend().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def test_ends_of_a_text_come_from_all_the_files(directory: Path) -> None:
    write(directory / "tokenizer_config.json", {"eos_token": {"content": "</s>"}, "bos_token": "<s>"})
    write(directory / "generation_config.json", {"eos_token_id": [259, 258, 300]})
    write(directory / "config.json", {"eos_token_id": 7})
    loaded = load_tokenizer(directory)
    assert loaded.eos_token_ids == (258, 259, 300)
    assert loaded.bos_token_id == 257
    (directory / "generation_config.json").unlink()
    assert load_tokenizer(directory).eos_token_ids == (258, 7)
    write(directory / "config.json", {"text_config": {"eos_token_id": 8}})  # of a model that also sees
    assert load_tokenizer(directory).eos_token_ids == (258, 8)


def test_bos_and_eos_follow_the_configuration(directory: Path) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    write(directory / "special_tokens_map.json", names)
    assert load_tokenizer(directory).encode("a") == [97]
    write(directory / "tokenizer_config.json", {**names, "add_bos_token": True, "add_eos_token": True})
    loaded = load_tokenizer(directory)
    assert loaded.encode("a") == [257, 97, 258]
    assert loaded.encode("a", add_special_tokens=False) == [97]
    assert loaded.decode([257, 97, 258]) == "a"
    assert loaded.decode([257, 97, 258, 9999, -1, 2**40], skip_special_tokens=False) == "<s>a</s>"


def test_tokens_of_the_configuration_are_added_with_their_ids(directory: Path) -> None:
    more = {"260": {"content": "<x>", "special": True}, "261": {"content": "<y>"}, "257": {"content": "<s>"}}
    write(directory / "tokenizer_config.json", {"added_tokens_decoder": more})
    loaded = load_tokenizer(directory)
    assert loaded.encode("<y><x>") == [261, 260]
    assert 260 in loaded.special_ids and 261 not in loaded.special_ids
    write(directory / "tokenizer_config.json", {"added_tokens_decoder": {"900": {"content": "<x>"}}})
    with pytest.raises(CheckpointError, match="the id 900"):
        load_tokenizer(directory)


def test_a_special_token_of_the_vocabulary_is_found_whole(directory: Path) -> None:
    write(directory / "tokenizer_config.json", {"pad_token": "ab", "unk_token": "<nowhere>"})
    loaded = load_tokenizer(directory)
    assert 256 in loaded.special_ids
    assert loaded.max_token_id == 259  # the one that the vocabulary lacks got no id


def test_special_tokens_without_a_name_are_special(directory: Path) -> None:
    write(directory / "tokenizer_config.json", {"additional_special_tokens": ["ab", {"content": "a"}, "<nowhere>", 5]})
    loaded = load_tokenizer(directory)
    assert loaded.special_ids == {256, loaded.token_to_id("a"), 257, 258, 259}
    assert loaded.decode(loaded.encode("xab")) == "x"


def test_truncation_and_padding_of_the_file_are_off(directory: Path) -> None:
    made = backend()
    made.enable_truncation(3)
    made.enable_padding(length=8)
    made.save(str(directory / "tokenizer.json"))
    assert load_tokenizer(directory / "tokenizer.json").encode("abcdef") == [256, *b"cdef"]


def test_templates_have_names_and_their_files_win(directory: Path) -> None:
    named = [{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]
    write(directory / "tokenizer_config.json", {"chat_template": named})
    assert load_tokenizer(directory).chat_templates == {"default": "D", "rag": "R"}
    write(directory / "chat_template.json", {"chat_template": "J"})
    assert load_tokenizer(directory).chat_templates["default"] == "J"
    write(directory / "chat_template.jinja", "F")
    write(directory / "additional_chat_templates" / "tool_use.jinja", "T")
    assert load_tokenizer(directory).chat_templates == {"default": "F", "rag": "R", "tool_use": "T"}


def test_the_models_limit_is_a_number_of_tokens_or_none(directory: Path) -> None:
    for value, expected in ((4096, 4096), (10**30, None), (1e30, None), ("x", None), (None, None)):
        write(directory / "tokenizer_config.json", {"model_max_length": value})
        assert load_tokenizer(directory).model_max_length == expected


def test_no_bound_of_token_bytes_where_text_can_vanish(directory: Path) -> None:
    assert load_tokenizer(directory).max_token_bytes == len("<end>")
    made = backend()
    made.add_tokens([AddedToken("<z>", lstrip=True)])
    made.save(str(directory / "tokenizer.json"))
    loaded = load_tokenizer(directory)
    assert loaded.max_token_bytes is None and loaded.min_num_tokens("x" * 1000) == 0
    assert len(loaded.encode(" " * 1000 + "<z>")) == 1


def damaged(change: Callable[[dict[str, Any]], object]) -> str:
    state = json.loads(backend().to_str())
    change(state)
    return json.dumps(state)


def explode(state: dict[str, Any]) -> None:
    split = pre_tokenizers.Split(Regex(r"(?:(?:a|a)+ ?|(?:\s|\s)+)+$(?!a)|(?:a+)+b"), "isolated")
    made = backend()
    made.pre_tokenizer = split
    state["pre_tokenizer"] = json.loads(made.to_str())["pre_tokenizer"]


HOSTILE = {
    "empty": "",
    "no object": "[]",
    "no json": "{",
    "deep": '{"model": ' + "[" * 100_000,
    "huge id": damaged(lambda s: s["model"]["vocab"].update(zz=2**40)),
    "negative id": damaged(lambda s: s["model"]["vocab"].update(zz=-1)),
    "huge added id": damaged(lambda s: s["added_tokens"][0].update(id=2**40)),
    "merge of nothing": damaged(lambda s: s["model"].update(merges=[["q", "x"]])),
    "bad regex": damaged(lambda s: s.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}})),
    "unknown model": damaged(lambda s: s["model"].update(type="Nothing")),
    "no bytes": damaged(lambda s: s.update(decoder={"type": "Nothing"})),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tokenizer_is_one_error(name: str, tmp_path: Path) -> None:
    write(tmp_path / "tokenizer.json", HOSTILE[name])
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in caught.value.message and "\n" not in caught.value.message


def test_hostile_configurations_are_one_error(directory: Path) -> None:
    for text in ("[]", "{", "[" * 100_000):
        write(directory / "tokenizer_config.json", text)
        with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
            load_tokenizer(directory)
    (directory / "tokenizer.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        load_tokenizer(directory)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load_tokenizer(directory)
    with pytest.raises(CheckpointError, match="no such tokenizer"):
        load_tokenizer(directory / "nothing")


def test_a_pre_tokenizer_that_explodes_ends_the_start_in_time(tmp_path: Path) -> None:
    # In a process of its own: the library's call cannot be stopped.
    write(tmp_path / "tokenizer.json", damaged(explode))
    code = "import sys; from octavo.text.tokenizers.tokenizer import load_tokenizer; load_tokenizer(sys.argv[1])"
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert "CheckpointError" in done.stderr, done.stderr[-500:]
    assert time.monotonic() - begin < 30


def test_threads_may_encode_at_once(directory: Path) -> None:
    loaded = load_tokenizer(directory)
    texts = ["ab" * n + "<s>é" for n in range(200)]
    expected = [loaded.encode(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(loaded.encode, texts)) == expected


BYTE_LEVEL: dict[str, Any] = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": [*BYTE_OF_CHAR, "ab", "abab", "<|begin|>", "<\uff5cend\uff5c>", "two words"],
    "tokenizer.ggml.token_type": [*[1] * 258, 3, 3, 4],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 258,
    "tokenizer.ggml.eos_token_id": 259,
    "tokenizer.chat_template": "main",
    "tokenizer.chat_template.tool_use": "tools",
    "llama.context_length": 512,
}
SPACE = "\u2581"
SENTENCEPIECE: dict[str, Any] = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [
        "<unk>", "<s>", "</s>", *map(byte_token, range(256)), SPACE, "a", "b", "ab", "ba", f"{SPACE}a", f"{SPACE}ab",
    ],
    "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * 7],
    "tokenizer.ggml.scores": [0.0] * 259 + [-10.0, -11.0, -12.0, -3.0, -1.0, -2.0, -4.0],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
}  # fmt: skip


def from_metadata(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, metadata: dict[str, Any]) -> Tokenizer:
    class File:
        def __init__(self, path: Path) -> None:
            self.metadata = metadata

        def __enter__(self) -> File:
            return self

        def __exit__(self, *exc: object) -> None:
            return

    monkeypatch.setattr(gguf_tokenizer, "GGUFFile", File)
    path = tmp_path / "model.gguf"
    path.touch()
    return load_tokenizer(path)


def test_gguf_byte_level(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded = from_metadata(monkeypatch, tmp_path, BYTE_LEVEL)
    ids = list(BYTE_OF_CHAR.values())
    # llama-bpe puts BOS where the file is silent, and keeps words that are tokens whole.
    assert loaded.encode("abab") == [258, 257]
    assert loaded.encode("ababc", False) == [256, 256, ids.index(ord("c"))]
    assert loaded.encode("<\uff5cend\uff5c>two words", False) == [259, 260]
    assert loaded.decode([258, 259, 260]) == "two words"
    assert loaded.special_ids == {258, 259}
    assert loaded.eos_token_ids == (259,)
    assert loaded.chat_templates == {"default": "main", "tool_use": "tools"}
    assert loaded.model_max_length == 512
    silent = from_metadata(monkeypatch, tmp_path, {**BYTE_LEVEL, "tokenizer.ggml.add_bos_token": False})
    assert silent.encode("abab") == [257]


def test_gguf_sentencepiece_merges_by_score(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded = from_metadata(monkeypatch, tmp_path, SENTENCEPIECE)
    tokens = SENTENCEPIECE["tokenizer.ggml.tokens"]

    def shown(text: str) -> list[str]:
        return [tokens[i] for i in loaded.encode(text, add_special_tokens=False)]

    assert loaded.encode("a") == [1, 264]
    assert shown("ab") == [f"{SPACE}ab"]
    assert shown("bab") == [SPACE, "ba", "b"]
    assert shown("a\u00e9") == [f"{SPACE}a", "<0xC3>", "<0xA9>"]
    for text in ("ab ba", " a", "", "\u00e9\n", "</s>a"):
        assert loaded.decode(loaded.encode(text, False), skip_special_tokens=False) in (text, text.removeprefix(" "))
    plain = from_metadata(monkeypatch, tmp_path, {**SENTENCEPIECE, "tokenizer.ggml.add_space_prefix": False})
    assert plain.decode(plain.encode(" a")) == " a"
    assert plain.max_token_bytes == 6


def test_gguf_turns_end_at_the_known_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tokens = [*BYTE_LEVEL["tokenizer.ggml.tokens"], "<|eot_id|>", "<|im_end|>"]
    types = [*BYTE_LEVEL["tokenizer.ggml.token_type"], 3, 1]
    changed = {**BYTE_LEVEL, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    changed |= {"tokenizer.ggml.eom_token_id": 258, "tokenizer.ggml.unknown_token_id": 2**32 - 1}
    loaded = from_metadata(monkeypatch, tmp_path, changed)
    assert loaded.eos_token_ids == (259, 258, 261)
    assert "unk_token" not in loaded.special_tokens_map


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "brand-new"}, "'brand-new'"),
        ({"tokenizer.ggml.model": "rwkv"}, "'rwkv'"),
        ({"tokenizer.ggml.model": None}, "gpt2 and llama"),
        ({"tokenizer.ggml.tokens": []}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": ["a", 1]}, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "tokenizer.ggml.token_type"),
        ({"tokenizer.ggml.merges": ["ab"]}, "'ab'"),
        ({"tokenizer.ggml.merges": ["a zz"]}, "cannot be built"),
        ({"tokenizer.ggml.tokens": ["a"] * 261}, "occurs twice"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.scores"),
        ({"tokenizer.ggml.pre": ["x"]}, "pre-tokenizer"),
    ],
)
def test_damaged_gguf_metadata_is_one_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_metadata(monkeypatch, tmp_path, {**BYTE_LEVEL, **change})


def words(rule: str, text: str) -> list[bytes]:
    pieces = PRE_TOKENIZERS[rule]().pre_tokenize_str(text)
    return [bytes(BYTE_OF_CHAR[char] for char in piece) for piece, _ in pieces]


def test_pre_tokenizers_draw_the_borders_of_their_models() -> None:
    def shown(rule: str, text: str) -> list[str]:
        return [word.decode() for word in words(rule, text)]

    text = "It's HTMLParser 12345  x\n\n y"
    assert shown("gpt-2", text) == ["It", "'s", " HTMLParser", " 12345", " ", " x", "\n\n", " y"]
    assert shown("smollm", "a 12345") == ["a", " ", "1", "2", "3", "4", "5"]
    assert shown("llama-bpe", text) == ["It", "'s", " HTMLParser", " ", "123", "45", " ", " x", "\n\n", " y"]
    assert shown("qwen2", "I'LL 123") == ["I", "'LL", " ", "1", "2", "3"]
    assert shown("gpt-4o", "It's HTMLParser") == ["It's", " HTMLParser"]
    assert shown("tekken", "It's myParser a/b/\n") == ["It", "'s", " my", "Parser", " a", "/b", "/\n"]
    assert shown("falcon", "a+=12345") == ["a", "+=", "123", "45"]
    assert shown("deepseek-coder", "a1 b\n\nc") == ["a", "1", " b", "\n", "\n", "c"]
    assert shown("deepseek-llm", "a123 \u4f60\u597db") == ["a", "123", " ", "\u4f60\u597d", "b"]
    assert shown("deepseek-v3", "a1234 \u4f60\u597d.x") == ["a", "123", "4", " ", "\u4f60\u597d", ".x"]


@pytest.mark.parametrize("rule", sorted(PRE_TOKENIZERS))
def test_pre_tokenizers_lose_nothing(rule: str) -> None:
    text = "Hello  World's\t12345\r\n\n  caf\u00e9 \u4f60\u597d\u3002 \U0001f642!? \u0e2a\u0e27 x=[1,2];  "
    assert b"".join(words(rule, text)) == text.encode()
