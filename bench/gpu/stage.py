"""The process of one stage: `python -m gpu.stage CONTEXT`. Exit code 0 when it came to its end, whatever it found."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Final

from gpu.context import Context
from gpu.plan import BY_NAME

#: Stage -> module of this package and function in it.
RUNS: Final[dict[str, tuple[str, str]]] = {
    "limits": ("stage_limits", "run"),
    "check-ops": ("stage_check_ops", "run"),
    "check-models": ("stage_check_models", "run"),
    "kernels": ("stage_kernels", "run"),
    "small": ("stage_llm", "small"),
    "llama": ("stage_llm", "llama"),
    "fp8-kv": ("stage_llm", "fp8_kv"),
    "uniform": ("stage_llm", "uniform"),
    "qwen": ("stage_llm", "qwen"),
    "invariant": ("stage_llm", "invariant"),
    "fp8": ("stage_llm", "fp8"),
    "gemma": ("stage_llm", "gemma"),
    "idle": ("stage_idle", "run"),
    "start": ("stage_server", "start"),
    "server": ("stage_server", "server"),
    "rates": ("stage_server", "rates"),
    "generate": ("stage_baselines", "generate"),
    "compiled": ("stage_baselines", "compiled"),
}


def main(argv: list[str]) -> int:
    context = Context.read(Path(argv[0]))
    module, function = RUNS[context.stage]
    try:
        getattr(importlib.import_module(f"gpu.{module}"), function)(context)
    except Exception as error:  # noqa: BLE001  # becomes a row
        traceback.print_exc()
        sys.stderr.flush()
        is_check = BY_NAME[context.stage].is_check
        context.row("ended early", status="failed", note=f"{type(error).__name__}: {error}", is_check=is_check)
        return 1
    return 0


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)  # an engine in this process has threads that nothing joins
