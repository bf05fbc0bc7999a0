"""The formats that octavo knows, one row each."""

from __future__ import annotations

from typing import Final

from octavo.text.formats import harmony
from octavo.text.formats.base import ReasoningFormat, ToolFormat
from octavo.text.formats.harmony import HarmonyCalls
from octavo.text.formats.json_calls import JsonCalls
from octavo.text.formats.keyed_calls import KeyedCalls
from octavo.text.formats.mistral_calls import ARGS, CALL_ID, MistralCalls
from octavo.text.formats.named_calls import NamedCalls
from octavo.text.formats.pythonic_calls import PythonicCalls
from octavo.text.formats.tagged_calls import TaggedCalls

# DeepSeek's marks are written with a full-width bar and a lower block.
_CALLS: Final = "<\uff5ctool\u2581calls\u2581begin\uff5c>"
_CALLS_END: Final = "<\uff5ctool\u2581calls\u2581end\uff5c>"
_CALL: Final = "<\uff5ctool\u2581call\u2581begin\uff5c>"
_CALL_END: Final = "<\uff5ctool\u2581call\u2581end\uff5c>"
_SEP: Final = "<\uff5ctool\u2581sep\uff5c>"
_DSML: Final = "\uff5cDSML\uff5c"
_STEP: Final = "<\uff5ctool_{}\uff5c>"
_HERMES: Final = JsonCalls(before="\n", after="\n", end="</tool_call>")

