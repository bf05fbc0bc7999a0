"""`octavo bench kernels`: rates of single operations, beside what the machine can do at best."""

from __future__ import annotations

from collections.abc import Sequence

from octavo.base.config import check
from octavo.bench.config import KernelsConfig
from octavo.cli.flags import Flag, flags
from octavo.cli.parser import make_parser, read_words

_EPILOG = """\
Shares are of the memory's bandwidth and of the arithmetic peak (int8 for integer matrices, float32 otherwise),
measured just before. Activations stay in the processor's caches: their rates may pass the memory's."""


def table() -> dict[str, Flag]:
    """The command's flags."""
    return flags({"settings": KernelsConfig})


def run(argv: Sequence[str]) -> int:
    config = bench_config(argv)
    # Imported here: `--help` and a wrong flag must not pay for torch.
    from octavo.bench import kernels, report

    document = kernels.kernels(config)
    print(kernels.text(document))
    report.write(config.json, document)
    return 0


def bench_config(argv: Sequence[str]) -> KernelsConfig:
    """Raises `InvalidConfig`."""
    description = "Measure each operation's GB/s and GOP/s, as shares of the machine's limits at this moment."
    parser = make_parser("octavo bench kernels", "[flags]", description, _EPILOG, table())
    config = KernelsConfig(**read_words(parser, argv, table()))
    check(config)
    return config
