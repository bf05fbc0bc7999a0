"""From the fields of a request to the one thing that its output must be.

The fields come as they are in the body; what is wrong with them is an `InvalidRequest` that names the field. A request
has at most one constraint, of whatever kind; `null` and `response_format` of the type `text` are none. The schema is
checked here (`json_schema.prepare`), the rest when it is compiled (`checker`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from octavo.base.config import STRUCTURED_OUTPUTS, ServerConfig, json_object
from octavo.base.errors import InvalidRequest
from octavo.base.params import GrammarSpec, SamplingParams
from octavo.text.grammars.json_schema import prepare
from octavo.text.grammars.schema_regex import is_whitespace_pattern, problem_of

#: Fields of a request that `spec_of` reads.
FIELDS: Final = (
    "guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding_backend",
    "guided_whitespace_pattern", "response_format", "structured_outputs",
)  # fmt: skip
#: Names of engines that callers of other servers ask for. Here one engine keeps the promise of all.
BACKENDS: Final = ("auto", "guidance", "llguidance", "outlines", "lm-format-enforcer", "xgrammar")
#: Between two JSON tokens, where the request does not say: bounded, so that no model writes blanks for ever.
WHITESPACE: Final = r"[ \n\t\r]{1,64}"
#: No \u escapes: a key that hides a character of its name behind one would escape the schema of that key.
_ESCAPES: Final = 'nrbtf\\"'
#: How JSON is written unless the request says otherwise.
COMPILER_OPTIONS: Final[dict[str, Any]] = {"json_allowed_escapes": _ESCAPES, "whitespace_pattern": WHITESPACE}
#: How the arguments of forced calls are written: as models write them that were taught to call, without the blanks in
#: which others lose themselves, and with much that is dictated.
CALL_OPTIONS: Final[dict[str, Any]] = {
    "json_allowed_escapes": _ESCAPES, "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ",
}  # fmt: skip
#: The schema of an output that is some JSON object.
ANY_OBJECT: Final[dict[str, Any]] = {"type": "object"}
_MAX_CHOICES: Final = 10_000

_KINDS: Final = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_FLAGS: Final = ("disable_any_whitespace", "disable_additional_properties", "disable_fallback")


#: How much larger than its constraints a schema may be, with descriptions and all.
_MAX_WORDINESS: Final = 16


@dataclass(frozen=True)
class GrammarLimits:
    """Bounds on what a caller may send, and what holds for all of them.

    `special_tokens`: texts that a structural tag cannot contain. `disable_additional_properties`,
    `disable_any_whitespace`: as in `structured_outputs`, for requests that do not say.
    """

    max_bytes: int = 64 << 10  # of what constrains in a schema, as JSON; of a grammar; of all choices
    max_depth: int = 64  # of a schema
    special_tokens: frozenset[str] = frozenset()
    disable_additional_properties: bool = False
    disable_any_whitespace: bool = False


def limits_of(config: ServerConfig, special_tokens: Collection[str]) -> GrammarLimits:
    """What the server's settings say. `special_tokens`: the texts of the model's."""
    chosen = {name: getattr(config, name) for name in STRUCTURED_OUTPUTS}
    if config.structured_outputs_config is not None:
        more = json_object(config.structured_outputs_config, "--structured-outputs-config")
        chosen = {name: value or more.get(name, False) for name, value in chosen.items()}
    return GrammarLimits(config.max_grammar_bytes, config.max_schema_depth, frozenset(special_tokens), **chosen)


@dataclass(frozen=True)
class _Options:
    """How JSON is written."""

    whitespace: str | None = None  # a regex; None: the default
    no_whitespace: bool = False
    no_additional: bool = False

    def compiler(self) -> dict[str, Any]:
        if self.no_whitespace:
            return {"json_allowed_escapes": _ESCAPES, "whitespace_flexible": False}
        return (
            COMPILER_OPTIONS if self.whitespace is None else COMPILER_OPTIONS | {"whitespace_pattern": self.whitespace}
        )


def spec_of(fields: Mapping[str, Any], limits: GrammarLimits) -> GrammarSpec | None:
    """The constraint of a request, None if it has none."""
    given = {name: fields[name] for name in FIELDS if fields.get(name) is not None}
    if "response_format" in given and _format_type(given["response_format"]) == "text":
        del given["response_format"]
    _check_backend(given.pop("guided_decoding_backend", None))
    whitespace = _whitespace(given.pop("guided_whitespace_pattern", None), "guided_whitespace_pattern")
    options = _options(limits, whitespace)
    if len(given) > 1:
        names = " and ".join(f"`{name}`" for name in given)
        raise InvalidRequest(f"A request can have one constraint, but {names} were given.", list(given)[1])
    if not given:
        return None
    [(name, value)] = given.items()
    if name == "response_format":
        return _of_response_format(value, options, limits)
    if name == "structured_outputs":
        return _of_structured_outputs(value, options, limits)
    return _of_kind(name.removeprefix("guided_"), value, name, options, limits)


def spec_of_schema(schema: Any, param: str, limits: GrammarLimits) -> GrammarSpec:
    """The constraint that the whole output fits a JSON schema, which came in the field `param`."""
    return _of_kind("json", schema, param, _options(limits), limits)


def spec_of_params(params: SamplingParams, limits: GrammarLimits) -> GrammarSpec | None:
    """The constraint of a program's parameters, None if they have none: the same as of a request with those values."""
    names = [name for name in ("structured_outputs", "guided_decoding") if getattr(params, name) is not None]
    if not names:
        return None
    if len(names) > 1:
        raise InvalidRequest("`structured_outputs` and `guided_decoding` are one thing; give one of them.", names[1])
    param = names[0]
    try:
        # What is no JSON cannot come in a request either; tuples become lists, as there.
        fields = json.loads(json.dumps(msgspec.structs.asdict(getattr(params, param)), allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise InvalidRequest(f"`{param}` contains what JSON cannot say.", param) from None
    _check_backend(fields.pop("backend", None), f"{param}.backend")
    return _of_structured_outputs(fields, _options(limits), limits, param)


def _options(limits: GrammarLimits, whitespace: str | None = None) -> _Options:
    """The server's, where the request says no more than its own `whitespace`."""
    return _Options(
        whitespace=whitespace,
        no_whitespace=limits.disable_any_whitespace and whitespace is None,
        no_additional=limits.disable_additional_properties,
    )


# ------------------------------------------------------------------------------------------------ where it stands
def _format_type(value: Any) -> str:
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise InvalidRequest("`response_format` should be an object with a `type`.", "response_format")
    kind: str = value["type"]
    return kind


def _of_response_format(value: dict[str, Any], options: _Options, limits: GrammarLimits) -> GrammarSpec | None:
    kind = _format_type(value)
    if kind == "json_object":
        if value.get("schema") is not None:
            raise InvalidRequest(
                "A `schema` belongs to `response_format` of the type `json_schema`.", "response_format.schema"
            )
        return _of_kind("json_object", True, "response_format", options, limits)
    if kind == "structural_tag":
        return _of_kind("structural_tag", value, "response_format", options, limits)
    if kind != "json_schema":
        raise InvalidRequest(
            "`response_format.type` should be one of text, json_object, json_schema, structural_tag.",
            "response_format.type",
        )
    wrapper = value.get("json_schema")
    if not isinstance(wrapper, dict):
        raise InvalidRequest("`response_format.json_schema` should be an object.", "response_format.json_schema")
    schema = wrapper.get("schema")
    if schema is None:  # G8
        return None
    return _of_kind("json", schema, "response_format.json_schema.schema", options, limits)


def _of_structured_outputs(
    value: Any, options: _Options, limits: GrammarLimits, param: str = "structured_outputs"
) -> GrammarSpec:
    if not isinstance(value, dict):
        raise InvalidRequest(f"`{param}` should be an object.", param)
    for name in value:
        if name not in (*_KINDS, *_FLAGS, "whitespace_pattern"):
            raise InvalidRequest(f"`{param}` has no field `{name[:60]}`.", f"{param}.{name[:60]}")
    for name in _FLAGS:
        if not isinstance(value.get(name), bool | None):
            raise InvalidRequest(f"`{param}.{name}` should be true or false.", f"{param}.{name}")
    kinds = [name for name in _KINDS if value.get(name) is not None and value[name] is not False]
    if len(kinds) != 1:
        raise InvalidRequest(f"`{param}` should have exactly one of {', '.join(_KINDS)}.", param)
    own = _whitespace(value.get("whitespace_pattern"), f"{param}.whitespace_pattern")
    options = _Options(
        whitespace=options.whitespace if own is None else own,
        no_whitespace=_flag(value.get("disable_any_whitespace"), options.no_whitespace and own is None),
        no_additional=_flag(value.get("disable_additional_properties"), options.no_additional),
    )
    return _of_kind(kinds[0], value[kinds[0]], f"{param}.{kinds[0]}", options, limits)


def _flag(value: bool | None, default: bool) -> bool:
    return default if value is None else value


def _check_backend(value: Any, param: str = "guided_decoding_backend") -> None:
    name = value.split(":")[0] if isinstance(value, str) else value
    if name is not None and name not in BACKENDS:
        raise InvalidRequest(f"`{param}` should be one of {', '.join(BACKENDS)}.", param)


def _whitespace(value: Any, param: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > 200 or not is_whitespace_pattern(value):
        raise InvalidRequest(
            f"`{param}` should be a regular expression of space, tab, newline and carriage return only.", param
        )
    return value


# ----------------------------------------------------------------------------------------------------- what it is
def _of_kind(kind: str, value: Any, param: str, options: _Options, limits: GrammarLimits) -> GrammarSpec:
    if kind == "json_object":
        if value is not True:
            raise InvalidRequest(f"`{param}` should be true or false.", param)
        return _json(ANY_OBJECT, param, options, limits)
    if kind == "json":
        return _json(value, param, options, limits)
    if kind == "choice":
        return GrammarSpec(kind=kind, source=_choices(value, param, limits), param=param)
    if kind == "structural_tag":
        return _structural_tag(value, param, options, limits)
    if not isinstance(value, str) or not value.strip():
        raise InvalidRequest(f"`{param}` should be a text that is not empty.", param)
    check_size(len(value.encode("utf-8", "surrogatepass")), param, limits)
    _check_unicode(value, param)
    if kind == "regex":
        # Anchors at the ends say what holds anyway: the whole output matches.
        problem = problem_of(value)
        if problem is not None:
            raise InvalidRequest(f"`{param}` cannot be used: {problem}.", param)
    return GrammarSpec(kind=kind, source=value, param=param)


def _json(value: Any, param: str, options: _Options, limits: GrammarLimits) -> GrammarSpec:
    schema = _decoded(value, param)
    check_wordiness(schema, param, limits)
    prepared = prepare(schema, param, max_depth=limits.max_depth, disable_additional=options.no_additional)
    check_size(_json_size(prepared, param), param, limits)
    return GrammarSpec(kind="json", source=prepared, param=param, options=options.compiler())


def _decoded(value: Any, param: str) -> Any:
    """G1: a schema may come as JSON in a string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"`{param}` is not valid JSON.", param) from None


def _json_size(value: Any, param: str) -> int:
    try:
        return len(json.dumps(value))
    except RecursionError:
        raise InvalidRequest(f"`{param}` is nested too deeply.", param) from None


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _choices(value: Any, param: str, limits: GrammarLimits) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(choice, str) and choice for choice in value):
        raise InvalidRequest(f"`{param}` should be a list of texts, none of them empty.", param)
    if len(value) > _MAX_CHOICES:
        raise InvalidRequest(f"`{param}` has {len(value)} choices; at most {_MAX_CHOICES} are allowed.", param)
    check_size(sum(len(choice.encode("utf-8", "surrogatepass")) for choice in value), param, limits)
    for choice in value:
        _check_unicode(choice, param)
    return list(dict.fromkeys(value))


def _structural_tag(value: Any, param: str, options: _Options, limits: GrammarLimits) -> GrammarSpec:
    """G21: {"structures": [{"begin", "schema", "end"}], "triggers": [...]}, also as JSON in a string."""
    value = _decoded(value, param)
    structures = value.get("structures") if isinstance(value, dict) else None
    triggers = value.get("triggers") if isinstance(value, dict) else None
    if not isinstance(triggers, list) or not _are_texts(triggers) or not isinstance(structures, list) or not structures:
        raise InvalidRequest(f"`{param}` should have lists `structures` and `triggers` that are not empty.", param)
    check_wordiness(value, param, limits)
    tags = []
    for i, structure in enumerate(structures):
        path = f"{param}.structures.{i}"
        begin, end = (structure.get("begin"), structure.get("end", "")) if isinstance(structure, dict) else (None, None)
        if not isinstance(begin, str) or not isinstance(end, str):
            raise InvalidRequest(f"`{path}` should have the texts `begin` and `end`.", path)
        matching = [trigger for trigger in triggers if begin.startswith(trigger)]
        if len(matching) != 1:
            raise InvalidRequest(f"`{path}.begin` should begin with exactly one of the triggers.", path)
        for token in limits.special_tokens:
            if token in begin or token in end:
                raise InvalidRequest(f"`{path}` contains the special token {token!r}, which is no text.", path)
        _check_unicode(begin + end, path)
        schema = prepare(
            structure.get("schema", True),
            f"{path}.schema",
            max_depth=limits.max_depth,
            disable_additional=options.no_additional,
        )
        tags.append({"trigger": matching[0], "begin": begin, "schema": schema, "end": end})
    check_size(_json_size(tags, param), param, limits)
    return GrammarSpec(kind="structural_tag", source=tags, param=param, options=options.compiler())


def _are_texts(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(item, str) and item for item in value)


def check_size(size: int, param: str, limits: GrammarLimits) -> None:
    """Raise `InvalidRequest` for a constraint of too many bytes."""
    if size > limits.max_bytes:
        raise InvalidRequest(f"`{param}` has {size} bytes; at most {limits.max_bytes} are allowed.", param)


def check_wordiness(value: Any, param: str, limits: GrammarLimits) -> None:
    """Raise `InvalidRequest` for schemas that are too long to be read, whatever in them constrains."""
    size = _json_size(value, param)
    if size > limits.max_bytes * _MAX_WORDINESS:
        raise InvalidRequest(
            f"`{param}` has {size} bytes; at most {limits.max_bytes * _MAX_WORDINESS} are allowed.", param
        )


def _check_unicode(text: str, param: str) -> None:
    if any("\ud800" <= char <= "\udfff" for char in text) or "\x00" in text:
        raise InvalidRequest(f"`{param}` contains NUL or half of a surrogate pair.", param)
