"""The settings of the server, of all concerns, and of `octavo serve`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from octavo.base.config.access import AccessConfig
from octavo.base.config.engine import EngineConfig
from octavo.base.config.http import HTTPConfig
from octavo.base.config.limits import LimitsConfig
from octavo.base.config.log import LogConfig
from octavo.base.config.lora import AdaptersConfig
from octavo.base.config.mcp import MCPConfig
from octavo.base.config.media import MediaConfig, check_media
from octavo.base.config.observe import TRACE_PROTOCOLS, ObserveConfig
from octavo.base.config.options import json_object
from octavo.base.config.text import TextConfig
from octavo.base.errors import InvalidConfig
from octavo.base.suggest import nearest


@dataclass(frozen=True, kw_only=True)
class ServerConfig(
    AdaptersConfig,
    ObserveConfig,
    LogConfig,
    TextConfig,
    MCPConfig,
    MediaConfig,
    LimitsConfig,
    AccessConfig,
    HTTPConfig,
):
    """The server and its API: the settings of all concerns in one object, for whoever needs several."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The settings of `octavo serve`."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    server: ServerConfig = field(default_factory=ServerConfig)


#: Keys of `structured_outputs_config` that are flags too, and others that ask for what octavo does anyway.
STRUCTURED_OUTPUTS: Final = ("disable_additional_properties", "disable_any_whitespace")
_STRUCTURED_OUTPUTS_SAME: Final[dict[str, tuple[Any, ...]]] = {
    "backend": ("auto", "guidance", "outlines", "lm-format-enforcer", "xgrammar"),
    "disable_fallback": (True, False),  # there is one engine
    "enable_in_reasoning": (False,),
    "reasoning_parser": ("",),
}


def _check_structured_outputs(text: str) -> None:
    for key, value in json_object(text, "--structured-outputs-config").items():
        allowed = (True, False) if key in STRUCTURED_OUTPUTS else _STRUCTURED_OUTPUTS_SAME.get(key, ())
        if not allowed:
            raise InvalidConfig(f"--structured-outputs-config has no key {key!r}{nearest(key, STRUCTURED_OUTPUTS)}")
        if not any(value is choice or (isinstance(value, str) and value == choice) for choice in allowed):
            shown = " or ".join(json.dumps(choice) for choice in allowed)
            raise InvalidConfig(f"--structured-outputs-config: {key} must be {shown}")


def _check_traces(endpoint: str, protocol: str) -> None:
    # Not when nothing is sent: variables of OpenTelemetry may be there for other programs.
    if protocol not in TRACE_PROTOCOLS:
        raise InvalidConfig(f"--otlp-traces-protocol must be one of {', '.join(TRACE_PROTOCOLS)}; got {protocol!r}")
    if protocol != "grpc" and not endpoint.startswith(("http://", "https://")):
        raise InvalidConfig(
            f"--otlp-traces-endpoint must begin with http:// or https:// ({protocol}); got {endpoint!r}"
        )


def check_server(config: ServerConfig) -> None:
    """Settings that must fit each other. Raises `InvalidConfig`."""
    if config.structured_outputs_config is not None:
        _check_structured_outputs(config.structured_outputs_config)
    check_media(config)
    if config.uds is not None and config.host is not None:
        raise InvalidConfig("--uds and --host cannot be combined")
    if (config.ssl_keyfile is None) != (config.ssl_certfile is None):
        raise InvalidConfig("--ssl-keyfile and --ssl-certfile must be given together")
    if config.ssl_certfile is None and (config.ssl_ca_certs or config.ssl_cert_reqs or config.ssl_ciphers):
        raise InvalidConfig("--ssl-ca-certs, --ssl-cert-reqs and --ssl-ciphers need --ssl-certfile")
    if any(not key for key in config.api_key):
        raise InvalidConfig("--api-key must not be empty")
    if config.admin_api_key is not None and (not config.admin_api_key or config.admin_api_key in config.api_key):
        raise InvalidConfig("--admin-api-key must not be empty, and not one of --api-key")
    if any(not name for name in config.served_model_name):
        raise InvalidConfig("--served-model-name must not be empty")
    if config.otlp_traces_endpoint is not None:
        _check_traces(config.otlp_traces_endpoint, config.otlp_traces_protocol)
    if config.log_config_file is not None and not config.configure_logging:
        raise InvalidConfig("--log-config-file sets up the log, which --no-configure-logging forbids")
    if config.api_server_count > 1 and config.lora_resolver_dir is not None:
        raise InvalidConfig(
            "--lora-resolver-dir needs --api-server-count 1: an adapter that one process finds there is not one that "
            "the others have"
        )
    if config.root_path and not config.root_path.startswith("/"):
        raise InvalidConfig(f"--root-path must begin with a slash; got {config.root_path!r}")
