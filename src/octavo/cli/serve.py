"""`octavo serve [MODEL] [flags]`: read the settings, then hand over to the launcher.

Precedence: command line > config file > environment (the API key only) > defaults.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.cli.config_file import read_config_file
from octavo.cli.environment import api_key, check_environment
from octavo.cli.flags import build, flags
from octavo.cli.parser import normalise, serve_parser
from octavo.config import ServeConfig
from octavo.errors import InvalidConfig


def run(argv: Sequence[str]) -> int:
    config = serve_config(argv, os.environ)
    # Imported here: `--help` and a wrong flag must not pay for the server.
    from octavo.launch import serve

    return serve(config)


def serve_config(argv: Sequence[str], environ: Mapping[str, str]) -> ServeConfig:
    """The checked configuration. Raises `InvalidConfig`; `--help` prints and exits."""
    table = flags()
    given: dict[str, Any] = vars(serve_parser(table).parse_args(normalise(argv, table)))
    check_environment(environ)
    files = given.pop("config", [])
    if len(files) > 1:
        raise InvalidConfig("--config may be given once")
    values = read_config_file(files[0], table) if files else {}
    if "model" not in given and "model" not in values and len(given.get("served_model_name", ())) > 1:
        raise InvalidConfig("--served-model-name takes all words that follow it: give MODEL first")
    values |= given
    if "api_key" not in values:
        key = api_key(environ)
        values["api_key"] = [key] if key else []
    return build(values)
