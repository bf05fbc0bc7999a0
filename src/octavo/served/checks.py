"""The checks of a turn's parameters, once for all APIs and for programs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidRequest, RequestError
from octavo.base.params import SamplingParams, check_samples
from octavo.served.parts import Renderer
from octavo.served.turn import Turn
from octavo.wire.messages import EngineInfo

if TYPE_CHECKING:
    from octavo.served.model import ServedModel

MAX_CACHE_SALT_CHARS = 256
MAX_BAD_WORD_CHARS = 512
#: The most characters of a stop string.
MAX_STOP_CHARS = 4096


def checked_params(model: ServedModel, turn: Turn) -> SamplingParams:
    """The turn's sampling parameters, validated; `max_tokens` may still be None. Raises `InvalidRequest`."""
    salt = turn.cache_salt
    if len(salt) > MAX_CACHE_SALT_CHARS or not salt.isprintable():
        raise InvalidRequest(
            f"`cache_salt` should be at most {MAX_CACHE_SALT_CHARS} printable characters.", "cache_salt"
        )
    params = _params(model, turn)
    if params.stop and not model.tokenizer.has_text:
        raise InvalidRequest("There is no text to stop at: the server has no tokenizer. Use `stop_token_ids`.", "stop")
    if turn.bad_words:
        params = msgspec.structs.replace(params, bad_word_token_ids=_bad_words(turn.bad_words, model.renderer))
    params = params.validate(vocab_size=model.num_ids, max_logprobs=model.config.max_logprobs, max_n=model.config.max_n)
    has_logits = model.logprobs_mode.endswith("_logits")
    check_samples(params, turn.beams, has_logits=has_logits, max_width=model.config.max_n)
    num_samples = params.num_samples if turn.beams is None else turn.beams.width
    num_sequences = len(turn.prompts) * num_samples
    if len(turn.prompts) > 1 and num_sequences > model.max_fanout:
        raise InvalidRequest(
            f"{len(turn.prompts)} prompts with {num_samples} samples each are {num_sequences} sequences; at most "
            f"{model.max_fanout} are allowed.",
            turn.prompt_param,
        )
    return params


def _params(model: ServedModel, turn: Turn) -> SamplingParams:
    """What the caller said, over the model's defaults."""
    if isinstance(turn.sampling, SamplingParams):
        return turn.sampling
    # A default of `max_tokens` bounds what fits the context; that is known when the prompt is.
    values = {name: value for name, value in model.default_sampling.items() if name != "max_tokens"}
    if turn.beams is not None:
        # The defaults are about sampling; only what the caller says can be wrong.
        values = {"temperature": 0.0}
    values |= turn.sampling
    if turn.beams is not None:
        values["best_of"] = None  # it is their number
    params = SamplingParams(**values)
    _check_lengths(params, model.config)
    return params


def _check_lengths(params: SamplingParams, config: ServerConfig) -> None:
    """Refuse what is longer than the server's settings allow. A program's own parameters are not bounded by them."""
    if len(params.stop) > config.max_stop_strings:
        raise InvalidRequest(f"At most {config.max_stop_strings} stop strings are allowed.", "stop")
    if any(len(text) > MAX_STOP_CHARS for text in params.stop):
        raise InvalidRequest(f"A stop string has at most {MAX_STOP_CHARS} characters.", "stop")
    if len(params.logit_bias or {}) > config.max_logit_bias:
        raise InvalidRequest(f"At most {config.max_logit_bias} entries are allowed.", "logit_bias")


def _bad_words(words: Sequence[str], renderer: Renderer) -> tuple[tuple[int, ...], ...]:
    """Each word as it is written at the start of a text and after a space."""
    sequences: dict[tuple[int, ...], None] = {}  # an ordered set
    for i, word in enumerate(words):
        if not word.strip() or len(word) > MAX_BAD_WORD_CHARS:
            raise InvalidRequest(
                f"A word of `bad_words` should have 1 to {MAX_BAD_WORD_CHARS} characters, not only spaces.",
                f"bad_words.{i}",
            )
        for text in (word.lstrip(), " " + word.lstrip()):
            if ids := renderer.render_text(text, False):
                sequences[tuple(ids)] = None
    return tuple(sequences)


def truncated(ids: list[int], params: SamplingParams, turn: Turn, info: EngineInfo, num_virtual: int = 0) -> list[int]:
    """The prompt as far as the turn lets it be; -1 leaves room for what is generated, unless an encoder has its own,
    and for the virtual tokens in front of it."""
    wanted, most = turn.truncate, info.max_encoder_len or info.max_model_len
    if wanted is None:
        return ids
    if wanted < -1 or wanted == 0 or wanted > most:
        raise InvalidRequest(f"`truncate_prompt_tokens` must be -1 or in [1, {most}].", "truncate_prompt_tokens")
    if wanted == -1 and info.max_encoder_len:
        wanted = most
    elif wanted == -1:
        room = min(info.max_model_len, info.max_request_tokens) - num_virtual
        wanted = max(1, room - (params.max_tokens or max(turn.default_max_tokens or 1, params.min_tokens)))
    if len(ids) <= wanted:
        return ids
    return ids[:wanted] if turn.truncate_right else ids[-wanted:]


def renamed(exc: RequestError, names: Mapping[str, str]) -> RequestError:
    """The same error under the name that the caller used for the field."""
    if exc.param is None:
        return exc
    new = names.get(exc.param) or _renumbered(exc.param, names)
    if new is None:
        return exc
    message = exc.message.replace(f"`{exc.param}`", f"`{new}`")
    if "." in exc.param:  # a path is no word of the language: it may stand without marks too
        message = message.replace(exc.param, new)
    return type(exc)(message, new)


def _renumbered(param: str, names: Mapping[str, str]) -> str | None:
    """The caller's name of a field within a list, or of what stands in it."""
    for known, name in names.items():
        pattern = re.escape(known).replace(r"\*", r"(\d+)")
        if found := re.match(rf"{pattern}(?=\.|$)", param):
            return found.expand(name.replace("*", r"\1")) + param[found.end() :]
    return None
