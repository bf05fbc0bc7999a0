"""How the media of a request are read and prepared: the server's options under the request's."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from octavo.base.config.media import MEDIA_KINDS, MediaConfig, io_text, media_io
from octavo.base.errors import InvalidConfig, InvalidRequest
from octavo.served.turn import MediaOptions


@dataclass(frozen=True, slots=True)
class Settled:
    """Of one request. `processor`: options of the model's processor; `image`: of the decoder."""

    processor: dict[str, Any]
    image: dict[str, Any]
    num_frames: int
    max_pages: int


class MediaSettings:
    """Of a server. Raises `InvalidConfig`."""

    def __init__(self, config: MediaConfig) -> None:
        self._config = config
        self._io = media_io(config.media_io_kwargs)
        self._defaults: dict[str, Any] = json.loads(config.mm_processor_kwargs or "{}")

    def under(self, options: MediaOptions) -> Settled:
        """With those of a request, within the server's bounds. Raises `InvalidRequest`."""
        config = self._config
        for name, value in (("mm_processor_kwargs", options.processor), ("media_io_kwargs", options.io)):
            if value and not config.trust_request_mm_kwargs:
                raise InvalidRequest(
                    f"This server takes no `{name}` from requests (--trust-request-mm-kwargs is off).", name
                )
        io = {kind: dict(self._io.get(kind, {})) for kind in MEDIA_KINDS}
        try:
            for kind, own in media_io(io_text(options.io) if options.io else None, "media_io_kwargs").items():
                io[kind] |= own
        except InvalidConfig as exc:
            raise InvalidRequest(f"{exc.message}.", "media_io_kwargs") from None
        return Settled(
            processor={**self._defaults, **(options.processor or {})},
            image={
                "max_pixels": config.max_image_pixels,
                "background": io["image"].get("rgba_background_color"),
            },
            num_frames=min(io["video"].get("num_frames", 32), config.max_video_frames),
            max_pages=min(io["file"].get("max_pages", config.max_file_pages), config.max_file_pages),
        )
