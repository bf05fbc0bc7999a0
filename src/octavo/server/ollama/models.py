"""What Ollama's clients ask about models: GET /api/tags, /api/ps and /api/version, POST /api/show."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import octavo
from octavo.served.model import ServedModel
from octavo.served.models import Lease, Models
from octavo.server.http.exchange import Exchange
from octavo.server.moments import moment
from octavo.server.ollama.protocol import (
    ListedModel,
    ModelDetails,
    OllamaVersion,
    RunningModel,
    RunningReply,
    ShowReply,
    ShowRequest,
    TagsReply,
)
from octavo.server.openai.serving import Serving

#: The version of Ollama whose API this is: clients refuse servers that are too old for what they want to ask.
API_VERSION: Final = "0.12.6"
_LATEST: Final = ":latest"
#: A served model is never unloaded.
_NEVER: Final = "9999-12-31T23:59:59Z"
#: Kinds of media -> the capability to read them.
_MEDIA: Final = {"image": "vision", "audio": "audio"}


def resolve(models: Models, name: str | None) -> Lease:
    """The model of that name; clients of this API add `:latest` to names without a tag. Raises `ModelNotFound`."""
    if name and name not in models.names and name.endswith(_LATEST):
        name = name.removesuffix(_LATEST)
    return models.resolve(name)


class ModelHandlers:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def tags(self, exchange: Exchange) -> None:
        models = self._serving.state.models
        listed = []
        for name in models.names:
            model = models.resolve(name).model
            size = model.info.weight_bytes
            listed.append(ListedModel(name, name, moment(model.created), size, _digest(model), details(model)))
        await exchange.send_json(TagsReply(listed))

    async def running(self, exchange: Exchange) -> None:
        models = self._serving.state.models
        running = []
        for name in models.names:
            model = models.resolve(name).model
            info = model.info
            size = info.weight_bytes + info.kv_cache_bytes
            on_gpu = size if info.device.startswith("cuda") else 0
            running.append(
                RunningModel(
                    name, name, size, _digest(model), details(model), _NEVER, on_gpu, info.max_model_len
                )
            )  # fmt: skip
        await exchange.send_json(RunningReply(running))

    async def show(self, exchange: Exchange) -> None:
        _, request = await self._serving.read(exchange, ShowRequest, {}, any_type=True)
        model = resolve(self._serving.state.models, request.model or request.name).model
        parameters = "\n".join(f"{name} {value}" for name, value in sorted(model.default_sampling.items()))
        await exchange.send_json(
            ShowReply(
                f"FROM {model.root or model.names[0]}",
                parameters,
                details(model),
                _model_info(model),
                _capabilities(model),
                moment(model.created),
            )
        )

    async def version(self, exchange: Exchange) -> None:
        await exchange.send_json(OllamaVersion(API_VERSION, f"octavo {octavo.__version__}"))


def details(model: ServedModel) -> ModelDetails:
    info = model.info
    container = "gguf" if model.root.lower().endswith(".gguf") else "safetensors"
    return ModelDetails(
        container, info.model_type, [info.model_type], _parameter_size(info.num_params), info.quantization
    )


def _model_info(model: ServedModel) -> dict[str, Any]:
    info = model.info
    return {
        "general.architecture": info.model_type,
        "general.parameter_count": info.num_params,
        f"{info.model_type}.context_length": info.max_model_len,
    }


def _capabilities(model: ServedModel) -> list[str]:
    if model.info.pooling is not None:
        return ["embedding"]
    found = ["completion"]
    if model.output.tool_format is not None:
        found.append("tools")
    if model.output.reasoning_format is not None:
        found.append("thinking")
    if model.renderer.render_infill("", "", False) is not None:
        found.append("insert")
    if model.media is not None:
        found += [name for kind, name in _MEDIA.items() if kind in model.media.kinds]
    return found


def _digest(model: ServedModel) -> str:
    """64 hexadecimal digits, equal for servers whose answers should be."""
    return hashlib.sha256(model.fingerprint.encode()).hexdigest()


def _parameter_size(count: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)
