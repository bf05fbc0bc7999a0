"""`octavo bench latency`: the time of single batches of a model without a server."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.bench.config import LatencyConfig
from octavo.cli.bench_offline import offline_config, offline_table
from octavo.cli.flags import Flag

_DESCRIPTION = "Measure the time of single batches, and of one decoding step, without a server."


def table() -> dict[str, Flag]:
    """The command's flags."""
    return offline_table(LatencyConfig)


def run(argv: Sequence[str]) -> int:
    config, model, settings = offline_config("latency", LatencyConfig, _DESCRIPTION, argv)
    # Imported here: `--help` and a wrong flag must not pay for the rest.
    from octavo.bench import offline, report

    document = offline.latency(config, model, settings)
    print(offline.latency_text(document))
    report.write(config.json, document)
    return 0