_TOOL_ROWS: Final = (
    # Hermes 2 Pro and later, Qwen2.5, Qwen3
    ToolFormat(
        "hermes", _HERMES, ("<tool_call>",), ("</tool_call>",), repeats=True, between="\n",
        openers="{`", bare_body=JsonCalls(only_known=True, is_fenced=True),  # Qwen2.5-Coder leaves the marks out
    ),
    # any model: a list of calls, as the grammar of `required` makes it
    ToolFormat("json", JsonCalls("parameters", is_list=True, only_known=True), openers="[{"),
    ToolFormat(
        "llama3_json",
        JsonCalls("parameters", separator="; ", only_known=True),
        ("<|python_tag|>",), ("<|eom_id|>", "<|eot_id|>"), openers="{",
    ),
    ToolFormat(
        "granite", JsonCalls(is_list=True), ("<|tool_call|>", "<tool_call>", "<function_call>"),
        ("</tool_call>", "</function_call>"),
    ),
    ToolFormat(
        "phi4_mini_json", JsonCalls(is_list=True), ("functools", "<|tool_call|>"), ("<|/tool_call|>",)
    ),
    ToolFormat(
        "internlm", JsonCalls("parameters", before="\n", end="<|action_end|>"),
        ("<|action_start|><|plugin|>", "<|action_start|> <|plugin|>"), ("<|action_end|>",),
    ),
    ToolFormat(
        "jamba", JsonCalls(is_list=True, before="\n", after="\n", end="</tool_calls>"),
        ("<tool_calls>",), ("</tool_calls>",),
    ),
    ToolFormat(
        "deepseek_v3",
        NamedCalls(
            ("\n```json\n", "\n```\n", "\n", _SEP), opening=f"function{_SEP}", closing=("\n```", _CALL_END),
            begin=_CALL, end=_CALLS_END,
        ),
        (_CALL,), (_CALLS_END,), noise=(_CALLS, _CALL_END, _CALLS_END), extra_marks=(_SEP,),
    ),
    ToolFormat(
        "deepseek_v31",
        NamedCalls((_SEP,), closing=(_CALL_END,), begin=_CALL, end=_CALLS_END),
        (_CALL,), (_CALLS_END,), noise=(_CALLS, _CALL_END, _CALLS_END), extra_marks=(_SEP,),
    ),
    ToolFormat(
        "kimi_k2",
        NamedCalls(
            ("<|tool_call_argument_begin|>",), closing=("<|tool_call_end|>",), is_numbered=True,
            begin="<|tool_call_begin|>", end="<|tool_calls_section_end|>",
        ),
        ("<|tool_call_begin|>",), ("<|tool_calls_section_end|>",),
        noise=("<|tool_calls_section_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"),
        extra_marks=("<|tool_call_argument_begin|>",),
    ),
    # ------------------------------------------------------------ further JSON
    ToolFormat("granite-20b-fc", JsonCalls(before=" "), ("<function_call>",), repeats=True),
    ToolFormat(
        "hunyuan_a13b", JsonCalls(is_list=True, end="</tool_calls>"), ("<tool_calls>",), ("</tool_calls>",)
    ),
    ToolFormat(
        "llama4_json",
        JsonCalls("parameters", separator="; ", only_known=True),
        ("<|python_start|>",), ("<|python_end|>", "<|eom|>", "<|eot|>"), openers="{",
    ),
    ToolFormat(
        "xlam", JsonCalls(is_list=True, only_known=True), ("[TOOL_CALLS]", "<tool_call>"), ("</tool_call>",),
        openers="[{",
    ),
    ToolFormat(
        "mistral", MistralCalls(is_list=True), ("[TOOL_CALLS]",), id_style="mistral", extra_marks=(ARGS, CALL_ID)
    ),
    ToolFormat(
        "mistral_v11", MistralCalls(is_list=False), ("[TOOL_CALLS]",), id_style="mistral", extra_marks=(ARGS, CALL_ID)
    ),
    # ------------------------------------------------------------ tags
    # Qwen3-Coder, and others that were taught its format
    ToolFormat(
        "qwen3_coder",
        TaggedCalls(
            "<function=", ">", "<parameter=", ">", "</parameter>", "</function>", "</tool_call>", blank="\n",
            strips_newlines=True,
        ),
        ("<tool_call>",), ("</tool_call>",), bare_begins=("<function=",), repeats=True, between="\n",
    ),
    ToolFormat(
        "seed_oss",
        TaggedCalls(
            "<function=", ">", "<parameter=", ">", "</parameter>", "</function>", "</seed:tool_call>", blank="\n"
        ),
        ("<seed:tool_call>",), ("</seed:tool_call>",), repeats=True, between="\n",
    ),
    ToolFormat(
        "glm45",
        TaggedCalls(
            "", "\n", "<arg_key>", "</arg_key>", "</arg_value>", "</tool_call>", "</tool_call>",
            value_open="<arg_value>", blank="\n",
        ),
        ("<tool_call>",), ("</tool_call>",), repeats=True, between="\n",
        extra_marks=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    ToolFormat(
        "glm47",
        TaggedCalls(
            "", "", "<arg_key>", "</arg_key>", "</arg_value>", "</tool_call>", "</tool_call>",
            value_open="<arg_value>",
        ),
        ("<tool_call>",), ("</tool_call>",), repeats=True,
        extra_marks=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    ToolFormat(
        "minimax_m2",
        TaggedCalls(
            '<invoke name="', '">', '<parameter name="', '">', "</parameter>", "</invoke>", "</minimax:tool_call>",
            blank="\n", is_repeated=True,
        ),
        ("<minimax:tool_call>",), ("</minimax:tool_call>",),
    ),
    *(
        ToolFormat(
            name,
            TaggedCalls(
                f'<{_DSML}invoke name="', '">', f'<{_DSML}parameter name="', '" string="', f"</{_DSML}parameter>",
                f"</{_DSML}invoke>", f"</{_DSML}{first}>", blank="\n", has_string_flag=True, is_repeated=True,
            ),
            (f"<{_DSML}{first}>", f"<{_DSML}{second}>"), (f"</{_DSML}{first}>", f"</{_DSML}{second}>"),
            extra_marks=(_DSML,),
        )
        for name, first, second in (
            ("deepseek_v32", "function_calls", "tool_calls"),
            ("deepseek_v4", "tool_calls", "function_calls"),
        )
    ),
    ToolFormat(
        "step3",
        TaggedCalls(
            '<steptml:invoke name="', '">', '<steptml:parameter name="', '">', "</steptml:parameter>",
            "</steptml:invoke>", _STEP.format("call_end"), tail=_STEP.format("calls_end"),
            prefix="function" + _STEP.format("sep"),
        ),
        (_STEP.format("call_begin"),), (_STEP.format("call_end"),),
        noise=(_STEP.format("calls_begin"), _STEP.format("calls_end")), extra_marks=(_STEP.format("sep"),),
    ),
    # ------------------------------------------------------------ Python, and keys with values between marks
    ToolFormat("pythonic", PythonicCalls(), openers="["),
    ToolFormat("llama4_pythonic", PythonicCalls(), ("<|python_start|>",), ("<|python_end|>",), openers="["),
    ToolFormat(
        "olmo3", PythonicCalls(is_list=False, before="\n", after="\n", end="</function_calls>"),
        ("<function_calls>",), ("</function_calls>",),
    ),
    ToolFormat(
        "lfm2", PythonicCalls(end="<|tool_call_end|>"), ("<|tool_call_start|>",), ("<|tool_call_end|>",)
    ),
    ToolFormat(
        "gemma3", PythonicCalls(is_list=False, before="\n", after="\n", end="```"), ("```tool_code",), ("```",)
    ),
    ToolFormat(
        "functiongemma", KeyedCalls("<escape>", "<end_function_call>"), ("<start_function_call>",),
        ("<end_function_call>",), repeats=True, extra_marks=("<escape>",),
    ),
    ToolFormat(
        "gemma4", KeyedCalls('<|"|>', "<tool_call|>"), ("<|tool_call>",), ("<tool_call|>",), repeats=True,
        extra_marks=('<|"|>',),
    ),
    ToolFormat(
        "openai", HarmonyCalls(), (f"{harmony.CHANNEL}commentary to={harmony.FUNCTIONS}",),
        extra_marks=harmony.ALL_MARKS, pipeline=harmony.read_harmony, among_text=harmony.written,
    ),
)  # fmt: skip

_THINK: Final = ("<think>", "</think>")
_REASONING_ROWS: Final = (
    # The prompt of these models may open the thinking, or the model leaves the mark out.
    *(ReasoningFormat(name, *_THINK, is_implicit=True) for name in ("deepseek_r1", "minimax_m2", "olmo3", "step3")),
    *(
        ReasoningFormat(name, *_THINK)
        for name in ("qwen3", "glm45", "kimi_k2", "deepseek_v3", "deepseek_v31", "nemotron_v3")
    ),
    ReasoningFormat("hunyuan_a13b", *_THINK, noise=("<answer>", "</answer>")),
    ReasoningFormat("ernie45", *_THINK, is_implicit=True, noise=("<response>", "</response>")),
    ReasoningFormat("mistral", "[THINK]", "[/THINK]"),
    ReasoningFormat("seed_oss", "<seed:think>", "</seed:think>"),
    ReasoningFormat("gemma4", "<|channel>thought", "<channel|>", extra_marks=("<|channel>",)),
    ReasoningFormat(
        "granite", "Here is my thought process:", "Here is my response:",
        other_begins=("Here's my thought process:",), other_ends=("Here's my response:",),
    ),
    ReasoningFormat(
        "openai", f"{harmony.CHANNEL}analysis{harmony.MESSAGE}", f"<|end|>{harmony.START}assistant",
        answer=f"{harmony.CHANNEL}final{harmony.MESSAGE}",
        extra_marks=harmony.ALL_MARKS, pipeline=harmony.read_harmony,
    ),
)  # fmt: skip

#: Other names that users know, from other servers.
TOOL_ALIASES: Final = {
    **dict.fromkeys(("qwen", "qwen25", "qwen3", "qwen3_json", "granite4", "ernie45", "longcat"), "hermes"),
    **dict.fromkeys(("qwen3_xml", "nemotron_v3", "step3p5"), "qwen3_coder"),
    "deepseekv3": "deepseek_v3", "deepseekv31": "deepseek_v31", "deepseekv32": "deepseek_v32",
    "deepseek_r1": "deepseek_v3", "glm": "glm45", "gpt-oss": "openai", "gpt_oss": "openai", "harmony": "openai",
    "llama3": "llama3_json", "llama4": "llama4_pythonic", "minimax": "minimax_m2", "minimax-m2": "minimax_m2",
    "phi4_mini": "phi4_mini_json", "hunyuan": "hunyuan_a13b", "kimi": "kimi_k2",
}  # fmt: skip
REASONING_ALIASES: Final = {
    "deepseek-r1": "deepseek_r1", "deepseek-v3": "deepseek_v3", "glm47": "glm45", "gpt-oss": "openai",
    "gpt_oss": "openai", "harmony": "openai", "deepseek_v32": "deepseek_v31", "deepseek_v4": "deepseek_v31",
    "hunyuan": "hunyuan_a13b", "kimi": "kimi_k2", "minimax": "minimax_m2", "minimax-m2": "minimax_m2",
    "nano_v3": "nemotron_v3", "qwen3-thinking": "qwen3", "step3p5": "step3",
}  # fmt: skip

#: Name -> row. `registry` adds the rows of plug-ins.
TOOL_FORMATS: Final = {row.name: row for row in _TOOL_ROWS}
REASONING_FORMATS: Final = {row.name: row for row in _REASONING_ROWS}
