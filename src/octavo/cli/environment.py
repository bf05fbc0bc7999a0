"""The environment variables of octavo. One that begins with OCTAVO_ and means nothing stops the start."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.errors import InvalidConfig
from octavo.suggest import nearest

PREFIX = "OCTAVO_"

#: Name -> meaning. README.md and `octavo serve --help` list them.
VARIABLES = {
    "OCTAVO_API_KEY": "API key, when no flag or config file gives one (VLLM_API_KEY is read too)",
    "OCTAVO_CACHE_DIR": "where fetched models are kept; default ~/.cache/octavo",
    "OCTAVO_ISA": "CPU kernels to use, when --isa does not say",
    "OCTAVO_FAULTS": "which steps of the engine fail, for tests",
    "OCTAVO_TEST_MODELS": "where octavo's own tests look for their models",
    "OCTAVO_TEST_TIME_SCALE": "factor by which octavo's own tests stretch their time limits",
}
#: Variables of vLLM that stand for a field which neither the command line nor the config file gives.
VLLM_SETTINGS = {"VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "timeout_keep_alive"}


def check_environment(environ: Mapping[str, str]) -> None:
    """Raise `InvalidConfig` for a variable of ours that does not exist: a misspelt setting must not pass silently."""
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in VARIABLES:
            raise InvalidConfig(f"unknown environment variable {name}{nearest(name, VARIABLES)}")


def api_key(environ: Mapping[str, str]) -> str | None:
    """The API key that the environment gives, if any."""
    return environ.get("OCTAVO_API_KEY") or environ.get("VLLM_API_KEY") or None
