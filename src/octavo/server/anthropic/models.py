"""The list of models as Anthropic's clients know it."""

from __future__ import annotations

from datetime import UTC, datetime

from octavo.served.models import Lease, Models
from octavo.server.anthropic.protocol import ModelInfo, ModelPage


def model_page(models: Models) -> ModelPage:
    """All models: there are no further pages."""
    names = models.names
    return ModelPage([model_info(models.resolve(name)) for name in names], False, names[0], names[-1])


def model_info(lease: Lease) -> ModelInfo:
    model = lease.model
    created = datetime.fromtimestamp(model.created, UTC).isoformat().replace("+00:00", "Z")
    most = min(model.info.max_model_len, model.info.max_request_tokens)
    return ModelInfo(lease.name, lease.name, created, most, most)
