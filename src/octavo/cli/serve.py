"""`octavo serve [MODEL] [flags]`: read the settings, then hand over to the launcher.

Precedence: command line > config file > environment (`VARIABLES`, `VLLM_SETTINGS`) > defaults.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from octavo.cli.compat import COMPAT
from octavo.cli.environment import VARIABLES, VLLM_SETTINGS, api_key, check_environment
from octavo.cli.flags import Flag, build, flags
from octavo.cli.parser import Parser, make_parser, read_words
from octavo.config import ServeConfig, flag_name
from octavo.errors import InvalidConfig

#: What to look at first of more than a hundred settings.
MOST_USED = (
    "host", "port", "api_key", "served_model_name", "max_model_len", "max_num_seqs", "kv_cache_memory_bytes",
    "device", "num_threads", "enable_auto_tool_choice",
)  # fmt: skip


def run(argv: Sequence[str]) -> int:
    config = serve_config(argv, os.environ)
    # Imported here: `--help` and a wrong flag must not pay for the server.
    from octavo.launch import serve

    return serve(config)


def serve_config(argv: Sequence[str], environ: Mapping[str, str]) -> ServeConfig:
    """The checked configuration. Raises `InvalidConfig`; `--help` prints and exits."""
    flag_table = table()
    values = read_words(_parser(flag_table), argv, flag_table, COMPAT)
    check_environment(environ)
    if "model" not in values and len(values.get("served_model_name", ())) > 1:
        raise InvalidConfig("--served-model-name takes all words that follow it: give MODEL first")
    if "api_key" not in values:
        key = api_key(environ)
        values["api_key"] = [key] if key else []
    for name, field in VLLM_SETTINGS.items():
        if environ.get(name) and field not in values:
            values[field] = _from_environment(flag_table[field], name, environ[name])
    return build(values)


def _from_environment(flag: Flag, name: str, text: str) -> Any:
    try:
        return flag.from_text(text)
    except InvalidConfig as exc:
        raise InvalidConfig(f"{name}: {exc.message}") from None


def table() -> dict[str, Flag]:
    """The command's flags. Those that most people need stand first, under a heading of their own."""
    found = flags()
    most_used = {name: dataclasses.replace(found[name], group="most used") for name in MOST_USED}
    return most_used | {name: flag for name, flag in found.items() if name not in most_used}


def _parser(flag_table: dict[str, Flag]) -> Parser:
    description = "Serve a model over the OpenAI API."
    parser = make_parser("octavo serve", "[MODEL] [flags]", description, _epilog(), flag_table)
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a directory, a .gguf file, a repository of the Hugging Face hub (org/repo, org/repo:Q4_K_M), "
        "or smollm2, the demo model (the default)",
    )
    return parser


def _epilog() -> str:
    width = max(map(len, [*VARIABLES, *VLLM_SETTINGS]))
    lines = [
        "The command line overrides the config file, which overrides the defaults. Flags may be written with _ or -.",
        "Flags of vLLM that ask for what octavo does anyway are accepted; the others are refused with the reason.",
        "",
        "environment:",
        *(f"  {name:<{width}}  {meaning}" for name, meaning in VARIABLES.items()),
        *(f"  {name:<{width}}  as {flag_name(field)}" for name, field in VLLM_SETTINGS.items()),
        "  HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE are read by the client of the Hugging Face hub.",
    ]
    return "\n".join(lines)
