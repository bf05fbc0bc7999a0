"""What the log tells of requests, with --enable-log-requests: each when it is ready for the engine, and its end."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from octavo.base.log import escape
from octavo.base.media import MediaItem
from octavo.base.params import SamplingParams
from octavo.client.observer import FinishedRequest, NoObserver

logger = logging.getLogger(__name__)

#: Characters of a prompt, and token ids, where --max-log-len does not say: both fit the longest line, with the rest.
_MAX_CHARS = 1500
_MAX_IDS = 200
_MAX_MEDIA = 8


def log_request(
    request_id: str,
    ids: Sequence[int],
    text: str | None,
    params: SamplingParams,
    max_log_len: int | None,
    media: Sequence[MediaItem] = (),
) -> None:
    """`text`: None where the prompt was given as ids, or cut. `max_log_len` bounds characters and ids alike."""
    shown = list(ids[: _MAX_IDS if max_log_len is None else max_log_len])
    more = f" ... ({len(ids)})" if len(shown) < len(ids) else ""
    prompt = "ids only" if text is None else f"'{escape(text, _MAX_CHARS if max_log_len is None else max_log_len)}'"
    logger.info(
        "request %s: %d prompt tokens%s, prompt %s, ids %s%s, %s",
        request_id,
        len(ids),
        _media_words(media),
        prompt,
        shown,
        more,
        escape(str(params)),
        extra={"request_id": request_id},
    )


def _media_words(media: Sequence[MediaItem]) -> str:
    """How many of the tokens stand for media, of which digests are told: what they show is nobody's business."""
    if not media:
        return ""
    shown = ", ".join(f"{item.kind} {item.digest.hex()[:12]}" for item in media[:_MAX_MEDIA])
    more = ", ..." if len(media) > _MAX_MEDIA else ""
    return f" ({sum(item.rows for item in media)} of them for {len(media)} media: {shown}{more})"


class RequestLog(NoObserver):
    """Tells of the end of each request."""

    def on_request_finish(self, finished: FinishedRequest) -> None:
        times, request = finished.times, finished.request
        logger.info(
            "request %s ended: %s; %d prompt tokens, %d of them cached, %d generated; %s in the queue, first token "
            "after %s, %s in all",
            request.external_id,
            ", ".join(sorted(set(finished.finish_reasons))),
            request.num_prompt_tokens,
            finished.num_cached_tokens,
            sum(finished.num_output_tokens),
            _seconds(times.queue_seconds),
            _seconds(times.first_token_seconds),
            _seconds(times.total_seconds),
            extra={"request_id": request.external_id},
        )


def _seconds(seconds: float | None) -> str:
    return "no time" if seconds is None else f"{seconds:.3f} s"
