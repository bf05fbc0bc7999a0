"""octavo: a language-model serving engine with an OpenAI-compatible HTTP server.

The public names are imported when they are first used, so that `import octavo` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.base.errors import OctavoError, RequestError, ServerError, StartupError
    from octavo.base.params import BeamParams, GuidedDecodingParams, SamplingParams, StructuredOutputsParams
    from octavo.offline.llm import LLM, CompletionOutput, LoRARequest, PromptAdapterRequest, RequestOutput

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "BeamParams",
    "CompletionOutput",
    "GuidedDecodingParams",
    "LoRARequest",
    "OctavoError",
    "PromptAdapterRequest",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "ServerError",
    "StartupError",
    "StructuredOutputsParams",
]

_HOMES = {
    "LLM": "octavo.offline.llm",
    "BeamParams": "octavo.base.params",
    "CompletionOutput": "octavo.offline.llm",
    "GuidedDecodingParams": "octavo.base.params",
    "LoRARequest": "octavo.offline.llm",
    "OctavoError": "octavo.base.errors",
    "PromptAdapterRequest": "octavo.offline.llm",
    "RequestError": "octavo.base.errors",
    "RequestOutput": "octavo.offline.llm",
    "SamplingParams": "octavo.base.params",
    "ServerError": "octavo.base.errors",
    "StartupError": "octavo.base.errors",
    "StructuredOutputsParams": "octavo.base.params",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
