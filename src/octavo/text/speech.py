"""The tokens that steer a decoder of speech: which language, which task, and when what was said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from octavo.base.errors import CheckpointError

#: Seconds from one token of time to the next.
TIME_STEP: Final = 0.02
#: From this width of the logits on, models whose files do not say it know several languages.
_MULTILINGUAL_VOCAB: Final = 51_865
_MAX_SMOOTHING: Final = 63

LANGUAGES: Final[dict[str, str]] = {
    "en": "english", "zh": "chinese", "de": "german", "es": "spanish", "ru": "russian", "ko": "korean", "fr": "french",
    "ja": "japanese", "pt": "portuguese", "tr": "turkish", "pl": "polish", "ca": "catalan", "nl": "dutch",
    "ar": "arabic", "sv": "swedish", "it": "italian", "id": "indonesian", "hi": "hindi", "fi": "finnish",
    "vi": "vietnamese", "he": "hebrew", "uk": "ukrainian", "el": "greek", "ms": "malay", "cs": "czech",
    "ro": "romanian", "da": "danish", "hu": "hungarian", "ta": "tamil", "no": "norwegian", "th": "thai", "ur": "urdu",
    "hr": "croatian", "bg": "bulgarian", "lt": "lithuanian", "la": "latin", "mi": "maori", "ml": "malayalam",
    "cy": "welsh", "sk": "slovak", "te": "telugu", "fa": "persian", "lv": "latvian", "bn": "bengali", "sr": "serbian",
    "az": "azerbaijani", "sl": "slovenian", "kn": "kannada", "et": "estonian", "mk": "macedonian", "br": "breton",
    "eu": "basque", "is": "icelandic", "hy": "armenian", "ne": "nepali", "mn": "mongolian", "bs": "bosnian",
    "kk": "kazakh", "sq": "albanian", "sw": "swahili", "gl": "galician", "mr": "marathi", "pa": "punjabi",
    "si": "sinhala", "km": "khmer", "sn": "shona", "yo": "yoruba", "so": "somali", "af": "afrikaans", "oc": "occitan",
    "ka": "georgian", "be": "belarusian", "tg": "tajik", "sd": "sindhi", "gu": "gujarati", "am": "amharic",
    "yi": "yiddish", "lo": "lao", "uz": "uzbek", "fo": "faroese", "ht": "haitian creole", "ps": "pashto",
    "tk": "turkmen", "nn": "nynorsk", "mt": "maltese", "sa": "sanskrit", "lb": "luxembourgish", "my": "myanmar",
    "bo": "tibetan", "tl": "tagalog", "mg": "malagasy", "as": "assamese", "tt": "tatar", "haw": "hawaiian",
    "ln": "lingala", "ha": "hausa", "ba": "bashkir", "jw": "javanese", "su": "sundanese", "yue": "cantonese",
}  # fmt: skip


class Tokens(Protocol):
    """`text.tokenizers.tokenizer.Tokenizer`."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def token_to_id(self, token: str) -> int | None: ...


@dataclass(frozen=True, kw_only=True)
class SpeechVocabulary:
    """Token ids. Those of text are below `end_id`; those of times begin with `first_time`."""

    start_id: int
    end_id: int
    previous_id: int  # what was said before follows it
    no_speech_id: int
    first_time: int
    languages: Mapping[str, int]  # code -> id; empty: the model knows English alone
    transcribe_id: int
    translate_id: int
    forbidden_ids: tuple[int, ...] = ()
    forbidden_start_ids: tuple[int, ...] = ()
    #: Layer and head of the cross attentions that look at where each token is said, and rows of the encoder over which
    #: that is smoothed.
    alignment_heads: tuple[tuple[int, int], ...] = ()
    smoothing: int = 7


def speech_vocabulary(tokenizer: Tokens, vocab_size: int, settings: Mapping[str, Any], source: str) -> SpeechVocabulary:
    """`settings`: of generation_config.json, over config.json. Raises `CheckpointError` for a tokenizer that lacks a
    token, and for settings of other types; `source` names the model in it."""

    def id_of(*names: str) -> int:
        found = (tokenizer.token_to_id(name) for name in names)
        token_id = next((each for each in found if each is not None), None)
        if token_id is None or token_id >= vocab_size:
            raise CheckpointError(f"{source}: the tokenizer has no token {names[0]}, which steers the decoder.")
        return token_id

    def ids_of(name: str, default: list[int]) -> tuple[int, ...]:
        ids = default if settings.get(name) is None else settings[name]
        if not isinstance(ids, list) or not all(type(each) is int for each in ids):
            raise CheckpointError(f"{source}: {name} of its generation config should be a list of token ids.")
        return tuple(each for each in ids if 0 <= each < vocab_size)

    end = id_of("<|endoftext|>")
    knows_languages = settings.get("is_multilingual")
    if knows_languages is None:
        knows_languages = vocab_size >= _MULTILINGUAL_VOCAB
    known = {code: tokenizer.token_to_id(f"<|{code}|>") for code in LANGUAGES} if knows_languages else {}
    return SpeechVocabulary(
        start_id=id_of("<|startoftranscript|>"),
        end_id=end,
        previous_id=id_of("<|startofprev|>"),
        no_speech_id=id_of("<|nospeech|>", "<|nocaptions|>"),
        first_time=id_of("<|notimestamps|>") + 1,
        languages={code: each for code, each in known.items() if each is not None and each < vocab_size},
        transcribe_id=id_of("<|transcribe|>"),
        translate_id=id_of("<|translate|>"),
        forbidden_ids=ids_of("suppress_tokens", []),
        forbidden_start_ids=ids_of("begin_suppress_tokens", [*tokenizer.encode(" ", False)[:1], end]),
        alignment_heads=_alignment_heads(settings, source),
        smoothing=_smoothing(settings, source),
    )


def _alignment_heads(settings: Mapping[str, Any], source: str) -> tuple[tuple[int, int], ...]:
    """Those that are told, else all of the upper half of the layers."""
    layers, heads = settings.get("decoder_layers", 4), settings.get("decoder_attention_heads", 6)
    told = settings.get("alignment_heads")
    if told is None:
        return tuple((layer, head) for layer in range(layers // 2, layers) for head in range(heads))
    is_pairs = isinstance(told, list) and all(isinstance(each, list) and len(each) == 2 for each in told)
    if not (is_pairs and told and all(type(number) is int for each in told for number in each)):
        raise CheckpointError(f"{source}: alignment_heads of its generation config should be pairs of layer and head.")
    if not all(0 <= layer < layers and 0 <= head < heads for layer, head in told):
        raise CheckpointError(f"{source}: alignment_heads of its generation config name a head that it does not have.")
    return tuple((layer, head) for layer, head in told)


def _smoothing(settings: Mapping[str, Any], source: str) -> int:
    width = settings.get("median_filter_width", 7)
    if type(width) is not int or not 1 <= width <= _MAX_SMOOTHING or width % 2 == 0:
        raise CheckpointError(f"{source}: median_filter_width should be an odd number up to {_MAX_SMOOTHING}.")
    return width
