"""How long a request may be, and which requests could never run."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.base.media import MediaItem
from octavo.cache.pictures import most_places, picture_rows, pictures_of
from octavo.wire.messages import AddRequest


@dataclass(frozen=True, slots=True)
class PictureTiles:
    """Of a model whose layers see pictures beside the text; no tiles: of any other."""

    tile_rows: int = 0
    tiles: int = 0  # of a picture, at most
    most: int = 0  # pictures of a request
    block_size: int = 1

    @property
    def most_rows(self) -> int:
        """Places that a request's pictures may take in the blocks of a group."""
        return most_places(self.most, self.tiles * self.tile_rows, self.block_size) if self.tiles else 0

    def num_rows(self, media: tuple[MediaItem, ...]) -> int:
        """Places of a request."""
        laid = picture_rows(pictures_of(media, self.tile_rows), self.tiles * self.tile_rows, self.block_size)
        return len(laid.source)

    def refusal(self, media: tuple[MediaItem, ...]) -> str | None:
        if len(media) > self.most:
            return f"The request has {len(media)} pictures, and the engine takes {self.most}."
        for item in media:
            if "patches" not in item.tensors or not 0 < item.tensors["patches"].shape[0] <= self.tiles:
                return f"A picture has 1 to {self.tiles} tiles."
        return None


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Tokens that one request may have, prompt and output together."""

    vocab_size: int
    max_model_len: int
    kv_capacity: int
    max_step_tokens: int | None  # where a prompt must fit one step, also after a preemption with its output
    max_encoder_len: int = 0  # 0: the model has no encoder
    encoder_channels: int = 0  # of the frames that it takes; 0: it takes tokens
    media_kinds: tuple[str, ...] = ()
    media_width: int = 0
    max_loras: int = 0
    max_prompt_adapters: int = 0
    extra_tokens: int = 0  # ids behind the vocabulary, for requests with an adapter
    max_span_tokens: int | None = None  # where a run of tokens of one item must fit one step
    pictures: PictureTiles = PictureTiles()

    def max_tokens(self, message: AddRequest) -> int:
        """The number of tokens at which the request ends."""
        limits = [self.max_model_len, self.kv_capacity]
        if self.max_step_tokens is not None:
            limits.append(self.max_step_tokens)
        if message.params.max_tokens is not None:
            num_prompt = message.num_virtual_tokens + len(message.prompt_token_ids)
            limits.append(num_prompt + message.params.max_tokens)
        return min(limits)

    def refusal(self, message: AddRequest) -> str | None:
        """Why the request can never run, or None."""
        prompt = message.prompt_token_ids
        if not prompt:
            return "The prompt is empty."
        num_ids = self.vocab_size + (self.extra_tokens if message.adapter else 0)
        if min(prompt) < 0 or max(prompt) >= num_ids:
            return f"The prompt contains a token id outside 0..{num_ids - 1}."
        if message.num_virtual_tokens:
            if not message.adapter or not self.max_prompt_adapters:
                return "The request has virtual tokens, and the engine was started without --enable-prompt-adapter."
            if message.media:
                return "The request has a prompt adapter, which takes no media beside it."
        elif message.adapter and not self.max_loras:
            return "The request has an adapter, and the engine was started without --enable-lora."
        if message.media and (refusal := self._media_refusal(message.media, len(prompt))) is not None:
            return refusal
        num_tokens = message.num_virtual_tokens + len(prompt)
        num_tokens += 0 if message.pooling is not None else message.params.max_tokens or 1
        if num_tokens > self.max_model_len:
            return f"The request needs {num_tokens} tokens, but the context has {self.max_model_len}."
        if num_tokens > self.kv_capacity:
            return f"The request needs {num_tokens} tokens, but the KV cache holds {self.kv_capacity}."
        if self.max_step_tokens is not None and num_tokens > self.max_step_tokens:
            return (
                f"The request needs {num_tokens} tokens, but without chunked prefill a step takes at most "
                f"{self.max_step_tokens}."
            )
        return self._encoder_refusal(message.encoder_token_ids) or self._frames_refusal(message)

    def _encoder_refusal(self, token_ids: list[int]) -> str | None:
        if not self.max_encoder_len:
            return "The request has an input for an encoder, and the model has none." if token_ids else None
        if not token_ids:
            return "The request has no input for the model's encoder."
        if min(token_ids) < 0 or max(token_ids) >= self.vocab_size:
            return f"The encoder's input contains a token id outside 0..{self.vocab_size - 1}."
        if len(token_ids) > self.max_encoder_len:
            return f"The encoder's input has {len(token_ids)} tokens, but the encoder takes {self.max_encoder_len}."
        return None

    def _frames_refusal(self, message: AddRequest) -> str | None:
        frames = message.encoder_frames
        if not self.encoder_channels:
            return None if frames is None else "The request has frames of a sound, and the model takes none."
        shape = (2 * len(message.encoder_token_ids), self.encoder_channels)
        size = 4 * shape[0] * shape[1]
        if frames is None or (frames.dtype, frames.shape, len(frames.data)) != ("float32", shape, size):
            return f"The model's encoder takes frames of a sound, float32 {list(shape)}."
        return None

    def _media_refusal(self, media: tuple[MediaItem, ...], num_tokens: int) -> str | None:
        for item in media:
            if item.kind not in self.media_kinds:
                return f"The model reads no media of the kind {item.kind!r}."
            shape, expected = _rows_shape(item), (item.rows, self.media_width)
            if item.kind == "embeds" and shape != expected:
                return f"Embeddings of {item.rows} tokens have the shape {list(shape)}, not {list(expected)}."
        if not _are_apart(media, num_tokens):
            return "The spans of the prompt's media are not within it, in order and apart from each other."
        if refusals := [why for item in media if (why := item.time_refusal(self.max_model_len)) is not None]:
            return refusals[0]
        if self.pictures.tiles and (refusal := self.pictures.refusal(media)) is not None:
            return refusal
        longest = max(length for item in media for _, length in item.spans)
        if self.max_span_tokens is not None and longest > self.max_span_tokens:
            return (
                f"An item of the prompt's media is {longest} tokens, and a step takes at most {self.max_span_tokens} "
                "of them: --max-num-prefill-tokens."
            )
        return None


def _rows_shape(item: MediaItem) -> tuple[int, ...]:
    """Of rows that are ready."""
    return item.tensors["rows"].shape if "rows" in item.tensors else ()


def _are_apart(media: tuple[MediaItem, ...], num_tokens: int) -> bool:
    """Whether all spans lie within so many tokens, in order, none empty and none over another."""
    end = 0
    for item in media:
        if not item.spans:
            return False
        for start, length in item.spans:
            if start < end or length < 1:
                return False
            end = start + length
    return end <= num_tokens
