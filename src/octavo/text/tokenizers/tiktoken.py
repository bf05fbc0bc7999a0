"""Builds a tokenizer from byte tokens with ranks: tiktoken's files (`*.tiktoken`) and Mistral's `tekken.json`.

A word is merged by rank alone: of all neighbours that make a token together, those with the lowest. The library's BPE
does the same when every pair that makes a token is a merge, in the order of the ranks, and a word that is a token stays
whole.

Files of tiktoken hold no special tokens and no rule that cuts a text into words: these are what the code of the
models' own tokenizers says, by the name of its class.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors
from tokenizers.pre_tokenizers import PreTokenizer

from octavo.base.errors import CheckpointError
from octavo.files.reading import MAX_VOCABULARY_BYTES, read_bytes
from octavo.text.tokenizers.decoder_plan import CHAR_OF_BYTE
from octavo.text.tokenizers.merges import merges_from_vocabulary
from octavo.text.tokenizers.parts import BuiltVocabulary
from octavo.text.tokenizers.pre_tokenizers import PRE_TOKENIZERS, split_rule

_MAX_TOKEN_BYTES: Final = 4096

_KIMI_CASE: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_KIMI_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_KIMI_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_KIMI: Final = (
    r"[\p{Han}]+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}*{_KIMI_LOWER}+{_KIMI_CASE}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_KIMI_UPPER}+{_KIMI_LOWER}*{_KIMI_CASE}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What the code of a tokenizer adds to its ranks."""

    words: Callable[[], PreTokenizer]
    special: Sequence[str]  # from the first id that follows the ranks
    names: Mapping[str, str]  # bos_token, ... -> text
    composes: bool = False  # NFC first
    before: Sequence[str] = ()  # tokens before every text


