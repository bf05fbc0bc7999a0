"""`octavo serve [MODEL] [flags]`: read the settings, then hand over to the launcher.

Precedence: command line > config file > environment > defaults.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

from octavo.base.config import ServeConfig, flag_name
from octavo.base.errors import InvalidConfig
from octavo.cli.environment import VARIABLES, read_environment
from octavo.cli.flags import Flag, build, flags
from octavo.cli.foreign import Foreign
from octavo.cli.notes import Note, notes
from octavo.cli.parser import Parser, make_parser, read_words
from octavo.cli.vllm import ROWS
from octavo.cli.vllm import VARIABLES as VLLM_VARIABLES

#: What to look at first of more than a hundred settings.
MOST_USED = (
    "host", "port", "api_key", "served_model_name", "max_model_len", "max_num_seqs", "kv_cache_memory_bytes",
    "device", "num_threads", "enable_auto_tool_choice",
)  # fmt: skip


def run(argv: Sequence[str]) -> int:
    config, told = settings(argv, os.environ)
    # The client of Prometheus would keep its metrics in files of that directory, for processes that octavo has not.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    # Imported here: `--help` and a wrong flag must not pay for the server.
    from octavo.launch.server import serve

    return serve(config, told)


def serve_config(argv: Sequence[str], environ: Mapping[str, str]) -> ServeConfig:
    """The checked configuration. Raises `InvalidConfig`; `--help` prints and exits."""
    return settings(argv, environ)[0]


def settings(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[ServeConfig, list[Note]]:
    """The checked configuration, and what is to be told of how it was given."""
    flag_table = table()
    foreign = Foreign(ROWS, flag_table)
    values = read_words(_parser(flag_table), argv, flag_table, foreign)
    if "model" not in values and len(values.get("served_model_name", ())) > 1:
        raise InvalidConfig("--served-model-name takes all words that follow it: give MODEL first")
    environment = read_environment(environ, flag_table, values)
    config = build(environment.values | values)
    return config, notes([*foreign.accepted, *environment.accepted], environment.warnings, config.server)


def table() -> dict[str, Flag]:
    """The command's flags. Those that most people need stand first, under a heading of their own."""
    found = flags()
    most_used = {name: dataclasses.replace(found[name], group="most used") for name in MOST_USED}
    return most_used | {name: flag for name, flag in found.items() if name not in most_used}


def _parser(flag_table: dict[str, Flag]) -> Parser:
    return make_parser(
        "octavo serve",
        "[MODEL] [flags]",
        "Serve a model over the OpenAI API.",
        _epilog(),
        flag_table,
        model_help="a directory, a .gguf file, a repository of the Hugging Face hub (org/repo, org/repo:Q4_K_M), "
        "or smollm2, the demo model (the default)",
    )


def _epilog() -> str:
    as_settings = {v.name: v.field for v in VLLM_VARIABLES if v.field is not None and v.field != "api_key"}
    width = max(map(len, [*VARIABLES, *as_settings]))
    lines = [
        "The command line overrides the config file, which overrides the defaults. Flags may be written with _ or -.",
        "Flags of vLLM that ask for what octavo does anyway are accepted; the others are refused with the reason.",
        "--help=GROUP describes one group of flags, --help=FLAG one flag, --help=groups lists the groups.",
        "",
        "environment:",
        *(f"  {name:<{width}}  {meaning}" for name, meaning in VARIABLES.items()),
        *(f"  {name:<{width}}  as {flag_name(field)}" for name, field in as_settings.items()),
        "  HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE are read by the client of the Hugging Face hub.",
    ]
    return "\n".join(lines)
