"""What `octavo bench throughput` and `octavo bench latency` share: a model, its engine's settings, and their own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar

from octavo.base.config import ServerConfig, check
from octavo.bench.config import ReportConfig
from octavo.cli.flags import GROUPS, Flag, flags, part
from octavo.cli.foreign import Foreign
from octavo.cli.parser import make_parser, read_words
from octavo.cli.vllm import ROWS

T = TypeVar("T", bound=ReportConfig)

#: The settings of the engine, all but the server's.
ENGINE_GROUPS = {title: cls for title, cls in GROUPS.items() if not issubclass(ServerConfig, cls)}


def offline_table(cls: type[ReportConfig]) -> dict[str, Flag]:
    """The flags: the benchmark's own, and the engine's."""
    return flags({"measurement": cls, **ENGINE_GROUPS})


def offline_config(command: str, cls: type[T], description: str, argv: Sequence[str]) -> tuple[T, str, dict[str, Any]]:
    """The benchmark's settings, the model, and the engine's settings that were given. Raises `InvalidConfig`."""
    table = offline_table(cls)
    epilog = "--seed also determines the prompts. The engine's flags are those of octavo serve."
    model_help = "as octavo serve takes it; default: the demo model"
    parser = make_parser(
        f"octavo bench {command}", "[MODEL] [flags]", description, epilog, table, model_help=model_help
    )
    foreign = Foreign(ROWS, table)
    values = read_words(parser, argv, table, foreign)
    if foreign.accepted:
        print(f"accepted, nothing to do: {', '.join(foreign.accepted)}", file=sys.stderr)
    model = str(values.pop("model", "smollm2"))
    config = part(cls, values)
    check(config)
    own = {field.name for field in fields(cls)}
    return config, model, {name: value for name, value in values.items() if name not in own}
