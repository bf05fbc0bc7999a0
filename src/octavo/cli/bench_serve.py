"""`octavo bench serve`: load a running server with an OpenAI-compatible API."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from octavo.base.config import check
from octavo.bench.config import ServeBenchConfig
from octavo.cli.flags import Flag, flags
from octavo.cli.foreign import Foreign
from octavo.cli.parser import make_parser, read_words
from octavo.cli.server_address import api_url, client_api_key
from octavo.cli.vllm.row import ANY, NONE, only, other, switch

_ADDRESS = "the server is named by its address: --url http://HOST:PORT"

#: Flags of vLLM's benchmark that octavo does otherwise.
ROWS = (
    other("--backend", None, "openai", "What is spoken.", only("vllm", "openai"),
          "the benchmark uses the OpenAI API; --endpoint chooses the route"),
    other("--host", None, "127.0.0.1", "The server.", NONE, _ADDRESS),
    other("--port", None, "8000", "Its port.", NONE, _ADDRESS, kind="int"),
    other("--tokenizer", None, "none", "For counting tokens.", ANY, "tokens are counted by the server"),
    switch("--trust-remote-code", None, "off", "Run a tokenizer's code.", ANY,
           "tokens are counted by the server, and tokenizers are read as data"),
)  # fmt: skip
_EPILOG = """\
Random prompts are words of about one token each; the tokens reported are those that the server counts. Times are in
milliseconds: TTFT to the first token, TPOT per token after it, ITL between two pieces of text.
The exit code is 1 if a request failed."""


def table() -> dict[str, Flag]:
    """The command's flags."""
    return flags({"settings": ServeBenchConfig})


def run(argv: Sequence[str]) -> int:
    config = bench_config(argv)
    # Imported here: `--help` and a wrong flag must not pay for the rest.
    from octavo.bench import report, serve

    key = client_api_key(config.api_key, os.environ) or "EMPTY"
    document = serve.run(config, key)
    print(serve.text(document))
    file = config.json or (serve.file_name(document) if config.save_result else None)
    report.write(file, document)
    return 1 if any(level["failed"] for level in document["levels"]) else 0


def bench_config(argv: Sequence[str]) -> ServeBenchConfig:
    """Raises `InvalidConfig`."""
    description = "Load a running server, octavo or another, and time its replies."
    parser = make_parser("octavo bench serve", "[flags]", description, _EPILOG, table())
    config = ServeBenchConfig(**read_words(parser, argv, table(), Foreign(ROWS, table())))
    check(config)
    return dataclasses.replace(config, url=api_url(config.url))
