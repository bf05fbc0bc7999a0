"""The command line. `main` picks the subcommand and turns errors into an exit code and one message.

One file a subcommand. The flags of `serve` come from the fields of `octavo.base.config` (flags.py); those of
vLLM that octavo has not are rows of a table (vllm/). Nothing heavy is imported before the
configuration is known to be right.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from octavo import __version__
from octavo.base.errors import InvalidConfig, OctavoError, StartupError
from octavo.base.suggest import nearest

#: Subcommand, of one word or two -> (module with `run(argv) -> int`, what it does).
COMMANDS = {
    "serve": ("octavo.cli.serve", "Serve a model over the OpenAI API."),
    "chat": ("octavo.cli.chat", "Talk to a running server."),
    "complete": ("octavo.cli.complete", "Continue a text with a running server."),
    "run-batch": ("octavo.cli.run_batch", "Answer the requests of a file, without a server."),
    "export-tokenizer": ("octavo.cli.export_tokenizer", "Write a model's tokenizer for Hugging Face's AutoTokenizer."),
    "bench serve": ("octavo.cli.bench_serve", "Load a running server, octavo or another, and time its replies."),
    "bench throughput": ("octavo.cli.bench_throughput", "Measure the throughput of a model without a server."),
    "bench latency": ("octavo.cli.bench_latency", "Measure the latency of single batches without a server."),
    "bench kernels": ("octavo.cli.bench_kernels", "Measure single operations against the machine's limits."),
    "collect-env": ("octavo.cli.collect_env", "Tell what a report of a fault should say of this machine."),
    "completion": ("octavo.cli.completion", "Print a script for completion in bash, zsh or fish."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the value is the exit code (2: the arguments are wrong)."""
    args = list(sys.argv[1:] if argv is None else argv)
    group = "bench" if args[:1] == ["bench"] else ""
    words = args[1:] if group else args
    if not words or words[0] in ("-h", "--help"):
        print(_usage(group))
        return 0 if words else 2
    if not group and words[0] in ("-V", "-v", "--version"):
        print(f"octavo {__version__}")
        return 0
    command = f"{group} {words[0]}".strip()
    name = f"octavo {command if command in COMMANDS else group}".strip()
    try:
        if command not in COMMANDS:
            raise InvalidConfig(_unknown(words[0], group))
        module = importlib.import_module(COMMANDS[command][0])
        return int(module.run(words[1:]))
    except StartupError as e:
        print(f"{name}: error: {e.message}", file=sys.stderr)
        return e.exit_code
    except OctavoError as e:
        print(f"{name}: error: {e.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output is gone (`| head`); Python would complain again while it shuts down.
        sys.stdout = None
        return 141


def _unknown(word: str, group: str) -> str:
    known = [name.removeprefix(f"{group} ") for name in COMMANDS if name.startswith(f"{group} ")] if group else [
        *dict.fromkeys(name.split()[0] for name in COMMANDS), "--version"
    ]  # fmt: skip
    return f"unknown {'flag' if word.startswith('-') else 'command'} {word}{nearest(word, [*known, '--help'])}"


def _usage(group: str) -> str:
    """The commands; those of a group if one is named."""
    lines = [
        f"octavo {__version__}: a language-model serving engine with an OpenAI-compatible server",
        "",
        f"usage: octavo {group} COMMAND [arguments]" if group else "usage: octavo COMMAND [arguments]",
        "",
        *(f"  {name:<18}{text}" for name, (_, text) in COMMANDS.items() if name.startswith(group)),
        "",
        "octavo COMMAND --help describes a command. octavo --version prints the version.",
        *([] if group else ["`octavo serve` alone serves a small demo model on http://localhost:8000."]),
    ]
    return "\n".join(lines)
