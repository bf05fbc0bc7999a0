"""The models of a server, by the names under which they are served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.base.errors import ModelNotFound, clip
from octavo.base.suggest import suggest
from octavo.served.model import ServedModel

#: Served names in the error for another one, and characters of a name that it repeats.
MAX_SHOWN_MODELS = 8
_MAX_NAME_CHARS = 200


@dataclass(frozen=True, slots=True)
class Lease:
    """A model for the time of one request. `name`: what the reply calls it."""

    name: str
    model: ServedModel


class Models:
    """At least one model; the first is meant where a request names none."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {name: model for model in models for name in model.names}
        self.default = models[0]

    @property
    def names(self) -> tuple[str, ...]:
        adapters = (name for model in self.all if model.adapters is not None for name in model.adapters.names)
        return (*self._models, *adapters)

    @property
    def all(self) -> Sequence[ServedModel]:
        return list({id(model): model for model in self._models.values()}.values())

    def resolve(self, name: str | None) -> Lease:
        """The model that a request's `model` means, or the one whose adapter it names; none or "" is the first. Raises
        `ModelNotFound`."""
        if not name:
            return Lease(self.default.names[0], self.default)
        model = self._models.get(name) or self._with_adapter(name)
        if model is None:
            raise ModelNotFound(self._unknown(name), "model")
        return Lease(name, model)

    def _with_adapter(self, name: str) -> ServedModel | None:
        for model in self.all:
            adapter = None if model.adapters is None else model.adapters.find(name)
            if adapter is not None:
                return model.with_adapter(adapter)
        return None

    def _unknown(self, name: str) -> str:
        names = self.names
        served = ", ".join(f"`{clip(known, _MAX_NAME_CHARS)}`" for known in names[:MAX_SHOWN_MODELS])
        more = len(names) - MAX_SHOWN_MODELS
        # Of a path or a repository the last part is what was meant.
        near = suggest(name, names) or suggest(name.rsplit("/", 1)[-1], names)
        hint = f"; did you mean `{clip(near, _MAX_NAME_CHARS)}`?" if near is not None else "."
        return (
            f"The model `{clip(name, _MAX_NAME_CHARS)}` does not exist. "
            f"This server has {served}{f' and {more} more' if more > 0 else ''}{hint}"
        )
