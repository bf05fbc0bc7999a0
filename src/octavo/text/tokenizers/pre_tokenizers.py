"""How byte-level vocabularies of .gguf files cut text into words before merging: `tokenizer.ggml.pre` -> rules.

A file carries only the rule's name. The rules are those of the models' own tokenizers; merges are never applied
across the borders that they draw, so a wrong rule gives other ids for the same text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tokenizers import Regex, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Punctuation, Split

_CONTRACTION: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL: Final = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"

_LLAMA3: Final = _CONTRACTION + "|" + _LETTERS + r"|\p{N}{1,3}" + _SYMBOLS + _TAIL
_QWEN2: Final = _CONTRACTION + "|" + _LETTERS + r"|\p{N}" + _SYMBOLS + _TAIL
_QWEN35: Final = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _TAIL

# Words that change from capitals to small letters are cut there: "HTMLParser" is HTML and Parser.
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED: Final = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_TEKKEN: Final = "|".join(_CASED) + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _TAIL
_GPT4O: Final = (
    "|".join(f"{part}{_CONTRACTION}?" for part in _CASED) + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _TAIL
)

_CJK: Final = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# Letters with case, as DeepSeek LLM lists them: mathematical alphabets are not among them.
_CASED_LETTERS: Final = "\\s?(?:(?![\U0001d400-\U0001d7ff])[\\p{Lu}\\p{Ll}\\p{Lt}])+"
_DEEPSEEK_LLM: Final = (
    r"[\r\n]",
    _CASED_LETTERS,
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _CJK,
    r"\p{N}+",
)
_DEEPSEEK_CODER: Final = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")
_DEEPSEEK_V3: Final = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*""" + _TAIL,
)
_SENTENCES: Final = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"


def split_rule(*patterns: str) -> Callable[[], PreTokenizer]:
    """Each pattern in turn cuts its matches out of the pieces that the ones before it left."""
    return lambda: pre_tokenizers.Sequence(
        [*(Split(Regex(p), behavior="isolated") for p in patterns), ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _gpt2() -> PreTokenizer:
    return ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> PreTokenizer:
    return pre_tokenizers.Sequence([Digits(individual_digits=True), _gpt2()])


def _falcon() -> PreTokenizer:
    triples = Split(Regex("[0-9][0-9][0-9]"), behavior="isolated")
    return pre_tokenizers.Sequence([Punctuation("contiguous"), _gpt2(), Digits(individual_digits=False), triples])


_RULES: Final[tuple[tuple[Callable[[], PreTokenizer], str], ...]] = (
    (_gpt2, "default gpt-2 phi-2 mpt olmo jais gigachat roberta-bpe jina-es jina-de jina-v1-en jina-v2-es jina-v2-de"),
    (_single_digits, "smollm starcoder refact command-r codeshell exaone minerva-7b"),
    (_falcon, "falcon"),
    (split_rule(_LLAMA3), "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 dbrx smaug-bpe"),
    (split_rule(_LLAMA3), "chatglm-bpe glm4"),
    (split_rule(_QWEN2), "qwen2 deepseek-r1-qwen stablelm2 megrez kormo"),
    (split_rule(_QWEN35), "qwen35"),
    (split_rule(_TEKKEN), "tekken mistral-bpe"),
    (split_rule(_GPT4O), "gpt-4o llama4 kanana2 minimax-m2"),
    (split_rule(*_DEEPSEEK_LLM), "deepseek-llm"),
    (split_rule(*_DEEPSEEK_CODER), "deepseek-coder"),
    (split_rule(*_DEEPSEEK_V3), "deepseek-v3"),
    (split_rule(_SENTENCES), "poro-chat bloom gpt3-finnish"),
    (split_rule(_SENTENCES, r"\p{N}"), "viking"),
)

#: Name -> maker of the rule.
PRE_TOKENIZERS: Final[dict[str, Callable[[], PreTokenizer]]] = {
    name: rule for rule, names in _RULES for name in names.split()
}

#: Rules whose vocabularies hold whole words that the merges cannot build: a word that is a token stays whole.
IGNORE_MERGES: Final = frozenset(
    ["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken"]
)

#: Rules whose models want a BOS where the file does not say.
BOS_BY_DEFAULT: Final = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "tekken"})
