"""What the calls of each tool are held to: all of its schema where it is strict, else as much as can be.

A tool that is not strict never refuses a request. A keyword of it that cannot be enforced is left out, at its place; a
schema that its format cannot write, or that does not compile, is held by the names and types of its arguments alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Sequence
from typing import Any

from octavo.base.errors import InvalidRequest
from octavo.text.formats.base import Tool, ToolFormat
from octavo.text.formats.schema_types import bare_parameters
from octavo.text.grammars.grammar import ANY_OBJECT, GrammarLimits, check_size, check_wordiness
from octavo.text.grammars.json_schema import prepare, prepare_loosely
from octavo.text.grammars.tool_grammar import Builder, SpecialTokens

logger = logging.getLogger(__name__)


def prepared_tools(
    tools: Sequence[Tool],
    paths: Sequence[str],
    limits: GrammarLimits,
    *,
    loose: Collection[str] = (),
    bare: Collection[str] = (),
    row: ToolFormat | None = None,
    only_names: bool = False,
) -> list[Tool]:
    """`tools` with schemas that are enforced. Raises `InvalidRequest` naming what cannot be, and where.

    `paths[i]`: the place of the i-th tool in the request. `loose`: the names of tools of which that may be left out,
    so that `row` can write them. `bare`: those of them of which only names and types are held. `only_names`: the
    loose ones are held to nothing, where the format can write any arguments.
    """
    only_names = only_names and row is not None and _writes_any_arguments(row)
    prepared = []
    for i, (tool, path) in enumerate(zip(tools, paths, strict=True)):
        where = f"{path}.function.parameters"
        options: dict[str, Any] = {
            "max_depth": limits.max_depth,
            "disable_additional": limits.disable_additional_properties,
            "prefix": f"t{i}_",  # one grammar may hold all of them
        }
        if tool.name in bare:
            schema = _bare(tool)
        elif tool.name in loose and only_names:
            schema = ANY_OBJECT
        elif tool.name in loose:
            schema = _loosely(tool, where, limits, options, row)
        else:
            schema = _in_full(tool, where, limits, options)
        prepared.append(Tool(tool.name, schema))
    return _fitted(prepared, loose, limits)


def _in_full(tool: Tool, where: str, limits: GrammarLimits, options: dict[str, Any]) -> Any:
    check_wordiness(tool.parameters, where, limits)
    schema = prepare(tool.parameters, where, **options)
    # Arguments are an object, whatever the schema leaves open.
    if schema.get("type", "object") != "object":
        raise InvalidRequest("The schema of a function's parameters should be of the type `object`.", where)
    return schema | ANY_OBJECT


def _loosely(tool: Tool, where: str, limits: GrammarLimits, options: dict[str, Any], row: ToolFormat | None) -> Any:
    try:
        check_wordiness(tool.parameters, where, limits)
    except InvalidRequest:
        return ANY_OBJECT
    held = prepare_loosely(tool.parameters, where, **options)
    for left_out in held.dropped:
        logger.debug("tool %s: not enforced: %s", tool.name, left_out.message)
    schema = held.schema if isinstance(held.schema, dict) else {}
    types = schema.get("type", "object")
    if "object" not in ([types] if isinstance(types, str) else types):
        return ANY_OBJECT
    schema = schema | ANY_OBJECT
    if row is None or _is_written(row, Tool(tool.name, schema)):
        return schema
    bare = _bare(tool)
    return bare if _is_written(row, Tool(tool.name, bare)) else ANY_OBJECT


def _bare(tool: Tool) -> Any:
    return prepare_loosely(bare_parameters(tool.parameters), "tools").schema | ANY_OBJECT


def _is_written(row: ToolFormat, tool: Tool) -> bool:
    """The format has a spelling for such arguments."""
    build = Builder(SpecialTokens(), proof=True)
    try:
        for body in filter(None, (row.body, row.bare_body)):
            body.grammar(build, [tool], parallel=False)
    except InvalidRequest:
        return False
    return True


def _writes_any_arguments(row: ToolFormat) -> bool:
    """Arguments are one JSON object; formats that write them one by one know only those that a schema names."""
    build = Builder(SpecialTokens(), proof=True)
    return "%json" in "".join([row.body.grammar(build, [Tool("f")], parallel=False), *build.rules])


def _fitted(tools: list[Tool], loose: Collection[str], limits: GrammarLimits) -> list[Tool]:
    """Within the bound on grammars: the largest of the loose tools are left open until they fit."""
    sizes = [len(json.dumps(tool.parameters)) for tool in tools]
    fitted = list(tools)
    for i in sorted(range(len(tools)), key=lambda i: -sizes[i]):
        if sum(sizes) <= limits.max_bytes:
            break
        if tools[i].name in loose:
            fitted[i] = Tool(tools[i].name, ANY_OBJECT)
            sizes[i] = 0
    check_size(sum(sizes), "tools", limits)
    return fitted
