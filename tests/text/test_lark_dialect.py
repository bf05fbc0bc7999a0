"""Grammars as they are written for the Lark library, held in the dialect of the grammar engine."""

from __future__ import annotations

import pytest

from support.grammar_walk import Refused, accepts, grammar_for

CALC = """
// A calculator, as Lark's own tutorial has it.
?start: sum
      | NAME "=" sum    -> assign_var

?sum: product
    | sum "+" product   -> add
    | sum "-" product   -> sub

?product: atom
    | product "*" atom  -> mul

?atom: NUMBER           -> number
     | "-" atom         -> neg
     | NAME             -> var
     | "(" sum ")"

%import common.CNAME -> NAME
%import common.NUMBER
%import common.WS_INLINE
%ignore WS_INLINE
"""

JSON = r"""
?start: value

?value: object
      | array
      | string
      | SIGNED_NUMBER      -> number
      | "true"             -> true
      | "null"             -> null

array  : "[" [_sep{value, ","}] "]"
object : "{" [_sep{pair, ","}] "}"
pair   : string ":" value
string : ESCAPED_STRING

_sep{x, sep}: x (sep x)*

%import common.ESCAPED_STRING
%import common.SIGNED_NUMBER
%import common.WS
%ignore WS
"""

PRIORITIES = """
start: word* if_
!if_.2: "?" WORD
word : WORD " "
WORD.-1: /[a-z]+/
"""

HELD = [
    (CALC, ["1+2", "x = 3 * (4 - y)", "-5"], ["1+", "x == 2", ""]),
    (JSON, ["[1, 2]", '{"a": [true, null], "b": "x"}', "[]"], ["[1 2]", '{"a"}', "tru"]),
    (PRIORITIES, ["?x", "a b ?z"], ["?", "a"]),
    ("start:\n  | \"a\"\n  | \"b\" // why\n", ["a", "b"], ["c"]),
    ('start: two{"x"} two{Y}\ntwo{t}: t t\nY: "y" | "z"', ["xxyz"], ["xyyy", "xx"]),
    ('start: outer{"a" | "b"}\nouter{t}: inner{t, ";"}\ninner{a, e}: a e a', ["a;b"], ["a;", "ab"]),
    ('start: A\nA: "a"\n%override A: "b"', ["b"], ["a"]),
    ('start: a\na: "a"\n%extend a: "b"', ["a", "b"], ["c"]),
    ('start: "//" /#[a-z\\/]+/ ":"', ["//#a/b:"], ["//"]),
    ('start: "a"~2..3', ["aa", "aaa"], ["a"]),
]  # fmt: skip

REFUSED = [
    ("%declare X\nstart: X", "%declare"),
    ("%import .other (x)\nstart: x", "%import of another file"),
    ('start: a\n%override a: "b"', "%override of 'a'"),
    ('start: t{"a", "b"}\nt{x}: x', "takes 1 arguments, not 2"),
    ('start: t{"a"}\nt{x}: t{x "a"}', "templates|deeply"),
    ("just some words", "neither a rule nor a statement"),
    ('start: "a" x', "x"),
]


@pytest.mark.parametrize(("grammar", "good", "bad"), HELD, ids=range(len(HELD)))
def test_what_says_nothing_of_the_language_is_left_out_and_templates_are_written_out(
    grammar: str, good: list[str], bad: list[str]
) -> None:
    compiled = grammar_for(guided_grammar=grammar)
    assert [text for text in good if not accepts(compiled, text)] == []
    assert [text for text in bad if accepts(compiled, text)] == []


@pytest.mark.parametrize(("grammar", "why"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_held_is_refused_by_name(grammar: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        grammar_for(guided_grammar=grammar)
