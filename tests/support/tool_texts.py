"""What a model of each tool format writes to call get_weather(city, days) and then get_time(), where it can call twice.

Written by hand from the chat templates of the models, apart from the grammars.
"""

from __future__ import annotations

import re
from typing import Final

#: Places where the text is open -> what may stand there.
OPEN: Final = {"CITY": "[A-Z][a-z]{2,8}", "DAYS": "[1-9]"}
_SPLIT: Final = re.compile("(" + "|".join(OPEN) + ")")

_ARGUMENTS: Final = '{"city": "CITY", "days": DAYS}'
_TWO: Final = f'{{"name": "get_weather", "arguments": {_ARGUMENTS}}}, {{"name": "get_time", "arguments": {{}}}}'
_PARAMETERS: Final = _TWO.replace('"arguments"', '"parameters"')
_FIRST, _SECOND = _TWO[: _TWO.index(', {"name": "get_time"')], '{"name": "get_time", "arguments": {}}'
_PYTHON: Final = 'get_weather(city="CITY", days=DAYS)'
_TAGS: Final = "<parameter=city>{0}CITY{0}</parameter>\n<parameter=days>{0}DAYS{0}</parameter>\n"
_SAYS: Final = "Let me see. "


def _deepseek(sep: str, first: str, second: str, end: str) -> str:
    call, call_end = "<\uff5ctool\u2581call\u2581begin\uff5c>", "<\uff5ctool\u2581call\u2581end\uff5c>"
    calls = f"{call}{first}{_ARGUMENTS}{end}{call_end}\n{call}{second}{{}}{end}{call_end}".replace("SEP", sep)
    return f"<\uff5ctool\u2581calls\u2581begin\uff5c>{calls}<\uff5ctool\u2581calls\u2581end\uff5c>"


def _tagged(invoke: str, key: str, value_end: str, call_end: str, types: tuple[str, str] = ("", "")) -> str:
    first = f'{invoke} name="get_weather">\n{key} name="city"{types[0]}>CITY{value_end}\n'
    return f'{first}{key} name="days"{types[1]}>DAYS{value_end}\n{call_end}\n{invoke} name="get_time">\n{call_end}'


def _dsml(around: str) -> str:
    mark = "\uff5cDSML\uff5c"
    types = (' string="true"', ' string="false"')
    calls = _tagged(f"<{mark}invoke", f"<{mark}parameter", f"</{mark}parameter>", f"</{mark}invoke>", types)
    return f"<{mark}{around}>\n{calls}\n</{mark}{around}>"


def _keyed(begin: str, quote: str, end: str) -> str:
    return f"{begin}call:get_weather{{city:{quote}CITY{quote},days:DAYS}}{end}{begin}call:get_time{{}}{end}"


def _step3() -> str:
    begin, sep, end = (f"<\uff5ctool_{name}\uff5c>" for name in ("call_begin", "sep", "call_end"))
    tags = (
        '<steptml:parameter name="city">CITY</steptml:parameter><steptml:parameter name="days">DAYS</steptml:parameter>'
    )
    calls = "\n".join(
        f'{begin}function{sep}<steptml:invoke name="{name}">{inner}</steptml:invoke>{end}'
        for name, inner in (("get_weather", tags), ("get_time", ""))
    )
    return f"<\uff5ctool_calls_begin\uff5c>{calls}<\uff5ctool_calls_end\uff5c>"


def _kimi() -> str:
    calls = "".join(
        f"<|tool_call_begin|>functions.{name}:{i}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"
        for i, (name, arguments) in enumerate((("get_weather", _ARGUMENTS), ("get_time", "{}")))
    )
    return f"<|tool_calls_section_begin|>{calls}<|tool_calls_section_end|>"


def _harmony() -> str:
    return (
        "<|channel|>final<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
        f"<|constrain|>json<|message|>{_ARGUMENTS}<|call|>"
    )


