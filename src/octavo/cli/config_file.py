"""The config file: YAML, one flat map from long flag names to values.

model: smollm2
port: 8080
enable-prefix-caching: false
served-model-name: [small, smol]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo.base.errors import InvalidConfig
from octavo.base.suggest import nearest
from octavo.cli.flags import Flag
from octavo.cli.foreign import Foreign


def read_config_file(
    name: str, table: dict[str, Flag], foreign: Foreign, *, takes_model: bool = False
) -> dict[str, Any]:
    """The file's values by field name. Raises `InvalidConfig`, which names the file.

    `takes_model`: the command takes a model, and the file the key `model`.
    """
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
    file = _File(table, foreign, takes_model)
    for key, value in content.items():
        try:
            file.read(key, value)
        except InvalidConfig as e:
            raise InvalidConfig(f"{name}: {e.message}") from e
    return file.values


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


class _File:
    """Gathers what the keys of a file say in `values`, by field name."""

    def __init__(self, table: dict[str, Flag], foreign: Foreign, takes_model: bool) -> None:
        self.values: dict[str, Any] = {}
        self._foreign = foreign
        self._takes_model = takes_model
        # Key -> its flag, and whether the key means the flag's opposite.
        self._keys = {option[2:]: (flag, False) for flag in table.values() for option in flag.options}
        self._keys |= {option[2:]: (flag, True) for flag in table.values() for option in flag.off_options}

    def read(self, key: str, value: Any) -> None:
        name = key.replace("_", "-")
        if name == "model" and self._takes_model:
            if not isinstance(value, str):
                raise InvalidConfig("model must be text")
            self.values["model"] = value
        elif "--" + name in self._foreign.rows:
            self._foreign.check_file("--" + name, value)
        elif name.startswith("no-") and self._foreign.is_switch("--" + name[3:]):
            self._foreign.check_file("--" + name[3:], not value if isinstance(value, bool) else value)
        elif name not in self._keys:
            known = [*self._keys, *(["model"] if self._takes_model else [])]
            raise InvalidConfig(f"unknown key {key}{nearest(name, known)}")
        else:
            self._read_own(key, *self._keys[name], value)

    def _read_own(self, key: str, flag: Flag, opposite: bool, value: Any) -> None:
        if flag.field in self.values:
            raise InvalidConfig(f"the key {key} sets the same flag as an earlier key")
        if isinstance(value, (str, int)) and not isinstance(value, bool):
            value = self._foreign.rename(flag.option, str(value)) if flag.option in self._foreign.own else value
        result = flag.from_yaml(value)
        self.values[flag.field] = (not result) if opposite else result