_QWEN: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
_GLM4: Final = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)  # fmt: skip
_LLAMA3: Final = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", *(f"<|reserved_special_token_{i}|>" for i in range(3, 248)),
)  # fmt: skip
_LLAMA3_KIND: Final = _Kind(
    words=PRE_TOKENIZERS["llama3"],
    special=_LLAMA3,
    names={"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    before=("<|begin_of_text|>",),
)
_PHI3_SMALL: Final = (
    "<|dummy_id_2|>", "<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|system|>", "<|user|>",
    "<|assistant|>", "<|dummy_id_0|>", "<|dummy_id_1|>", "<|end|>", *(f"<|dummy_id_{i}|>" for i in range(3, 12)),
    "<|endofprompt|>", *(f"<|dummy_id_{i}|>" for i in range(12, 87)),
)  # fmt: skip
#: By tokenizer_class of a tokenizer_config.json; "": there is none.
_KINDS: Final[Mapping[str, _Kind]] = {
    "": _LLAMA3_KIND,
    "PreTrainedTokenizerFast": _LLAMA3_KIND,
    "QWenTokenizer": _Kind(
        words=PRE_TOKENIZERS["qwen2"],
        special=_QWEN,
        names={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        composes=True,
    ),
    "ChatGLM4Tokenizer": _Kind(
        words=PRE_TOKENIZERS["llama3"],
        special=_GLM4,
        names={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        before=("[gMASK]", "<sop>"),
    ),
    "Phi3SmallTokenizer": _Kind(
        words=PRE_TOKENIZERS["llama3"],
        special=_PHI3_SMALL,
        names={"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    ),
    "TikTokenTokenizer": _Kind(
        words=split_rule(_KIMI), special=(), names={"bos_token": "[BOS]", "eos_token": "[EOS]", "pad_token": "[PAD]"}
    ),
}


def is_tiktoken(path: Path) -> bool:
    """Whether the first line is a token in base64 and its rank. Raises `OSError`."""
    with path.open("rb") as file:
        words = file.read(_MAX_TOKEN_BYTES).split(b"\n", 1)[0].split()
    try:
        return len(words) == 2 and words[1].isdigit() and bool(base64.b64decode(words[0], validate=True))
    except binascii.Error:
        return False


def load_tiktoken(path: Path, config: Mapping[str, Any]) -> BuiltVocabulary:
    """`config`: tokenizer_config.json, which names the class and may list special tokens with their ids.

    Raises `CheckpointError`; for whatever the library raises, its own errors.
    """
    name = str(config.get("tokenizer_class") or "")
    kind = _KINDS.get(name)
    if kind is None:
        known = ", ".join(filter(None, _KINDS))
        raise CheckpointError(
            f"{path}: a vocabulary of tiktoken for the class {name[:60]!r}, whose rules are not known to octavo "
            f"({known} are); --trust-remote-code runs the model's own code, or give a tokenizer.json with --tokenizer."
        )
    ranks = _read_ranks(path)
    first = max(ranks.values()) + 1
    named = {first + i: token for i, token in enumerate(kind.special)} | _configured(config)
    special = {token: i for i, token in sorted(named.items())}
    if name == "TikTokenTokenizer":  # its code gives every free id up to 256 a name
        taken = set(special.values())
        special |= {f"<|reserved_token_{i}|>": i for i in range(first, first + 256) if i not in taken}
    return _built(ranks, special, kind, path)


def build_tekken(content: Mapping[str, Any], path: Path) -> BuiltVocabulary:
    """`content`: of the tekken.json at `path`.

    Raises `CheckpointError`; for whatever the library raises, its own errors.
    """
    try:
        settings = content["config"]
        size, num_special = int(settings["default_vocab_size"]), int(settings["default_num_special_tokens"])
        pattern = str(settings["pattern"])
        listed = content.get("special_tokens") or [{"rank": i, "token_str": t} for i, t in enumerate(_OLD_TEKKEN)]
        special = {f"<SPECIAL_{i}>": i for i in range(num_special)}
        names = {int(entry["rank"]): str(entry["token_str"]) for entry in listed}
        special = {names.get(i, text): i for text, i in special.items()}
        ranks = {
            base64.b64decode(entry["token_bytes"], validate=True): int(entry["rank"]) + num_special
            for entry in content["vocab"][: size - num_special]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not a tekken.json: {type(error).__name__}: {str(error)[:100]}") from None
    names_of = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    kind = _Kind(words=split_rule(pattern), special=(), names=names_of, before=("<s>",))
    return _built(ranks, special, kind, path)


#: The special tokens of the first version of the format, which does not list them.
_OLD_TEKKEN: Final = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip


def _built(ranks: Mapping[bytes, int], special: Mapping[str, int], kind: _Kind, path: Path) -> BuiltVocabulary:
    if len(set(ranks.values())) != len(ranks) or not set(ranks.values()).isdisjoint(special.values()):
        raise CheckpointError(f"{path}: two tokens have the same id.")
    missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if missing is not None:
        raise CheckpointError(f"{path}: there is no token of the byte {missing}.")
    by_rank = sorted(ranks, key=ranks.__getitem__)
    vocab = {"".join(map(CHAR_OF_BYTE.__getitem__, token)): ranks[token] for token in by_rank}
    spelled_alike = next((token for token in special if token in vocab), None)
    if spelled_alike is not None:
        raise CheckpointError(f"{path}: {spelled_alike!r} is a special token and an ordinary one.")
    model = models.BPE(vocab=vocab | dict(special), merges=merges_from_vocabulary(vocab, None), ignore_merges=True)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = kind.words()
    backend.decoder = decoders.ByteLevel()
    if kind.composes:
        backend.normalizer = normalizers.NFC()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    before = [token for token in kind.before if token in special]
    if before:
        backend.post_processor = processors.TemplateProcessing(
            single=[*before, "$A"], special_tokens=[(token, special[token]) for token in before]
        )
    names = {name: token for name, token in kind.names.items() if token in special}
    return BuiltVocabulary(backend=backend, special_tokens=names)


def _configured(config: Mapping[str, Any]) -> dict[int, str]:
    """The special tokens that a tokenizer_config.json lists, by id."""
    listed = config.get("added_tokens_decoder")
    if not isinstance(listed, dict):
        return {}
    return {
        int(i): entry["content"]
        for i, entry in listed.items()
        if i.isdecimal() and isinstance(entry, dict) and isinstance(entry.get("content"), str)
    }


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_bytes(path, MAX_VOCABULARY_BYTES).splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:  # binascii.Error is one
            raise CheckpointError(f"{path}: line {number} is not a token in base64 and its rank.") from None
    if (
        not ranks
        or max(map(len, ranks)) > _MAX_TOKEN_BYTES
        or max(ranks.values()) >= 1 << 24
        or min(ranks.values()) < 0
    ):
        raise CheckpointError(f"{path}: it holds no tokens, or one that is too long or has an impossible rank.")
    return ranks
