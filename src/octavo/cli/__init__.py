"""The command line. `main` picks the subcommand and turns errors into an exit code and one message.

One file a subcommand. The flags of `serve` come from the fields of `octavo.config` (flags.py); vLLM's spellings
of what octavo does otherwise, or not at all, are in compat.py. Nothing heavy is imported before the
configuration is known to be right.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from octavo import __version__
from octavo.config import nearest
from octavo.errors import InvalidConfig, OctavoError, StartupError

#: Subcommand -> (module with `run(argv) -> int`, what it does).
COMMANDS = {
    "serve": ("octavo.cli.serve", "Serve a model over the OpenAI API."),
    "chat": ("octavo.cli.chat", "Talk to a running server."),
    "complete": ("octavo.cli.complete", "Continue a text with a running server."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the value is the exit code (2: the arguments are wrong)."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        print(f"octavo {__version__}")
        return 0
    command = args[0]
    name = f"octavo {command}" if command in COMMANDS else "octavo"
    try:
        if command not in COMMANDS:
            what = "flag" if command.startswith("-") else "command"
            raise InvalidConfig(f"unknown {what} {command}{nearest(command, [*COMMANDS, '--version', '--help'])}")
        module = importlib.import_module(COMMANDS[command][0])
        return int(module.run(args[1:]))
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


def _usage() -> str:
    lines = [
        f"octavo {__version__}: a language-model serving engine with an OpenAI-compatible server",
        "",
        "usage: octavo COMMAND [arguments]",
        "",
        *(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()),
        "",
        "octavo COMMAND --help describes a command. octavo --version prints the version.",
        "`octavo serve` alone serves a small demo model on http://localhost:8000.",
    ]
    return "\n".join(lines)
