"""`octavo run-batch -i FILE -o FILE --model M`: answer the requests of a file, without a server."""

from __future__ import annotations

import os
from collections.abc import Sequence

from octavo.base.config import AccessConfig, HTTPConfig, check
from octavo.cli.environment import read_environment
from octavo.cli.flags import GROUPS, Flag, build, flags, part
from octavo.cli.foreign import Foreign
from octavo.cli.notes import notes
from octavo.cli.parser import make_parser, read_words
from octavo.cli.vllm import ROWS
from octavo.offline.batch.config import BatchConfig, check_batch

_DESCRIPTION = "Answer the requests of a file in OpenAI's batch format, without a server."
_EPILOG = """\
Each line of the input is {"custom_id": ..., "method": "POST", "url": "/v1/chat/completions", "body": {...}}. The same
command goes on where a run was stopped or killed. Exit codes: 0, every line has a reply; 3, some of the results are
errors; 1, the batch could not be ended. The other flags are those of octavo serve."""


def table() -> dict[str, Flag]:
    """The command's flags: its own, and those of the server that are not about HTTP."""
    groups = {title: cls for title, cls in GROUPS.items() if cls not in (HTTPConfig, AccessConfig)}
    return flags({"batch": BatchConfig, **groups})


def run(argv: Sequence[str]) -> int:
    flag_table = table()
    model_help = "as octavo serve takes it; default: the demo model"
    parser = make_parser(
        "octavo run-batch", "-i FILE -o FILE [MODEL] [flags]", _DESCRIPTION, _EPILOG, flag_table, model_help=model_help
    )
    foreign = Foreign(ROWS, flag_table)
    values = read_words(parser, argv, flag_table, foreign)
    batch = part(BatchConfig, values)
    check(batch)
    check_batch(batch)
    environment = read_environment(os.environ, flag_table, values)
    config = build(environment.values | values)
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)  # as octavo serve does
    # Imported here: `--help` and a wrong flag must not pay for the rest.
    from octavo.offline.batch.command import run_batch

    told = notes([*foreign.accepted, *environment.accepted], environment.warnings, config.server)
    return run_batch(batch, config, told)
