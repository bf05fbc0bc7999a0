"""The configuration: frozen dataclasses, one for each concern, composed into `EngineConfig` and `ServeConfig`.

Each field is a flag of the command line and a key of the config file; its help text stands in the field's
metadata, so that parser, file, help and documents share one declaration. Each "auto" value is resolved once, in the
process that knows the answer; what only the worker knows comes back in `messages.EngineInfo`.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from octavo.base.config.access import AccessConfig
from octavo.base.config.engine import (
    CacheConfig,
    DType,
    EngineConfig,
    KVCacheDType,
    LoadFormat,
    LogprobsMode,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    check_engine,
)
from octavo.base.config.http import HTTPConfig
from octavo.base.config.limits import LimitsConfig
from octavo.base.config.log import LogConfig, LogLevel, LogSetup
from octavo.base.config.lora import AdaptersConfig, LoraConfig, PromptAdapterConfig
from octavo.base.config.mcp import MCPConfig
from octavo.base.config.media import MediaConfig
from octavo.base.config.observe import TRACE_PROTOCOLS, ObserveConfig, StepTimes
from octavo.base.config.options import check_fields, flag_name, json_object, opt
from octavo.base.config.server import STRUCTURED_OUTPUTS, ServeConfig, ServerConfig, check_server
from octavo.base.config.text import ContentFormatOption, TextConfig, ToolStrictLevel

__all__ = [
    "STRUCTURED_OUTPUTS",
    "TRACE_PROTOCOLS",
    "AccessConfig",
    "AdaptersConfig",
    "CacheConfig",
    "ContentFormatOption",
    "DType",
    "EngineConfig",
    "HTTPConfig",
    "KVCacheDType",
    "LimitsConfig",
    "LoadFormat",
    "LogConfig",
    "LogLevel",
    "LogSetup",
    "LogprobsMode",
    "LoraConfig",
    "MCPConfig",
    "MediaConfig",
    "ModelConfig",
    "ObserveConfig",
    "ParallelConfig",
    "PromptAdapterConfig",
    "SchedulerConfig",
    "ServeConfig",
    "ServerConfig",
    "StepTimes",
    "TextConfig",
    "ToolStrictLevel",
    "check",
    "flag_name",
    "json_object",
    "opt",
]


def check(config: Any) -> None:
    """Check every field of a configuration, nested ones too. Raises `InvalidConfig` naming the flag."""
    check_fields(config)
    for f in fields(config):
        if is_dataclass(part := getattr(config, f.name)):
            check(part)
    if isinstance(config, EngineConfig):
        check_engine(config)
    elif isinstance(config, ServerConfig):
        check_server(config)
