"""How each format spells calls, and what is made of slips, of broken texts and of hostile ones."""

from __future__ import annotations

import json
from typing import Any

import pytest

from octavo.text.formats.output_parser import OutputFormat, OutputParser
from octavo.text.formats.table import REASONING_FORMATS, TOOL_FORMATS
from support.format_reader import calls_of, check_laws, read

_DSML = "\uff5cDSML\uff5c"
_STEP = "<\uff5ctool_{}\uff5c>".format
F, G = "f", "g"

#: (format, text, calls, content)
EXAMPLES: list[tuple[str, str, list[tuple[str, Any]], str]] = [
    # ------------------------------------------------------------ tags
    ("qwen3_coder", "Hi.\n<tool_call>\n<function=f>\n<parameter=s>\na \"b\" \\\nc\n\n</parameter>\n<parameter=n>\n5\n"
     "</parameter>\n</function>\n</tool_call>\nDone.", [(F, {"s": 'a "b" \\\nc\n', "n": 5})], "Hi.\nDone."),
    ("qwen3_coder", "<function=f><parameter=s>a<parameter=b>True</function>", [(F, {"s": "a", "b": True})], ""),
    ("qwen3_coder", "<tool_call><function=f><parameter=n>five</tool_call>", [(F, {"n": "five"})], ""),
    ("qwen3_coder", "<tool_call>\n<function=g>\n</function>\n</tool_call>\n<tool_call>\n<function=g></function>"
     "</tool_call>",
     [(G, {}), (G, {})], ""),
    ("qwen3_coder", "<tool_call><function=f> or not", [], "<tool_call><function=f> or not"),
    ("qwen3_coder", "<tool_call>{}</tool_call>", [], "<tool_call>{}</tool_call>"),
    ("qwen3_coder", "<function=f><parameter=s>x</parameter> and so on", [(F, {"s": "x"})], "and so on"),
    # what a schema says nothing of, or leaves open, is a string unless it is spelled like JSON
    ("qwen3_coder", "<function=f><parameter=x>007</parameter><parameter=u>null</parameter></function>",
     [(F, {"x": "007", "u": None})], ""),
    ("qwen3_coder", "<function=f><parameter=x>[1, 'a']</parameter><parameter=u>5</parameter></function>",
     [(F, {"x": [1, "a"], "u": "5"})], ""),
    ("qwen3_coder", "<function=f><parameter=l>[1, {}</parameter><parameter=o>{'a': None,}</parameter></function>",
     [(F, {"l": "[1, {}", "o": {"a": None}})], ""),
    ("qwen3_coder", "<function=f><parameter=n>1e400</parameter><parameter=y>inf</parameter></function>",
     [(F, {"n": "1e400", "y": "inf"})], ""),
    ("qwen3_coder", "<function=unknown><parameter=s>1</parameter></function>", [("unknown", {"s": 1})], ""),
    ("seed_oss", "<seed:tool_call>\n<function=f>\n<parameter=s>\nv</parameter>\n</function>\n</seed:tool_call>",
     [(F, {"s": "\nv"})], ""),
    ("glm45", "So:<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>v\"</arg_value>\n<arg_key>n</arg_key>\n<arg_value>-3"
     "</arg_value>\n</tool_call>\n<tool_call>g\n</tool_call>", [(F, {"s": 'v"', "n": -3}), (G, {})], "So:"),
    ("glm47", "<tool_call>f<arg_key>s</arg_key><arg_value>v</arg_value></tool_call><tool_call>g</tool_call>",
     [(F, {"s": "v"}), (G, {})], ""),
    ("glm45", '<tool_call>{"name": "f"}</tool_call>', [], '<tool_call>{"name": "f"}</tool_call>'),
    ("minimax_m2", '<minimax:tool_call>\n<invoke name="f">\n<parameter name="s">v</parameter>\n</invoke>\n'
     '<invoke name="g">\n</invoke>\n</minimax:tool_call>', [(F, {"s": "v"}), (G, {})], ""),
    ("deepseek_v32", f'<{_DSML}function_calls>\n<{_DSML}invoke name="f">\n<{_DSML}parameter name="s" string="true">5'
     f'</{_DSML}parameter>\n<{_DSML}parameter name="x" string="false">{{"a": 5}}</{_DSML}parameter>\n</{_DSML}invoke>\n'
     f"</{_DSML}function_calls>", [(F, {"s": "5", "x": {"a": 5}})], ""),
    ("deepseek_v4", f'<{_DSML}tool_calls>\n<{_DSML}invoke name="g">\n</{_DSML}invoke>\n</{_DSML}tool_calls>',
     [(G, {})], ""),
    ("step3", f'{_STEP("calls_begin")}\n{_STEP("call_begin")}function{_STEP("sep")}<steptml:invoke name="f">'
     f'<steptml:parameter name="s">v</steptml:parameter></steptml:invoke>{_STEP("call_end")}\n{_STEP("calls_end")}',
     [(F, {"s": "v"})], ""),
    # ------------------------------------------------------------ Python
    ("pythonic", '[f(s="a\\n\\"b", n=-1_000, o={"k": [1, (2, 3.5), None], \'z\': """t"q"""}, b=True), g()]',
     [(F, {"s": 'a\n"b', "n": -1000, "o": {"k": [1, [2, 3.5], None], "z": 't"q'}, "b": True}), (G, {})], ""),
    ("pythonic", "[ns.h(a=.5,), ns.h( a = 0x1F )]", [("ns.h", {"a": 0.5}), ("ns.h", {"a": 31})], ""),
    ("pythonic", r"[f(s='\x41\101\u00e9\N{BULLET}\q\/\
.', u='\ud83d\ude00')]", [(F, {"s": "AA\xe9\u2022\\q/.", "u": "\U0001f600"})], ""),
    ("pythonic", '[f("first", 2)]', [(F, {"s": "first", "n": 2})], ""),  # in the order of the properties
    ("pythonic", "[g(1)]", [], "[g(1)]"),
    ("pythonic", '[f(o={1: "a", True: []})]', [(F, {"o": {"1": "a", "true": []}})], ""),
    ("pythonic", "[f(s=r'raw')]", [], "[f(s=r'raw')]"),
    ("pythonic", "[f(n=1, s=variable)] x", [(F, {"n": 1})], "s=variable)] x"),
    ("pythonic", "[f(o={1, 2})]", [], "[f(o={1, 2})]"),
    ("pythonic", "[unknown(a=1)]", [], "[unknown(a=1)]"),
    ("pythonic", "[1, 2, 3] is a list", [], "[1, 2, 3] is a list"),
    ("pythonic", "f(s='x')", [], "f(s='x')"),
    ("llama4_pythonic", "Well. <|python_start|>[f(n=1)]<|python_end|>", [(F, {"n": 1})], "Well."),
    ("llama4_pythonic", "[f(n=1), g()]", [(F, {"n": 1}), (G, {})], ""),
    ("olmo3", "<function_calls>f(n=1)\ng()</function_calls> Good.", [(F, {"n": 1}), (G, {})], "Good."),
    ("lfm2", "<|tool_call_start|>[f(s='v')]<|tool_call_end|>Wait.", [(F, {"s": "v"})], "Wait."),
    ("gemma3", 'Sure.\n```tool_code\nf(s="x")\n```', [(F, {"s": "x"})], "Sure."),
    # ------------------------------------------------------------ keys, and marks around strings
    ("functiongemma", '<start_function_call>call:f{s:<escape>a"b\n<escape>,n:1,o:{k:[<escape>x<escape>,true]}}'
     "<end_function_call>", [(F, {"s": 'a"b\n', "n": 1, "o": {"k": ["x", True]}})], ""),
    ("functiongemma", "<start_function_call>call:g{}<end_function_call>ok", [(G, {})], "ok"),
    ("gemma4", '<|tool_call>call:f{s:<|"|>v<|"|>,l:["j\\n",-1.5]}<tool_call|><|tool_call>call:g{}<tool_call|>',
     [(F, {"s": "v", "l": ["j\n", -1.5]}), (G, {})], ""),
    # ------------------------------------------------------------ Mistral
    ("mistral", 'Ok[TOOL_CALLS] [{"name": "f", "arguments": {"n": 1}, "id": "abcdefghi"}]', [(F, {"n": 1})], "Ok"),
    ("mistral_v11", '[TOOL_CALLS]f[ARGS]{"n": 1}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}', [(F, {"n": 1}), (G, {})], ""),
    ("mistral", '[TOOL_CALLS]f{"n": 1}', [(F, {"n": 1})], ""),
    # ------------------------------------------------------------ JSON
    ("granite-20b-fc", '<function_call> {"name": "f", "arguments": {"n": 1}}', [(F, {"n": 1})], ""),
    ("hunyuan_a13b", '<tool_calls>[{"name": "f", "arguments": {}}]</tool_calls>', [(F, {})], ""),
    ("llama4_json", '{"name": "f", "parameters": {"n": 1}}', [(F, {"n": 1})], ""),
    ("xlam", '[{"name": "f", "arguments": {"n": 1}}]', [(F, {"n": 1})], ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "calls", "content"), EXAMPLES)
