"""`octavo collect-env`: what a report of a fault should say of the installation and its machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from octavo.base.config import check, opt
from octavo.cli.flags import Flag, flags
from octavo.cli.parser import make_parser, read_words

_DESCRIPTION = "Tell what a report of a fault should say of the installation and its machine."
_EPILOG = "Loads no model and sends nothing. Secrets among the environment variables are hidden; look at the rest too."


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """The settings of `octavo collect-env`."""

    json: bool = opt(False, "Print JSON.")


def table() -> dict[str, Flag]:
    """The command's flags."""
    return flags({"settings": CollectConfig})


def run(argv: Sequence[str]) -> int:
    flag_table = table()
    parser = make_parser("octavo collect-env", "[flags]", _DESCRIPTION, _EPILOG, flag_table)
    config = CollectConfig(**read_words(parser, argv, flag_table))
    check(config)
    # Imported here: `--help` needs none of it.
    from octavo.cli.installation import as_text, installation

    report = installation()
    print(json.dumps(report, indent=2) if config.json else as_text(report))
    return 0
