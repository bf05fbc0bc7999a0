"""What one request may ask for: bounds that are settings of the server, each with its error, and what goes together."""

from __future__ import annotations

from octavo.config import ServerConfig
from octavo.errors import InvalidRequest
from octavo.params import BeamParams
from octavo.server.exchange import BodyLimits
from octavo.server.protocol.common import SamplingFields


def body_limits(config: ServerConfig) -> BodyLimits:
    return BodyLimits(config.max_body_bytes, config.max_json_depth)


def check_limits(request: SamplingFields, config: ServerConfig) -> None:
    """Raise `InvalidRequest` for lists that are longer than the server's settings allow."""
    if len(request.stop) > config.max_stop_strings:
        raise InvalidRequest(f"At most {config.max_stop_strings} stop strings are allowed.", "stop")
    if len(request.logit_bias or {}) > config.max_logit_bias:
        raise InvalidRequest(f"At most {config.max_logit_bias} entries are allowed.", "logit_bias")
    if request.stream_interval is not None:
        if not request.stream:
            raise InvalidRequest("`stream_interval` can only be set when `stream=True`.", "stream_interval")
        if request.stream_interval < 1:
            raise InvalidRequest("`stream_interval` must be at least 1.", "stream_interval")


def beam_params(request: SamplingFields) -> BeamParams | None:
    """The beams of a request that wants some; `BeamParams.check` is still to be called.

    Raises `InvalidRequest` for what has a meaning with beams only (S22, S23).
    """
    penalty = 1.0 if request.length_penalty is None else request.length_penalty
    n = request.n or 1
    if request.use_beam_search:
        return BeamParams(
            width=n if request.best_of is None else request.best_of,
            length_penalty=penalty,
            early_stopping=request.early_stopping or False,
        )
    if penalty != 1.0:
        raise InvalidRequest("`length_penalty` must be 1 unless `use_beam_search` is true.", "length_penalty")
    if request.early_stopping:
        raise InvalidRequest("`early_stopping` must be false unless `use_beam_search` is true.", "early_stopping")
    return None