def test_a_text_means_its_calls_however_it_is_cut(name: str, text: str, calls: list[Any], content: str) -> None:
    """W15, U1: at every position, character by character, and broken off at every position."""
    reply = check_laws(name, text, range(len(text) + 1))
    assert (calls_of(reply), reply.content) == (calls, content)


def test_ids_that_a_model_gives_are_kept() -> None:
    assert read("mistral", "[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}").calls == [["g", "{}", "123456789"]]


_CHANNEL = "<|channel|>{}<|message|>".format
HARMONY: list[tuple[str, str, str, list[tuple[str, Any]]]] = [
    ("Just text.", "", "Just text.", []),
    (_CHANNEL("final") + "Hi.<|return|>", "", "Hi.", []),
    (_CHANNEL("analysis") + "Hm.<|end|><|start|>assistant" + _CHANNEL("final") + "Hi.", "Hm.", "Hi.", []),
    (_CHANNEL("analysis") + "a<|end|><|start|>assistant" + _CHANNEL("analysis") + "b<|end|>", "a\nb", "", []),
    (_CHANNEL("commentary") + "I look.<|end|><|start|>assistant<|channel|>commentary to=functions.f "
     '<|constrain|>json<|message|>{"s": "a"}<|call|>', "", "I look.", [(F, {"s": "a"})]),
    (' to=functions.f<|channel|>commentary json<|message|>{"n": 1}<|call|>', "", "", [(F, {"n": 1})]),
    ('<|channel|>commentary to=f<|message|>{"n": 1}', "", "", [(F, {"n": 1})]),
    ("<|channel|>commentary to=python code<|message|>print(1)<|call|>", "", "print(1)", []),
    ("to=be or not to be", "", "to=be or not to be", []),
    (_CHANNEL("final") + "a<|channel|>broken", "", "a<|channel|>broken", []),
    ("a<|end|>b<|start|>assistant<|end|>c", "", "ab<|start|>assistantc", []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reasoning", "content", "calls"), HARMONY)
def test_messages_of_harmony(text: str, reasoning: str, content: str, calls: list[Any]) -> None:
    reply = check_laws("openai", text, range(len(text) + 1), reasoning="openai")
    assert (reply.reasoning, reply.content, calls_of(reply)) == (reasoning, content, calls)


def test_without_tools_a_call_of_harmony_is_content_and_without_reasoning_a_thought_is() -> None:
    """F7."""
    text = (
        _CHANNEL("analysis") + "Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>"
    )
    assert read(None, text, reasoning="openai").content == "{}"
    assert read("openai", text).content == "Hm."


def test_the_thinking_of_harmony_ends_with_its_last_message() -> None:
    """The tokens of thinking are counted by it."""
    thought, start = _CHANNEL("analysis") + "Hm.<|end|>", "<|start|>assistant"
    final = start + _CHANNEL("final") + "Hi."
    for text, end in (
        ("Hi.", 0),
        (thought.removesuffix("<|end|>"), None),
        (thought, len(thought)),
        (thought + final, len(thought)),
        (thought + start + thought + final, len(thought + start + thought)),
    ):
        parser = OutputParser(OutputFormat(reasoning=REASONING_FORMATS["openai"]))
        parser.push(text)
        assert parser.reasoning_end == end


@pytest.mark.parametrize(
    ("name", "text", "reasoning", "content"),
    [
        ("deepseek_r1", "Hm.</think>\n\nHi.", "Hm.", "Hi."),
        ("deepseek_v31", "Hi.", "", "Hi."),
        ("hunyuan_a13b", "<think>\nHm.\n</think>\n<answer>\nHi.\n</answer>", "Hm.", "Hi."),
        ("ernie45", "Hm.\n</think>\n\n<response>\nHi.\n</response>\n", "Hm.", "Hi."),
        ("gemma4", "<|channel>thought\nHm.<channel|>Hi.", "Hm.", "Hi."),
        ("mistral", "[THINK]Hm.[/THINK]Hi.", "Hm.", "Hi."),
        ("granite", "Here is my thought process:\nHm.\nHere is my response:\nHi.", "Hm.", "Hi."),
    ],
)
@pytest.mark.parametrize("tools", [None, "hermes"])
def test_thinking_is_told_apart(name: str, text: str, reasoning: str, content: str, tools: str | None) -> None:
    reply = read(tools, text, reasoning=name)
    assert (reply.reasoning, reply.content) == (reasoning, content)
    for cut in range(len(text)):
        assert read(tools, text, [cut], reasoning=name) == reply


#: A text in which one string argument is `VALUE`, and what may be in it many times over.
BIG: dict[str, tuple[str, str]] = {
    "qwen3_coder": ("<function=f><parameter=s>VALUE</parameter></function>", 'a"<\n</par'),
    "glm45": ("<tool_call>f\n<arg_key>s</arg_key><arg_value>VALUE</arg_value></tool_call>", "<arg_<tool"),
    "pythonic": ('[f(s="VALUE")]', "a\\n'\\u00e9 "),
    "lfm2": ("<|tool_call_start|>[f(l=[VALUE])]<|tool_call_end|>", "[1], (2,),"),
    "functiongemma": ("<start_function_call>call:f{s:<escape>VALUE<escape>}<end_function_call>", "<esc{x}"),
    "mistral_v11": ('[TOOL_CALLS]f[ARGS]{"s": "VALUE"}', "a\\n[ARGS]"),
    "openai": ('<|channel|>commentary to=functions.f<|message|>{"s": "VALUE"}<|call|>', "a<|chan"),
}


def test_an_argument_of_a_megabyte_is_read() -> None:
    """W14."""
    text, unit = BIG["qwen3_coder"]
    value = unit * (1 << 17)
    whole = text.replace("VALUE", value)
    assert calls_of(read("qwen3_coder", whole, range(0, len(whole), 1000))) == [(F, {"s": value})]


@pytest.mark.parametrize("name", BIG)
def test_a_big_argument_is_one_call(name: str) -> None:
    """W14."""
    text, unit = BIG[name]
    whole = text.replace("VALUE", unit * ((1 << 15) // len(unit)))
    reply = read(name, whole, range(0, len(whole), 16))
    assert len(reply.calls) == 1 and not reply.content
    json.loads(reply.calls[0][1])


HOSTILE = [
    "[f(", "f(a=", "<tool_call>", "<function=f>", "<parameter=s>", "[[", "{'a':", "call:f{", "a:{", "\\N{A", '"""',
    "<arg_key>", "<|channel|>", "<|start|>", "[ARGS]", "[TOOL_CALLS]", '<invoke name="f">', "- ", "\\",
]  # fmt: skip


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_hostile_repetition_raises_nothing_and_leaves_whole_arguments(name: str) -> None:
    """W14."""
    row = TOOL_FORMATS[name]
    first = row.begins[0] if row.begins else row.openers[0]
    inside = {"TaggedCalls": "<function=f><parameter=o>", "PythonicCalls": "[f(o=", "KeyedCalls": "call:f{o:"}
    for unit in {*HOSTILE, first}:
        for start in ("", first, first + inside.get(type(row.body).__name__, "")):
            text = start + unit * 400
            reply = read(name, text, range(0, len(text), 9), reasoning="openai" if name == "openai" else None)
            for _, arguments, _ in reply.calls:
                assert arguments.startswith("{") and arguments.endswith("}")


def test_nesting_has_no_depth_that_is_too_deep() -> None:
    """W14: no recursion."""
    for name, text in (
        ("pythonic", "[f(l=" + "[" * 30_000 + "1"),
        ("gemma4", "<|tool_call>call:f{o:" + "{a:" * 30_000 + "1"),
    ):
        arguments = read(name, text).calls[0][1]
        assert arguments.count("[") == arguments.count("]") and arguments.count("{") == arguments.count("}")


def test_marks_of_the_rows_are_theirs() -> None:
    for row in (*TOOL_FORMATS.values(), *REASONING_FORMATS.values()):
        assert all(isinstance(mark, str) and mark for mark in row.marks)
        assert len(row.name) > 2
