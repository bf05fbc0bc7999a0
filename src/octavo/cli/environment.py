"""The environment variables of octavo, and those of vLLM.

A variable that begins with OCTAVO_ and means nothing stops the start. One of vLLM's stands for a setting, or is told at
start: as one that needs nothing done, or in a warning. What Kubernetes makes of a service's name is neither.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo.base.errors import InvalidConfig
from octavo.base.suggest import nearest
from octavo.cli.flags import Flag
from octavo.cli.vllm import VARIABLES as VLLM_VARIABLES
from octavo.cli.vllm import Variable

PREFIX = "OCTAVO_"

#: Name -> meaning. README.md and `octavo serve --help` list them.
VARIABLES = {
    "OCTAVO_API_KEY": "API key, when no flag or config file gives one (VLLM_API_KEY is read too)",
    "OCTAVO_ADMIN_API_KEY": "as --admin-api-key",
    "OCTAVO_CACHE_DIR": "where fetched models are kept; default ~/.cache/octavo",
    "OCTAVO_ISA": "CPU kernels to use, when --isa does not say",
    "OCTAVO_GPU_WITHOUT": "parts of the GPU's kernels to do without: docs/gpu.md",
    "OCTAVO_FAULTS": "which steps of the engine fail, for tests",
    "OCTAVO_TEST_MODELS": "where octavo's own tests look for their models",
    "OCTAVO_TEST_TIME_SCALE": "factor by which octavo's own tests stretch their time limits",
}

_OWN_SETTINGS = {"OCTAVO_API_KEY": "api_key", "OCTAVO_ADMIN_API_KEY": "admin_api_key"}

#: What Kubernetes sets in every container for a service called octavo or vllm, whatever the container reads.
_SERVICE_LINK = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)")


@dataclass
class Environment:
    """What the environment gives: fields of octavo, variables that need nothing done, and those to warn of."""

    values: dict[str, Any] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_environment(environ: Mapping[str, str]) -> None:
    """Raise `InvalidConfig` for a variable of ours that does not exist: a misspelt setting must not pass silently."""
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in VARIABLES and not _is_service_link(name, environ[name]):
            raise InvalidConfig(f"unknown environment variable {name}{nearest(name, VARIABLES)}")


def read_environment(environ: Mapping[str, str], table: Mapping[str, Flag], given: Mapping[str, Any]) -> Environment:
    """The settings that the environment gives and `given`, by field name, does not. Raises `InvalidConfig`."""
    check_environment(environ)
    found = Environment()
    for name, name_of_field in _OWN_SETTINGS.items():
        if environ.get(name) and name_of_field in table and name_of_field not in given:
            found.values[name_of_field] = _value(table[name_of_field], name, environ[name])
    for variable in VLLM_VARIABLES:
        text = environ.get(variable.name)
        if text and variable.field is None:
            _note(variable, text, found)
        elif text and variable.field in table and variable.field not in {*found.values, *given}:
            _set(variable, text, table, given, found)
    known = {variable.name for variable in VLLM_VARIABLES}
    for name in sorted(environ):
        if name.startswith("VLLM_") and name not in known and not _is_service_link(name, environ[name]):
            found.warnings.append(f"octavo does not read {name}{nearest(name, known)}")
    return found


def api_key(environ: Mapping[str, str]) -> str | None:
    """The API key that the environment gives, if any."""
    return environ.get("OCTAVO_API_KEY") or environ.get("VLLM_API_KEY") or None


def _set(
    variable: Variable, text: str, table: Mapping[str, Flag], given: Mapping[str, Any], found: Environment
) -> None:
    """Take the value of a variable that stands for a setting."""
    assert variable.field is not None
    converted = variable.convert(text)
    if variable.device is not None and given.get("device", "auto") not in ("auto", variable.device):
        found.accepted.append(f"{variable.name} {text}")
    elif converted is None:
        found.accepted.append(f"{variable.name} {text} (as the default)")
    else:
        found.values[variable.field] = _value(table[variable.field], variable.name, converted)


def _value(flag: Flag, name: str, text: str) -> Any:
    """`text` as the value of a setting that the variable `name` gives."""
    try:
        value = flag.from_text(text)
    except InvalidConfig as exc:
        raise InvalidConfig(f"{name}: {exc.message}") from None
    if flag.choices and value not in flag.choices:
        raise InvalidConfig(f"{name} must be one of {', '.join(map(str, flag.choices))}; got {text!r}")
    return [value] if flag.is_list else value


def _note(variable: Variable, text: str, found: Environment) -> None:
    if variable.accepts.hold(text):
        found.accepted.append(f"{variable.name} {text}")
    else:
        found.warnings.append(f"{variable.name} has no effect: {variable.reason}")


def _is_service_link(name: str, value: str) -> bool:
    return _SERVICE_LINK.fullmatch(name) is not None or (name.endswith("_PORT") and "://" in value)
