"""What shape of `content` a chat template expects: a string, or OpenAI's list of parts.

Read from the template's syntax tree: a template that loops over the content of a message takes parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

from jinja2 import nodes

ContentFormat = Literal["string", "openai"]

#: Tests by which a template tells a string from a list.
_TYPE_TESTS: Final = frozenset({"string", "iterable", "sequence", "mapping"})


def detect_format(tree: nodes.Template) -> ContentFormat:
    contents = _content_names(tree, _message_names(tree))
    loops = tree.find_all(nodes.For)
    return "openai" if any(_is_content(loop.iter, contents) for loop in loops) else "string"


def accepts_strings(tree: nodes.Template) -> bool:
    """Whether a template that takes parts takes strings as well: it tests the type of something."""
    return any(test.name in _TYPE_TESTS for test in tree.find_all(nodes.Test))


def _message_names(tree: nodes.Template) -> set[str]:
    """Variables that are `messages`, a part of it, or one message. Found until nothing new is: names chain."""
    names = {"messages", "message"}
    while True:
        found = {name for name, value in _bindings(tree) if _root(value) in names}
        if found <= names:
            return names
        names |= found


def _bindings(tree: nodes.Template) -> Iterator[tuple[str, nodes.Node]]:
    """(variable, what it is set to or taken from) of every assignment and loop."""
    for loop in tree.find_all(nodes.For):
        if isinstance(loop.target, nodes.Name):
            yield loop.target.name, loop.iter
    for assignment in tree.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name):
            yield assignment.target.name, assignment.node


def _root(expression: nodes.Node) -> str | None:
    """The variable that items and slices of an expression are taken from; None if a named field is."""
    while not isinstance(expression, nodes.Name):
        is_field = isinstance(expression, nodes.Getitem) and _is_text(expression.arg)
        inner = expression.node if isinstance(expression, nodes.Getitem | nodes.Filter) and not is_field else None
        if inner is None:
            return None
        expression = inner
    return expression.name


def _is_text(expression: nodes.Node) -> bool:
    return isinstance(expression, nodes.Const) and isinstance(expression.value, str)


def _content_names(tree: nodes.Template, messages: set[str]) -> tuple[set[str], set[str]]:
    """(variables that are messages, variables that are the content of one)."""
    names: set[str] = set()
    while True:
        found = {name for name, value in _bindings(tree) if _is_content(value, (messages, names))}
        if found <= names:
            return messages, names
        names |= found


def _is_content(expression: nodes.Node, names: tuple[set[str], set[str]]) -> bool:
    messages, contents = names
    if isinstance(expression, nodes.Filter) and expression.node is not None:
        return _is_content(expression.node, names)
    if isinstance(expression, nodes.Name):
        return expression.name in contents
    if isinstance(expression, nodes.Getattr):
        return expression.attr == "content" and _root(expression.node) in messages
    if isinstance(expression, nodes.Getitem) and _is_text(expression.arg):
        return getattr(expression.arg, "value", None) == "content" and _root(expression.node) in messages
    return False
