"""The jinja environment that chat templates run in, and its bounds. Templates come with models: untrusted code.

The settings and globals are those that model authors test with (the transformers library's): immutable sandbox,
trim_blocks, lstrip_blocks, loop controls, a `generation` tag without effect, `tojson` without HTML escapes,
`raise_exception`, `strftime_now`; and `json_or_text`, for templates of octavo's own.

Bounds of one rendering: a deadline, and a length of the output. The deadline is checked at every piece of output
and, by a call put into the syntax tree, at every turn of a loop and every call of a macro. Lengths are checked
where text can double: `~`, `+`, `*`, `**`, `%`, and integer arguments of methods and width filters.
Not bounded: a single filter over a value that the template built within these bounds, and the memory of many
values each below the limit. What may be hostile therefore runs in a process that is killed (`worker`).
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from octavo.text.templates.call_arguments import WrittenArguments

#: Characters of a template's source.
MAX_SOURCE: Final = 1 << 20
#: Length of a string or list that an operator may make, and the largest integer argument of a str method.
MAX_VALUE: Final = 1 << 24
MAX_WIDTH: Final = 100_000
#: Bits of an integer that an operator may make.
MAX_BITS: Final = 1 << 12
#: Name under which a rendering's clock is called from the syntax tree.
TICK: Final = "_octavo_tick"
_CONCAT: Final = "_octavo_concat"
_LONG_NUMBER: Final = re.compile(r"\d{6}")


class LimitExceeded(Exception):
    """A template ran past one of its bounds. No TemplateError: the template must not be taken for merely wrong."""


class Clock:
    """The deadline of one rendering, called as `tick()`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def __call__(self) -> None:
        if time.monotonic() > self._end:
            raise LimitExceeded(f"it needs more than {self.seconds:g} s")


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks what a model said, for training; its body is all it means."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call block, as in the reference: what the body sets is not seen outside.
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """jinja's, without names that begin with an underscore: they reach into the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that namespace(self=...) works
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the name {name!r}")


class _Bounds(NodeTransformer):
    """Puts the clock's call into every loop and macro, and a measured function in place of `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, _tick(node.lineno))
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, _tick(node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        call = nodes.Call(nodes.Name(_CONCAT, "load"), node.nodes, [], None, None)
        return call.set_lineno(node.lineno)


def _tick(line: int) -> nodes.Node:
    call = nodes.Call(nodes.Name(TICK, "load"), [], [], None, None)
    return nodes.ExprStmt(call).set_lineno(line)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment; one for the process is enough, it keeps no state of a rendering."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        self.filters["tojson"] = _tojson
        self.filters["json_or_text"] = _json_or_text
        for name in ("center", "indent", "wordwrap", "batch", "slice"):
            self.filters[name] = _narrow(self.filters[name])
        del self.globals["lipsum"]  # makes text at will
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _make_dict,
            "namespace": _Namespace,
            _CONCAT: _concat,
        }

    def parse_bounded(self, source: str) -> nodes.Template:
        """The syntax tree with its checks. Raises TemplateError, or RecursionError for a tree too deep."""
        tree = self.parse(source)
        _Bounds().visit(tree)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is str and type(right) is str:  # most of what templates do
            if len(left) + len(right) > MAX_VALUE:
                _check_size(len(left) + len(right))
            return left + right
        if operator == "*":
            _check_product(left, right)
        elif operator == "+":
            left, right = _as_texts(left, right)
            _check_size(_size(left) + _size(right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, str) and (_LONG_NUMBER.search(left) or "*" in left):
            raise LimitExceeded("a format asks for too wide a field")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if type(__obj) is Clock:
            return __obj()
        # jinja wraps str.format, so that the owner is behind __wrapped__
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(owner, str):
            _check_widths([*args, *kwargs.values()])
            name = getattr(__obj, "__name__", "")
            if name in ("format", "format_map") and _LONG_NUMBER.search(owner):
                raise LimitExceeded("a format asks for too wide a field")
            if name in ("replace", "join") and args:
                _check_size(_method_size(name, owner, args))
        return super().call(__context, __obj, *args, **kwargs)


def _as_texts(left: Any, right: Any) -> tuple[Any, Any]:
    """An object that is added to a text is its JSON: templates that take arguments of calls for texts do so."""
    if isinstance(left, str) and isinstance(right, dict):
        return left, _tojson(right)
    if isinstance(left, dict) and isinstance(right, str):
        return _tojson(left), right
    return left, right


def _method_size(name: str, owner: str, args: tuple[Any, ...]) -> int:
    """An upper bound of the length that `owner.replace(*args)` or `owner.join(*args)` makes."""
    if name == "replace":
        return owner.count(args[0]) * _size(args[1]) if len(args) > 1 and isinstance(args[0], str) else 0
    parts = args[0] if isinstance(args[0], list | tuple) else []
    return len(owner) * len(parts) + sum(map(_size, parts))


def _check_product(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    elif isinstance(left, int):
        _check_size(_size(right) * left)
    elif isinstance(right, int):
        _check_size(_size(left) * right)


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise LimitExceeded(f"it makes a number of more than {MAX_BITS} bits")


def _size(value: object) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _check_size(size: int) -> None:
    if size > MAX_VALUE:
        raise LimitExceeded(f"it makes a value longer than {MAX_VALUE}")


def _check_widths(values: list[Any]) -> None:
    for value in values:
        if isinstance(value, int) and value > MAX_WIDTH:
            raise LimitExceeded(f"it asks for a width of more than {MAX_WIDTH}")


def _narrow(filter_function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose integer arguments are widths or counts, bounded."""

    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_widths([*args[1:], *kwargs.values()])
        return filter_function(*args, **kwargs)

    # jinja keeps on the function itself whether it wants the environment first
    return functools.update_wrapper(bounded, filter_function)


def _concat(*parts: Any) -> str:
    texts = [str(part) for part in parts]
    _check_size(sum(map(len, texts)))
    return "".join(texts)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON for a model's eyes: no HTML escapes, and any script stays readable."""
    _check_widths([indent])
    if isinstance(value, WrittenArguments):
        return str(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _json_or_text(text: str) -> str:
    """JSON: of the value that the text is as JSON, or of the text. For the templates of octavo's own."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    return _tojson(value)


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message))


def _strftime_now(format_: str) -> str:
    return datetime.now().strftime(format_)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)