#: Name -> the text. Those of formats whose calls have a mark begin with content.
TEXTS: Final = {
    "hermes": f"{_SAYS}<tool_call>\n{_FIRST}\n</tool_call>\n<tool_call>\n{_SECOND}\n</tool_call>",
    "json": f"[{_PARAMETERS}]",
    "llama3_json": _PARAMETERS.replace("}}, {", "}}; {"),
    "granite": f"{_SAYS}<|tool_call|>[{_TWO}]",
    "phi4_mini_json": f"{_SAYS}functools[{_TWO}]",
    "internlm": f"{_SAYS}<|action_start|><|plugin|>\n{_FIRST.replace('arguments', 'parameters')}<|action_end|>",
    "jamba": f"{_SAYS}<tool_calls>\n[{_TWO}]\n</tool_calls>",
    "deepseek_v3": _SAYS + _deepseek(
        "<\uff5ctool\u2581sep\uff5c>", "functionSEPget_weather\n```json\n", "functionSEPget_time\n```json\n", "\n```"
    ),
    "deepseek_v31": _SAYS + _deepseek("<\uff5ctool\u2581sep\uff5c>", "get_weatherSEP", "get_timeSEP", ""),
    "kimi_k2": _SAYS + _kimi(),
    "granite-20b-fc": f"{_SAYS}<function_call> {_FIRST}<function_call> {_SECOND}",
    "hunyuan_a13b": f"{_SAYS}<tool_calls>[{_TWO}]</tool_calls>",
    "llama4_json": f"<|python_start|>{_PARAMETERS.replace('}}, {', '}}; {')}<|python_end|>",
    "xlam": f"[{_TWO}]",
    "mistral": f"{_SAYS}[TOOL_CALLS] [{_TWO}]",
    "mistral_v11": f"{_SAYS}[TOOL_CALLS]get_weather[ARGS]{_ARGUMENTS}[TOOL_CALLS]get_time[ARGS]{{}}",
    "qwen3_coder": (
        f"{_SAYS}<tool_call>\n<function=get_weather>\n" + _TAGS.format("\n") + "</function>\n</tool_call>\n"
        "<tool_call>\n<function=get_time>\n</function>\n</tool_call>"
    ),
    "seed_oss": (
        f"{_SAYS}<seed:tool_call>\n<function=get_weather>\n" + _TAGS.format("") + "</function>\n</seed:tool_call>\n"
        "<seed:tool_call>\n<function=get_time>\n</function>\n</seed:tool_call>"
    ),
    "glm45": (
        f"{_SAYS}<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>CITY</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>DAYS</arg_value>\n</tool_call>\n<tool_call>get_time\n</tool_call>"
    ),
    "glm47": (
        f"{_SAYS}<tool_call>get_weather<arg_key>city</arg_key><arg_value>CITY</arg_value>"
        "<arg_key>days</arg_key><arg_value>DAYS</arg_value></tool_call><tool_call>get_time</tool_call>"
    ),
    "minimax_m2": (
        f"{_SAYS}<minimax:tool_call>\n"
        f"{_tagged('<invoke', '<parameter', '</parameter>', '</invoke>')}\n</minimax:tool_call>"
    ),
    "deepseek_v32": _SAYS + _dsml("function_calls"),
    "deepseek_v4": _SAYS + _dsml("tool_calls"),
    "step3": _SAYS + _step3(),
    "pythonic": f"[{_PYTHON}, get_time()]",
    "llama4_pythonic": f"<|python_start|>[{_PYTHON}, get_time()]<|python_end|>",
    "olmo3": f"{_SAYS}<function_calls>\n{_PYTHON}\nget_time()\n</function_calls>",
    "lfm2": f"{_SAYS}<|tool_call_start|>[{_PYTHON}, get_time()]<|tool_call_end|>",
    "gemma3": f"{_SAYS}```tool_code\n{_PYTHON}\nget_time()\n```",
    "functiongemma": _SAYS + _keyed("<start_function_call>", "<escape>", "<end_function_call>"),
    "gemma4": _SAYS + _keyed("<|tool_call>", '<|"|>', "<tool_call|>"),
    "openai": _harmony(),
}  # fmt: skip


def split_open(text: str) -> list[str]:
    """The text cut at the open places, which are parts of their own."""
    return [part for part in _SPLIT.split(text) if part]
