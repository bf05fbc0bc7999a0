"""octavo: a language-model serving engine with an OpenAI-compatible HTTP server.

The public names are imported when they are first used, so that `import octavo` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.errors import OctavoError, RequestError, ServerError, StartupError
    from octavo.llm import LLM, CompletionOutput, RequestOutput
    from octavo.params import BeamParams, GuidedDecodingParams, SamplingParams, StructuredOutputsParams

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "BeamParams",
    "CompletionOutput",
    "GuidedDecodingParams",
    "OctavoError",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "ServerError",
    "StartupError",
    "StructuredOutputsParams",
]

_HOMES = {
    "LLM": "octavo.llm",
    "BeamParams": "octavo.params",
    "CompletionOutput": "octavo.llm",
    "GuidedDecodingParams": "octavo.params",
    "OctavoError": "octavo.errors",
    "RequestError": "octavo.errors",
    "RequestOutput": "octavo.llm",
    "SamplingParams": "octavo.params",
    "ServerError": "octavo.errors",
    "StartupError": "octavo.errors",
    "StructuredOutputsParams": "octavo.params",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'octavo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
