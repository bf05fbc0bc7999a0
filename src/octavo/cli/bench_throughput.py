"""`octavo bench throughput`: tokens a second of a model without a server."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.bench.config import ThroughputConfig
from octavo.cli.bench_offline import offline_config, offline_table
from octavo.cli.flags import Flag

_DESCRIPTION = "Measure requests and tokens per second without a server, all requests sent at once."


def table() -> dict[str, Flag]:
    """The command's flags."""
    return offline_table(ThroughputConfig)


def run(argv: Sequence[str]) -> int:
    config, model, settings = offline_config("throughput", ThroughputConfig, _DESCRIPTION, argv)
    # Imported here: `--help` and a wrong flag must not pay for the rest.
    from octavo.bench import offline, report

    document = offline.throughput(config, model, settings)
    print(offline.throughput_text(document))
    report.write(config.json, document)
    return 0
