"""Vocabulary files that are no tokenizer.json: the ids of the libraries that they were made with.

`vocabularies/` holds small files, and the ids that sentencepiece 0.2 and tiktoken 0.13 give for its texts; what
mistral_common writes for some conversations is in `mistral_conversations.json`.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo.base.errors import CheckpointError, InvalidRequest
from octavo.text.templates.renderer import Renderer
from octavo.text.tokenizers.detokenizer import IncrementalDetokenizer
from octavo.text.tokenizers.tokenizer import Tokenizer, load_tokenizer

FILES = Path(__file__).parent / "vocabularies"
EXPECTED = json.loads((FILES / "expected.json").read_text())
MISTRAL = json.loads((FILES / "mistral_conversations.json").read_text())
SENTENCEPIECE = ("bpe", "unigram", "unigram_bytes")
TIKTOKEN = ("QWenTokenizer", "ChatGLM4Tokenizer", "TikTokenTokenizer")
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def write_tekken(directory: Path, version: str = "v3") -> None:
    lines = [line.split() for line in (FILES / "ranks.tiktoken").read_text().splitlines()]
    vocab = [{"rank": int(rank), "token_bytes": token, "token_str": None} for token, rank in lines]
    settings = {
        "pattern": PATTERN, "num_vocab_tokens": len(vocab), "default_vocab_size": 40 + len(vocab) - 10,
        "default_num_special_tokens": 40, "version": version,
    }  # fmt: skip
    special = [{"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(MISTRAL["special_tokens"])]
    (directory / "tekken.json").write_text(json.dumps({"config": settings, "vocab": vocab, "special_tokens": special}))


def made(name: str, directory: Path, **config: Any) -> Tokenizer:
    if name in SENTENCEPIECE:
        shutil.copy(FILES / f"{name}.model", directory / "tokenizer.model")
    else:
        shutil.copy(FILES / "ranks.tiktoken", directory / f"{name}.tiktoken")
        config["tokenizer_class"] = name
    if config:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(directory)


@pytest.mark.parametrize("name", [*SENTENCEPIECE, *TIKTOKEN])
def test_ids_are_those_of_the_original(name: str, tmp_path: Path) -> None:
    tokenizer = made(name, tmp_path)
    special = [token.content for token in tokenizer.added_tokens().values() if token.special]
    num_compared = 0
    for text, ids in zip(EXPECTED["texts"], EXPECTED["ids"][name], strict=True):
        if not any(token in text for token in special):  # the originals do not find them in a text
            assert tokenizer.encode(text, add_special_tokens=False) == ids, text
            num_compared += 1
    assert num_compared > 40


@pytest.mark.parametrize("name", [*SENTENCEPIECE, *TIKTOKEN])
def test_the_stream_is_the_decoded_text(name: str, tmp_path: Path) -> None:
    tokenizer, rng = made(name, tmp_path), random.Random(3)
    runs = [tokenizer.encode(text) for text in EXPECTED["texts"]]
    runs += [[rng.randrange(tokenizer.vocab_size) for _ in range(20)] for _ in range(50)]
    for ids in runs:
        for skip in (False, True):
            stream = IncrementalDetokenizer(tokenizer, skip)
            assert "".join([*(stream.push([i]) for i in ids), stream.finish()]) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("name", ["bpe", "QWenTokenizer"])
def test_a_text_survives_the_way_there_and_back(name: str, tmp_path: Path) -> None:
    tokenizer = made(name, tmp_path)
    for text in ("Hello, world!", "  two  spaces ", "naïve 🙂 中文\n\t<ud>", "a" * 50):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_exported_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    for name in SENTENCEPIECE:
        tokenizer = made(name, tmp_path)
        exported = tmp_path / name
        exported.mkdir()
        (exported / "tokenizer.json").write_text(tokenizer.to_json())
        again = load_tokenizer(exported)
        for text in ("Hello world", "plain words, 12 of them.", "a<s>b</s> c"):
            assert again.encode(text) == tokenizer.encode(text), (name, text)


def test_where_the_space_before_a_text_stands_is_what_legacy_says(tmp_path: Path) -> None:
    text = "the<ctl>the"
    shown = {}
    for legacy in (True, False):
        tokenizer = made("bpe", tmp_path, legacy=legacy)
        shown[legacy] = [tokenizer.token(i) for i in tokenizer.encode(text, False)]
    assert shown[True] == ["\u2581the", "<ctl>", "\u2581the"]
    assert "\u2581the" not in shown[False][1:] and shown[False][0] == "\u2581the"
    assert made("bpe", tmp_path, add_prefix_space=False).decode(tokenizer.encode(" a", False)[1:]) == " a"


def test_begin_and_end_are_the_models(tmp_path: Path) -> None:
    assert made("bpe", tmp_path).encode("") == [1]
    assert made("bpe", tmp_path, add_bos_token=False, add_eos_token=True).encode("") == [2]
    tokenizer = made("unigram", tmp_path, tokenizer_class="T5Tokenizer")
    assert tokenizer.encode("") == [2] and tokenizer.eos_token_ids == (2,)
    (tmp_path / "tokenizer.model").unlink()
    glm = made("ChatGLM4Tokenizer", tmp_path)
    assert [glm.token(i) for i in glm.encode("")] == ["[gMASK]", "<sop>"]
    assert glm.encode("<|user|>", False) == [907] and 907 in glm.special_ids


def test_special_tokens_of_the_configuration_keep_their_ids(tmp_path: Path) -> None:
    listed = {"900": {"content": "<|a|>", "special": True}, "905": {"content": "<|b|>", "special": True}}
    phi = made("Phi3SmallTokenizer", tmp_path)
    assert [phi.token(900 + i) for i in (1, 6, 10, 20, 95)] == [
        "<|endoftext|>", "<|user|>", "<|end|>", "<|endofprompt|>", "<|dummy_id_86|>",
    ]  # fmt: skip
    (tmp_path / "Phi3SmallTokenizer.tiktoken").unlink()
    tokenizer = made("QWenTokenizer", tmp_path, added_tokens_decoder=listed)
    assert tokenizer.encode("<|b|><|a|><|im_end|>") == [905, 900, 902] and tokenizer.max_token_id == 1107


def test_llama3_publishes_ranks_under_the_name_of_sentencepiece(tmp_path: Path) -> None:
    shutil.copy(FILES / "ranks.tiktoken", tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("") == [900]
    assert [tokenizer.token(900 + i) for i in (0, 6, 9, 255)] == [
        "<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>", "<|reserved_special_token_247|>",
    ]  # fmt: skip


def test_slow_reads_the_original_and_auto_the_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(made("unigram", tmp_path).to_json())
    made("bpe", tmp_path)
    assert load_tokenizer(tmp_path).encode("the", False) == load_tokenizer(tmp_path, "auto").encode("the", False)
    assert load_tokenizer(tmp_path, "slow").encode("the", False) != load_tokenizer(tmp_path).encode("the", False)
    (tmp_path / "tokenizer.model").unlink()
    assert load_tokenizer(tmp_path, "slow").vocab_size == 900


def test_byte_level_bpe_and_wordpiece_of_old(tmp_path: Path) -> None:
    lines = [base64.b64decode(line.split()[0]) for line in (FILES / "ranks.tiktoken").read_text().splitlines()]
    from octavo.text.tokenizers.decoder_plan import CHAR_OF_BYTE

    spelled = ["".join(CHAR_OF_BYTE[byte] for byte in token) for token in lines]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(spelled)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\n")
    config = {"tokenizer_class": "GPT2Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("the 中")) == "the 中"
    assert [tokenizer.token(i) for i in tokenizer.encode("the")] == ["th", "e"]
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nhe\n##llo\nwo\n")
    assert load_tokenizer(bert).encode("HELLO wo x") == [2, 4, 5, 6, 1, 3]


# ---------------------------------------------------------------- Mistral
def test_tekken_ids_stand_behind_its_special_tokens(tmp_path: Path) -> None:
    write_tekken(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("", True) == [1] and tokenizer.vocab_size == 40 + 890
    assert tokenizer.encode("[INST]a[/INST]", False)[::2] == [3, 4]
    assert tokenizer.decode(tokenizer.encode("<SPECIAL_20>naïve 中 ")) == "naïve 中 "
    assert tokenizer.chat_templates.keys() == {"default"}  # such a directory has no template of its own


@pytest.mark.parametrize("version", MISTRAL["texts"])
def test_t15_conversations_of_mistral_are_those_of_its_library(version: str, tmp_path: Path) -> None:
    write_tekken(tmp_path, version)
    (tmp_path / "chat_template.jinja").write_text("ours is not this one")
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false, "bos_token": "[INST]"}')
    tokenizer = load_tokenizer(tmp_path, "mistral")
    assert tokenizer.encode("") == [1]
    renderer = Renderer(tokenizer)
    for conversation, text in zip(MISTRAL["conversations"], MISTRAL["texts"][version], strict=True):
        if text is not None:
            assert renderer.chat_text(conversation["messages"], tools=conversation["tools"]) == text


def test_an_unknown_form_of_conversations_is_refused(tmp_path: Path) -> None:
    write_tekken(tmp_path, "v99")
    with pytest.raises(CheckpointError, match="v99"):
        load_tokenizer(tmp_path, "mistral")
    (tmp_path / "tekken.json").unlink()
    with pytest.raises(CheckpointError, match=r"tekken\.json or tokenizer\.model"):
        load_tokenizer(tmp_path, "mistral")


# ---------------------------------------------------------------- damaged files
def cut(name: str, share: float) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        data = (FILES / name).read_bytes()
        target = "tokenizer.model" if name.endswith(".model") else name
        (directory / target).write_bytes(data[: int(len(data) * share)])

    return write


def text_of(name: str, text: str | bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(text.encode() if isinstance(text, str) else text)


def too_large(directory: Path) -> None:
    with (directory / "tokenizer.model").open("wb") as file:
        file.write(b"\x0a")
        file.truncate(1 << 29)


DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a cut model": (cut("bpe.model", 0.9), r"tokenizer\.model: "),
    "a model cut in a piece": (cut("bpe.model", 0.5), r"tokenizer\.model: "),
    "empty": (text_of("tokenizer.model", ""), r"neither a file of SentencePiece nor one of tiktoken"),
    "a number without end": (text_of("tokenizer.model", b"\x0a" + b"\xff" * 30), "a number without end"),
    "a huge field": (text_of("tokenizer.model", b"\x0a\xff\xff\xff\xff\x7f"), "passes the end"),
    "too large": (too_large, "536870912 bytes, more than the 268435456"),
    "ranks without bytes": (text_of("x.tiktoken", "YQ== 0\n"), "no token of the byte 0"),
    "no ranks": (text_of("x.tiktoken", "a b c\n"), "line 1 is not a token"),
    "a huge rank": (text_of("x.tiktoken", f"YQ== {2**60}\n"), "an impossible rank"),
    "tekken of nothing": (text_of("tekken.json", "{}"), "not a tekken.json"),
    "vocab.json of a list": (
        lambda d: [text_of("vocab.json", "[]")(d), text_of("merges.txt", "")(d)], "not a mapping of tokens to ids",
    ),
    "vocab.txt without marks": (text_of("vocab.txt", "a\nb\n"), r"\[UNK\], \[CLS\] and|not all there"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_error(name: str, tmp_path: Path) -> None:
    write, message = DAMAGED[name]
    write(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in caught.value.message and "\n" not in caught.value.message


def test_classes_with_rules_of_their_own_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="XLMRoberta"):
        made("unigram", tmp_path, tokenizer_class="XLMRobertaTokenizer")
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "OddTokenizer"}')
    shutil.copy(FILES / "ranks.tiktoken", tmp_path / "x.tiktoken")
    with pytest.raises(CheckpointError, match="OddTokenizer"):
        load_tokenizer(tmp_path)


# ---------------------------------------------------------------- code of the model's own
CODE = '''
import os
from pathlib import Path
from transformers import PreTrainedTokenizer

print("printed by the model's code")
Path(__file__).parent.joinpath("ran").touch()
Path(os.environ["OCTAVO_TEST_WITNESS"]).write_text(str(os.getpid()))


class OddTokenizer(PreTrainedTokenizer):
    """A token for each character, backwards."""

    def __init__(self, **options):
        self.words = {chr(i): i for i in range(256)}
        super().__init__(eos_token="<end>", **options)

    @property
    def vocab_size(self):
        return 256

    def get_vocab(self):
        return {**self.words, **self.added_tokens_encoder}

    def _tokenize(self, text, **options):
        if text == "hang":
            while True:
                pass
        if text == "crash":
            os._exit(3)
        return list(reversed(text))

    def _convert_token_to_id(self, token):
        return self.words.get(token, 0)

    def _convert_id_to_token(self, index):
        return chr(index)

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)
'''


def test_code_of_a_tokenizer_runs_only_when_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, witness = tmp_path / "model", tmp_path / "witness"
    directory.mkdir()
    (directory / "odd.py").write_text(CODE)
    config = {"tokenizer_class": "OddTokenizer", "auto_map": {"AutoTokenizer": ["odd.OddTokenizer", None]}}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    shutil.copy(FILES / "ranks.tiktoken", directory / "x.tiktoken")
    monkeypatch.setenv("OCTAVO_TEST_WITNESS", str(witness))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with pytest.raises(CheckpointError, match="--trust-remote-code"):
        load_tokenizer(directory)
    assert not witness.exists()
    tokenizer = load_tokenizer(directory, trust_remote_code=True)
    assert witness.exists()
    assert tokenizer.encode("abc") == [99, 98, 97] and tokenizer.decode([99, 98]) == "cb"
    assert tokenizer.eos_token_ids == (256,) and tokenizer.special_ids == {256}
    assert tokenizer.decode([97, 256]) == "a" and tokenizer.token(256) == "<end>"
    stream = IncrementalDetokenizer(tokenizer)
    assert "".join([*(stream.push([i]) for i in (97, 256, 98)), stream.finish()]) == "ab"
    with pytest.raises(InvalidRequest, match="stopped"):
        tokenizer.encode("crash")
    assert tokenizer.encode("ab") == [98, 97]  # a new helper
    pid = int(witness.read_text())
    os.kill(pid, signal.SIGKILL)  # as a system without memory does
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert tokenizer.encode("ab") == [98, 97]
    monkeypatch.setattr("octavo.text.tokenizers.remote.TEXT_SECONDS", 0.5)
    with pytest.raises(InvalidRequest, match="it takes too long"):
        tokenizer.encode("hang")
    with pytest.raises(InvalidRequest, match="surrogate"):
        tokenizer.encode("\ud800")
