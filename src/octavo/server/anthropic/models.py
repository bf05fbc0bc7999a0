"""The list of models as Anthropic's clients know it."""

from __future__ import annotations

from octavo.served.models import Lease, Models
from octavo.server.anthropic.protocol import ModelInfo, ModelPage
from octavo.server.moments import moment


def model_page(models: Models) -> ModelPage:
    """All models: there are no further pages."""
    names = models.names
    return ModelPage([model_info(models.resolve(name)) for name in names], False, names[0], names[-1])


def model_info(lease: Lease) -> ModelInfo:
    model = lease.model
    most = min(model.info.max_model_len, model.info.max_request_tokens)
    return ModelInfo(lease.name, lease.name, moment(model.created), most, most)
