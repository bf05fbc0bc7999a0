"""The config file: YAML, one flat map from long flag names to values.

model: smollm2
port: 8080
enable-prefix-caching: false
served-model-name: [small, smol]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.cli.compat import Compat
from octavo.cli.flags import Flag
from octavo.errors import InvalidConfig
from octavo.suggest import nearest


def read_config_file(name: str, table: dict[str, Flag], compat: Mapping[str, Compat]) -> dict[str, Any]:
    """The file's values by field name. Raises `InvalidConfig`, which names the file."""
    if not name.endswith((".yaml", ".yml")):
        raise InvalidConfig(f"--config must name a .yaml or .yml file; got {name!r}")
    try:
        content = _parse(Path(name).read_text(encoding="utf-8"))
    except OSError as e:
        raise InvalidConfig(f"cannot read the config file {name}: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise InvalidConfig(f"the config file {name} is not UTF-8 text: {e}") from e
    except InvalidConfig as e:
        raise InvalidConfig(f"the config file {name}: {e.message}") from e
    values: dict[str, Any] = {}
    keys = _keys(table)
    for key, value in content.items():
        try:
            _read(key, value, keys, compat, values)
        except InvalidConfig as e:
            raise InvalidConfig(f"{name}: {e.message}") from e
    return values


def _parse(text: str) -> dict[Any, Any]:
    # Imported here: most starts have no config file.
    import yaml

    class Loader(yaml.SafeLoader):
        """The library's loader, but a key that is given twice is an error; the library silently drops the first."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        pairs = [(loader.construct_object(k, deep=True), loader.construct_object(v, deep=True)) for k, v in node.value]
        result: dict[Any, Any] = {}
        for key, value in pairs:
            if not isinstance(key, str):
                raise InvalidConfig(f"{key!r} is not the name of a flag")
            if key in result:
                raise InvalidConfig(f"the key {key} is given twice")
            result[key] = value
        return result

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        content = yaml.load(text, Loader)
    except yaml.YAMLError as e:
        raise InvalidConfig("is not valid YAML: " + " ".join(str(e).split())) from e
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidConfig("must be a map from flag names to values")
    return content


def _keys(table: dict[str, Flag]) -> dict[str, tuple[Flag, bool]]:
    """Key -> its flag, and whether the key means the flag's opposite."""
    keys = {option[2:]: (flag, False) for flag in table.values() for option in flag.options}
    return keys | {option[2:]: (flag, True) for flag in table.values() for option in flag.off_options}


def _read(
    key: str,
    value: Any,
    keys: dict[str, tuple[Flag, bool]],
    compat: Mapping[str, Compat],
    values: dict[str, Any],
) -> None:
    """Add what one key says to `values`. With vLLM's flags goes `model`, which is no flag on the command line."""
    name = key.replace("_", "-")
    if name == "model" and "--model" in compat:
        if not isinstance(value, str):
            raise InvalidConfig("model must be text")
        values["model"] = value
        return
    if "--" + name in compat:
        compat["--" + name].check("--" + name, value)
        return
    if name not in keys:
        known = [*keys, *(["model"] if "--model" in compat else [])]
        raise InvalidConfig(f"unknown key {key}{nearest(name, known)}")
    flag, opposite = keys[name]
    if flag.field in values:
        raise InvalidConfig(f"the key {key} sets the same flag as an earlier key")
    result = flag.from_yaml(value)
    values[flag.field] = (not result) if opposite else result
