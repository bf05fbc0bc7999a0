"""Ids from .gguf files equal those of transformers' tokenizers built from the same files."""

# ruff: noqa: RUF001 (texts in many scripts are the point)

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from octavo.text.tokenizers.detokenizer import IncrementalDetokenizer
from octavo.text.tokenizers.tokenizer import Tokenizer, load_tokenizer

CORPUS = [
    "",
    " ",
    "Hello, world! It's 2024; they'd've said I'LL won't.",
    "  leading and   inner    runs     of      spaces  ",
    "\n\n\n\t\t \r\n \n  \n\tx\n",
    "a\u00a0b\u2003c\u3000d\u200be\ufefff",
    'def f(x: int) -> str:\n    return f"{x!r:>10}"  # caf\u00e9\n\n\nclass A(B):\n\tpass\n',
    '#include <stdio.h>\nint main(void) { printf("%d\\n", 0x1F); }\n<table><tr><td>&nbsp;</td></tr></table>',
    "1 12 123 1234 12345 3.14159 1,000,000 \u0661\u0662\u0663 \u00bd \u2167 x\u00b2 \u4e00\u4e8c\u4e09",
    "你好，世界。こんにちは、世界。안녕하세요 세계",
    "Привет, мир! Γειά σου Κόσμε שלום مرحبا",
    "नमस्ते สวัสดีครับ Tiếng Việt e\u0301e\u0300 İIıi",
    "🙂👩\u200d👩\u200d👧🏽🇩🇪 ❤\ufe0f\u20e3 𝐀𝟘",
    "\x00\x01\x07\x08\x0b\x0c\x1b[0m\x7f\x80\x9f\ufffd\uffff\U0010ffff",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|> <|im_end |> <|im_start|><|im_start|>",
    "<bos><start_of_turn>user\nhi<end_of_turn>\n<eos> <unk> <mask> <unused7> [multimodal] <0x41>",
    '<tool_call>{"a": 1}</tool_call> <|fim_prefix|>x<|fim_suffix|>y<|fim_middle|> <file_sep>',
    "\u2581under\u2581score \u0120G \u010a",
    "https://example.com/a?b=c&d=%20e#f user@example.org C:\\path\\to",
    *(char * 700 for char in ("a", " ", "\n", "\t", "1", "-", "\u00e9", "\u4e2d", "\U0001f642", "A", "=", "' ")),
]


def random_texts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    ranges = [
        (0, 0x80),
        (0x20, 0x7F),
        (0x80, 0x250),
        (0x370, 0x600),
        (0x900, 0xE80),
        (0x2000, 0x2800),
        (0x3000, 0x3100),
    ]
    ranges += [(0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xE000, 0xFFFE), (0x1F300, 0x1FA00), (0x10000, 0x110000)]
    texts = []
    for _ in range(count):
        chars: list[str] = []
        while len(chars) < rng.randrange(1, 60):
            low, high = rng.choice(ranges)
            chars += [chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 6))]
            chars += rng.choice(["", "", " ", "  ", "\n", "'s", "12", "The"])
        texts.append("".join(chars))
    return texts


@pytest.fixture(
    scope="module",
    params=[
        "smollm2_gguf",
        pytest.param("qwen_gguf", marks=pytest.mark.slow),
        pytest.param("gemma_gguf", marks=pytest.mark.slow),
    ],
)
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, Any]:
    from transformers import AutoTokenizer

    path: Path = request.getfixturevalue(request.param)
    theirs = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    if request.param == "smollm2_gguf":
        # transformers does not know the rule "smollm" and takes GPT-2's; the model was trained with digits apart.
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    return load_tokenizer(path), theirs


def test_ids_equal_on_the_corpus(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    for text in [*CORPUS, *random_texts(1, 300)]:
        for add in (False, True):
            assert ours.encode(text, add) == theirs.encode(text, add_special_tokens=add), (text, add)


def test_decoded_text_is_equal(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    rng = random.Random(2)
    for _ in range(200):
        ids = [rng.randrange(ours.vocab_size) for _ in range(20)]
        for skip in (False, True):
            assert ours.decode(ids, skip) == theirs.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )


def test_facts_are_equal(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert ours.vocab_size == len(theirs)
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.eos_token_ids[0] == theirs.eos_token_id
    assert ours.special_ids == {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    assert ours.max_token_id == len(theirs) - 1


def test_no_text_has_fewer_tokens_than_the_bound(pair: tuple[Tokenizer, Any]) -> None:
    ours, _ = pair
    assert ours.max_token_bytes is not None
    for text in [*CORPUS, *random_texts(3, 50)]:
        assert ours.min_num_tokens(text) <= len(ours.encode(text, add_special_tokens=False))
    assert ours.min_num_tokens("a" * 8_000_000) > 8_000


def test_a_directory_gives_the_ids_of_transformers(smollm2_hf: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(smollm2_hf), AutoTokenizer.from_pretrained(smollm2_hf)
    for text in [*CORPUS, *random_texts(4, 100)]:
        assert ours.encode(text) == theirs.encode(text)
    assert ours.vocab_size == len(theirs)
    assert ours.eos_token_ids == (theirs.eos_token_id,)
    assert ours.chat_templates == {"default": theirs.chat_template}
    assert ours.special_tokens_map == theirs.special_tokens_map


#: Those that take longer than half a second to load.
LARGE = ("command-r", "deepseek-llm", "gemma-4", "llama-bpe", "qwen2", "qwen35")
SMALL = ("bert-bge", "deepseek-coder", "falcon", "gpt-2", "llama-spm", "mpt", "phi-3", "refact", "starcoder")
WITHOUT_TEXTS = ("aquila", "baichuan", "gpt-neox", "nomic-bert-moe")


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_real_vocabularies_give_the_ids_of_their_originals(name: str, gguf_vocabularies: Path) -> None:
    tokenizer = load_tokenizer(gguf_vocabularies / f"{name}.gguf")
    texts = (gguf_vocabularies / f"{name}.gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = (gguf_vocabularies / f"{name}.gguf.out").read_text().split("\n")
    assert len(texts) > 40
    for text, line in zip(texts, lines, strict=False):
        ids = [int(word) for word in line.split()]
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text
        stream = IncrementalDetokenizer(tokenizer, False)
        assert "".join([*(stream.push([i]) for i in ids), stream.finish()]) == tokenizer.decode(ids, False)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_TEXTS)
def test_real_vocabularies_load(name: str, gguf_vocabularies: Path) -> None:
    tokenizer = load_tokenizer(gguf_vocabularies / f"{name}.gguf")
    assert tokenizer.decode(tokenizer.encode("Hello world", False)) == "Hello world"
