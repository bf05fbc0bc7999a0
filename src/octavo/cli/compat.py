"""vLLM's flags that octavo knows by name and does not have.

Each is accepted with the values that ask for what octavo does anyway, so that a working command line keeps
working, and refused with a reason otherwise: nothing is read and then ignored.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from octavo.errors import InvalidConfig


@dataclasses.dataclass(frozen=True)
class Compat:
    """`accepts`: the values, in lower case, that change nothing. A switch takes "true" and "false"."""

    accepts: tuple[str, ...]
    reason: str
    switch: bool = False
    short: str | None = None

    def check(self, option: str, value: Any) -> None:
        """Raise `InvalidConfig` with the reason unless `value` asks for what octavo does anyway."""
        text = str(value).lower()
        if text in self.accepts:
            return
        shown = "--no-" + option[2:] if self.switch and text != "true" else option
        if self.switch or not self.accepts:
            raise InvalidConfig(f"{shown}: {self.reason}")
        raise InvalidConfig(f"{option} {value}: {self.reason}; only {' or '.join(self.accepts)} is accepted")


def _on(reason: str) -> Compat:
    return Compat(("true",), reason, switch=True)


def _off(reason: str) -> Compat:
    return Compat(("false",), reason, switch=True)


def _no(reason: str, short: str | None = None) -> Compat:
    return Compat((), reason, short=short)


def _one(reason: str, short: str | None = None) -> Compat:
    return Compat(("1",), reason, short=short)


_ONE_DEVICE = "octavo runs a model on one device, and uses all cores of a CPU"
_NO_LORA = "octavo has no adapters yet"
_NO_SPECULATION = "octavo has no speculative decoding yet"
_GRAPHS_BY_SIZE = "octavo captures graphs by batch size alone; see --cudagraph-capture-sizes"
_FROM_CONFIG = "octavo reads this from the model's own configuration"
_NO_TRACES = "octavo has no tracing yet"

COMPAT: dict[str, Compat] = {
    "--model": _no("the model is given without a flag: octavo serve MODEL"),
    # devices and processes
    "--tensor-parallel-size": _one(_ONE_DEVICE, "-tp"),
    "--pipeline-parallel-size": _one(_ONE_DEVICE, "-pp"),
    "--data-parallel-size": _one(_ONE_DEVICE, "-dp"),
    "--api-server-count": _one("octavo has one API process"),
    "--distributed-executor-backend": Compat(("uni",), _ONE_DEVICE),
    "--disable-custom-all-reduce": _on(_ONE_DEVICE),
    "--worker-use-ray": _off("octavo does not use Ray"),
    "--engine-use-ray": _off("octavo does not use Ray"),
    "--disable-frontend-multiprocessing": _off("the engine of octavo always has a process of its own"),
    "--max-seq-len-to-capture": _no(_GRAPHS_BY_SIZE),
    "--max-context-len-to-capture": _no(_GRAPHS_BY_SIZE),
    # memory
    "--preemption-mode": _no(
        "see --swap-space: with 0 preempted requests are computed again, with more their KV blocks are kept"
    ),
    "--cpu-offload-gb": Compat(("0", "0.0"), "octavo keeps all weights in the memory of the device that computes"),
    # scheduling
    "--num-scheduler-steps": _one("octavo plans every step"),
    "--scheduler-delay-factor": Compat(("0", "0.0"), "octavo delays no prompt"),
    "--num-lookahead-slots": Compat(("0",), _NO_SPECULATION),
    "--use-v2-block-manager": _on("octavo has one block manager"),
    "--disable-async-output-proc": _on("octavo has no asynchronous output processing"),
    "--async-scheduling": _on("octavo always plans steps ahead where the device computes beside the host"),
    # the model and its files
    "--quantization-param-path": _no("octavo has no scaled KV cache"),
    "--trust-remote-code": _off("octavo never runs code that comes with a model"),
    "--code-revision": _no("octavo never runs code that comes with a model"),
    "--tokenizer-mode": Compat(("auto",), "octavo reads tokenizer.json and the vocabularies of .gguf files"),
    "--skip-tokenizer-init": _off("the server of octavo needs the tokenizer"),
    "--tokenizer-pool-size": Compat(("0",), "octavo has no pool of tokenizers"),
    "--rope-scaling": _no(_FROM_CONFIG),
    "--rope-theta": _no(_FROM_CONFIG),
    "--hf-overrides": _no(_FROM_CONFIG),
    "--disable-sliding-window": _off(_FROM_CONFIG),
    "--model-loader-extra-config": _no("octavo has one loader, without settings"),
    "--max-parallel-loading-workers": _no("octavo has one loader, without settings"),
    "--ignore-patterns": _no("octavo downloads only the files it reads"),
    "--task": Compat(("auto", "generate"), "octavo generates text only"),
    "--runner": Compat(("auto", "generate"), "octavo generates text only"),
    "--limit-mm-per-prompt": _no("octavo reads text only"),
    # the HTTP server
    "--enable-prompt-tokens-details": _on("octavo always tells how much of a prompt was cached"),
    # what octavo does not have
    "--guided-decoding-backend": Compat(
        ("auto", "guidance", "outlines", "lm-format-enforcer", "xgrammar"), "octavo has one engine for grammars"
    ),
    "--enable-lora": _off(_NO_LORA),
    "--lora-modules": _no(_NO_LORA),
    "--max-loras": _no(_NO_LORA),
    "--max-lora-rank": _no(_NO_LORA),
    "--enable-prompt-adapter": _off(_NO_LORA),
    "--prompt-adapters": _no(_NO_LORA),
    "--speculative-model": _no(_NO_SPECULATION),
    "--speculative-config": _no(_NO_SPECULATION),
    "--num-speculative-tokens": _no(_NO_SPECULATION),
    "--otlp-traces-endpoint": _no(_NO_TRACES),
    "--collect-detailed-traces": _no(_NO_TRACES),
    "--enable-request-id-headers": _on("octavo always sends the X-Request-Id header"),
    "--middleware": _no("octavo loads no code into its server"),
}
