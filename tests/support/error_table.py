"""Requests that are refused with a 400: one table for the application alone and for the whole server."""

from __future__ import annotations

import json
from typing import Any

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> tuple[str, Any]:
    return CHAT, {"messages": USER, **fields}


def text(**fields: Any) -> tuple[str, Any]:
    return TEXT, {"prompt": "Hello", **fields}


def messages(*items: Any) -> tuple[str, Any]:
    return CHAT, {"messages": list(items)}


def raw(body: str | bytes) -> tuple[str, Any]:
    return CHAT, body if isinstance(body, bytes) else body.encode()


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


Row = tuple[tuple[str, Any], str | None]


def bad_requests(vocab: int, fanout: int) -> list[Row]:
    """Rows of (path, body) and the `param` of the error. All are status 400, type BadRequestError, without a code.

    `vocab` is the width of the logits, `fanout` the most sequences of one request.
    """
    return [
        # bodies that are no JSON object
        (raw(""), None),
        (raw("{"), None),
        (raw("nonsense"), None),
        (raw("[]"), None),
        (raw('"text"'), None),
        (raw("null"), None),
        (raw("42"), None),
        (raw('{"messages": [}'), "messages.0"),
        (raw('{"messages": []} trailing'), None),
        (raw(b"\xff\xfe{}"), None),
        (raw(b'{"prompt": "\xff"}'), "prompt"),
        (raw(b'\xef\xbb\xbf{"a": 1}'), "messages"),  # a byte order mark is no fault
        (raw('{"messages": [], "x": "\\ud800"}'), "x"),
        # numbers that are none
        (raw('{"messages": [], "temperature": NaN}'), "temperature"),
        (raw('{"messages": [], "temperature": Infinity}'), "temperature"),
        (raw('{"messages": [], "temperature": -Infinity}'), "temperature"),
        (raw('{"messages": [], "temperature": 1e999}'), "temperature"),
        (raw('{"messages": [], "n": 1' + "0" * 5000 + "}"), "n"),
        (raw('{"messages": [{"role":"user","content":"x"}], "seed": 99999999999999999999999}'), "seed"),
        (raw('{"messages": [{"role":"user","content":"x"}], "temperature": 1' + "0" * 400 + "}"), "temperature"),
        # depth
        (raw("[" * 100_000), None),
        (raw('{"messages": ' + "[" * 70 + "]" * 70 + "}"), None),
        (chat(metadata=nested(64)), None),
        # messages
        ((CHAT, {}), "messages"),
        ((CHAT, {"messages": None}), "messages"),
        ((CHAT, {"messages": []}), "messages"),
        ((CHAT, {"messages": "Hello"}), "messages"),
        ((CHAT, {"messages": {"role": "user"}}), "messages"),
        (messages("Hello"), "messages.0"),
        (messages(None), "messages.0"),
        (messages({"content": "Hello"}), "messages.0.role"),
        (messages({"role": 5, "content": "Hello"}), "messages.0.role"),
        (messages({"role": "", "content": "Hello"}), "messages.0.role"),
        (messages({"role": "u\n", "content": "Hello"}), "messages.0.role"),
        (messages({"role": "user", "content": 5}), "messages.0.content"),
        (messages({"role": "user", "content": {"text": "x"}}), "messages.0.content"),
        (messages(USER[0], {"role": "user", "content": True}), "messages.1.content"),
        (messages({"role": "user", "content": ["x"]}), "messages.0.content.0"),
        (messages({"role": "user", "content": [{"text": "x"}]}), "messages.0.content.0"),
        (messages({"role": "user", "content": [{"type": 5}]}), "messages.0.content.0"),
        (messages({"role": "user", "content": [{"type": "text", "text": "a"}, None]}), "messages.0.content.1"),
        (
            messages({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
            "messages.0.content.0",
        ),
        (messages({"role": "user", "content": "x", "name": 5}), "messages.0.name"),
        (messages({"role": "user", "content": "x", "tool_calls": "x"}), "messages.0.tool_calls"),
        # types: true is no integer, "1" is no number, 1.0 is no integer
        (chat(model=5), "model"),
        (chat(n=True), "n"),
        (chat(n="1"), "n"),
        (chat(n=1.0), "n"),
        (chat(temperature="0.7"), "temperature"),
        (chat(temperature=True), "temperature"),
        (chat(temperature=[]), "temperature"),
        (chat(stream="true"), "stream"),
        (chat(stream=1), "stream"),
        (chat(logprobs=5), "logprobs"),
        (chat(max_tokens="5"), "max_tokens"),
        (chat(stop=5), "stop"),
        (chat(stop=["a", 5]), "stop"),
        (chat(stop_token_ids=["5"]), "stop_token_ids.0"),
        (chat(logit_bias=[]), "logit_bias"),
        (chat(logit_bias={"a": 1}), "logit_bias"),
        (chat(logit_bias={"5": "1"}), "logit_bias.5"),
        (chat(logit_bias={"5": True}), "logit_bias.5"),
        (chat(stream=True, stream_options=5), "stream_options"),
        (chat(stream=True, stream_options={"include_usage": "yes"}), "stream_options.include_usage"),
        (chat(documents="x"), "documents"),
        (chat(chat_template_kwargs=[]), "chat_template_kwargs"),
        # values
        (chat(n=0), "n"),
        (chat(n=-1), "n"),
        (chat(n=1_000_000_000), "n"),
        (chat(n=2, temperature=0), "n"),
        (chat(temperature=-0.1), "temperature"),
        (chat(temperature=2.1), "temperature"),
        (chat(top_p=-0.1), "top_p"),
        (chat(top_p=1.1), "top_p"),
        (chat(top_k=-2), "top_k"),
        (chat(min_p=-0.1), "min_p"),
        (chat(min_p=1.1), "min_p"),
        (chat(presence_penalty=2.1), "presence_penalty"),
        (chat(frequency_penalty=-2.1), "frequency_penalty"),
        (chat(repetition_penalty=0), "repetition_penalty"),
        (chat(seed=2**63), "seed"),
        (chat(stop=""), "stop"),
        (chat(stop=["a", ""]), "stop"),
        (chat(stop=["a", "b", "c", "d", "e"]), "stop"),
        (chat(stop="x" * 5000), "stop"),
        (chat(stop_token_ids=[vocab]), "stop_token_ids"),
        (chat(stop_token_ids=[-1]), "stop_token_ids"),
        (chat(logit_bias={str(vocab): 1}), "logit_bias"),
        (chat(logit_bias={"-1": 1}), "logit_bias"),
        (chat(stop_token_ids=[1] * (vocab + 1)), "stop_token_ids"),
        (chat(allowed_token_ids=[]), "allowed_token_ids"),
        (chat(allowed_token_ids=[vocab]), "allowed_token_ids"),
        (chat(allowed_token_ids=[-1]), "allowed_token_ids"),
        (chat(allowed_token_ids=5), "allowed_token_ids"),
        (chat(allowed_token_ids=[True]), "allowed_token_ids.0"),
        (text(allowed_token_ids=[]), "allowed_token_ids"),
        (text(allowed_token_ids=[vocab]), "allowed_token_ids"),
        (chat(bad_words="x"), "bad_words"),
        (chat(bad_words=[5]), "bad_words.0"),
        (chat(bad_words=[""]), "bad_words.0"),
        (chat(bad_words=["a", "  "]), "bad_words.1"),
        (chat(bad_words=["x" * 513]), "bad_words.0"),
        (text(bad_words=["x"] * 129), "bad_words"),
        (chat(max_tokens=0), "max_tokens"),
        (chat(max_tokens=-1), "max_tokens"),
        (chat(max_completion_tokens=0), "max_completion_tokens"),
        (chat(max_completion_tokens=0, max_tokens=5), "max_completion_tokens"),
        (chat(min_tokens=-1), "min_tokens"),
        (chat(min_tokens=6, max_tokens=5), "min_tokens"),
        (chat(top_logprobs=5), "top_logprobs"),
        (chat(logprobs=True, top_logprobs=21), "top_logprobs"),
        (chat(logprobs=True, top_logprobs=-1), "top_logprobs"),
        (chat(stream_options={"include_usage": True}), "stream_options"),
        (chat(cache_salt="x" * 257), "cache_salt"),
        (chat(cache_salt="a\u0000b"), "cache_salt"),
        (chat(continue_final_message=True, add_generation_prompt=True), "continue_final_message"),
        # constraints on the output (more of them in tests/text/test_grammar.py)
        (chat(response_format={"type": "xml"}), "response_format.type"),
        (chat(response_format={"type": "json_schema"}), "response_format.json_schema"),
        (
            chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "banana"}}}),
            "response_format.json_schema.schema.type",
        ),
        (chat(response_format={"type": "json_object"}, guided_regex="a"), "response_format"),
        (chat(guided_json={"properties": {"a": {"uniqueItems": True}}}), "guided_json.properties.a.uniqueItems"),
        (chat(guided_json={"pattern": "["}), "guided_json.pattern"),
        (chat(guided_json="{"), "guided_json"),
        (chat(guided_regex=""), "guided_regex"),
        (chat(guided_regex="(?=a)"), "guided_regex"),
        (chat(guided_choice=[]), "guided_choice"),
        (chat(guided_choice=[1]), "guided_choice"),
        (chat(guided_grammar=5), "guided_grammar"),
        (chat(guided_json={}, guided_decoding_backend="banana"), "guided_decoding_backend"),
        (chat(guided_json={}, guided_whitespace_pattern="x"), "guided_whitespace_pattern"),
        (chat(structured_outputs={}), "structured_outputs"),
        (chat(grammar="root"), "grammar"),
        (chat(regex="a"), "regex"),
        (chat(ebnf="root"), "ebnf"),
        (text(json_schema={}), "json_schema"),
        (chat(structured_outputs={"json": {}, "regex": "a"}), "structured_outputs"),
        # known, and not supported: refused by name, never ignored
        (chat(tools=[{"type": "function", "function": {"name": "f"}}]), "tool_choice"),
        (chat(tools=[]), "tools"),
        (chat(tool_choice="required"), "tool_choice"),
        (chat(tool_choice={"type": "function", "function": {"name": "f"}}), "tool_choice"),
        (chat(functions=[]), "functions"),
        (chat(function_call={"name": "f"}), "function_call"),
        # beams
        (chat(use_beam_search=True), "best_of"),
        (chat(use_beam_search=True, best_of=1), "best_of"),
        (chat(use_beam_search=True, best_of=0), "best_of"),
        (chat(use_beam_search=True, best_of=129), "best_of"),
        (chat(use_beam_search=True, best_of=2, n=3), "best_of"),
        (chat(use_beam_search=True, n=129), "n"),
        (chat(use_beam_search=True, best_of=2, temperature=0.5), "temperature"),
        (chat(use_beam_search=True, best_of=2, length_penalty=99), "length_penalty"),
        (chat(use_beam_search=True, best_of=2, length_penalty="1"), "length_penalty"),
        (chat(use_beam_search=True, best_of=2, early_stopping="soon"), "early_stopping"),
        (chat(use_beam_search=True, best_of=2, stop="x"), "stop"),
        (chat(use_beam_search=True, best_of=2, logit_bias={"1": 1}), "logit_bias"),
        (chat(use_beam_search=True, best_of=2, presence_penalty=1), "presence_penalty"),
        (chat(use_beam_search=True, best_of=2, frequency_penalty=1), "frequency_penalty"),
        (chat(use_beam_search=True, best_of=2, repetition_penalty=2), "repetition_penalty"),
        (chat(use_beam_search=True, best_of=2, guided_regex="a+"), "guided_regex"),
        (chat(use_beam_search=1), "use_beam_search"),
        (chat(use_beam_search="true"), "use_beam_search"),
        (chat(length_penalty=0.5), "length_penalty"),
        (chat(early_stopping=True), "early_stopping"),
        (chat(early_stopping="never"), "early_stopping"),
        (chat(best_of="2"), "best_of"),
        # streams and limits
        (chat(stream_interval=2), "stream_interval"),
        (chat(stream=True, stream_interval=0), "stream_interval"),
        (chat(stream=True, stream_interval=-1), "stream_interval"),
        (chat(stream=True, stream_interval=1.5), "stream_interval"),
        (chat(logit_bias={str(i): 1 for i in range(1025)}), "logit_bias"),
        (chat(metadata=nested(64)), None),
        (chat(best_of=True), "best_of"),
        (chat(best_of=0), "best_of"),
        (chat(n=3, best_of=2), "best_of"),
        (chat(best_of=129), "best_of"),
        (chat(best_of=2, temperature=0), "best_of"),
        (chat(best_of=1.0), "best_of"),
        (chat(prompt_logprobs=-1), "prompt_logprobs"),
        (chat(prompt_logprobs=21), "prompt_logprobs"),
        (chat(prompt_logprobs=True), "prompt_logprobs"),
        (chat(prompt_logprobs=1, stream=True), "prompt_logprobs"),
        (text(prompt_logprobs=1, stream=True), "prompt_logprobs"),
        (chat(echo=1), "echo"),
        (chat(echo=True, max_tokens=0), "max_tokens"),
        (chat(chat_template="{{ messages }}"), "chat_template"),
        (chat(truncate_prompt_tokens=0), "truncate_prompt_tokens"),
        (chat(truncate_prompt_tokens=-2), "truncate_prompt_tokens"),
        (chat(truncate_prompt_tokens=10**9), "truncate_prompt_tokens"),
        (text(truncate_prompt_tokens="5"), "truncate_prompt_tokens"),
        (text(truncate_prompt_tokens=5, truncation_side="middle"), "truncation_side"),
        (chat(spaces_between_special_tokens="no"), "spaces_between_special_tokens"),
        (chat(skip_special_tokens=1), "skip_special_tokens"),
        (chat(add_special_tokens="yes"), "add_special_tokens"),
        (chat(include_stop_str_in_output=0), "include_stop_str_in_output"),
        (chat(return_token_ids=1), "return_token_ids"),
        (text(return_tokens_as_token_ids="yes"), "return_tokens_as_token_ids"),
        (chat(request_id=5), "request_id"),
        (chat(request_id=""), "request_id"),
        (chat(request_id="a b"), "request_id"),
        (chat(request_id="a\r\nb"), "request_id"),
        (chat(request_id="\u00e9"), "request_id"),
        (text(request_id="x" * 129), "request_id"),
        (chat(modalities=["text", "audio"]), "modalities"),
        (chat(audio={"voice": "x"}), "audio"),
        # completions
        ((TEXT, {}), "prompt"),
        (text(prompt=None), "prompt"),
        (text(prompt=5), "prompt"),
        (text(prompt=""), "prompt"),
        (text(prompt=[]), "prompt"),
        (text(prompt=[[]]), "prompt"),
        (text(prompt=["a", 1]), "prompt"),
        (text(prompt=["a", ["b"]]), "prompt"),
        (text(prompt=[1, True]), "prompt"),
        (text(prompt=[1, 2.0]), "prompt"),
        (text(prompt=[[1], "a"]), "prompt"),
        (text(prompt=[-1]), "prompt"),
        (text(prompt=[vocab]), "prompt"),
        (text(prompt=[2**70]), "prompt"),
        (text(prompt=["a", ""]), "prompt.1"),
        (text(prompt=[[1], [vocab]]), "prompt.1"),
        (text(prompt=["a"] * (fanout + 1)), "prompt"),
        (text(prompt=["a"] * (fanout // 2 + 1), n=2), "prompt"),
        (text(n=2, temperature=0), "n"),
        (text(max_tokens=0), "max_tokens"),
        (text(logprobs=21), "logprobs"),
        (text(logprobs=-1), "logprobs"),
        (text(logprobs=True), "logprobs"),
        (text(suffix="end"), "suffix"),
        (text(suffix=5), "suffix"),
        (text(suffix=["a"]), "suffix"),
        (text(prompt=["a", "b"], suffix="end"), "suffix"),
        (text(use_beam_search=True), "best_of"),
        (text(use_beam_search=True, best_of=2, n=3), "best_of"),
        (text(use_beam_search=True, best_of=2, temperature=1), "temperature"),
        (text(prompt=["a"] * 1025), "prompt"),
        (text(stream_interval=2), "stream_interval"),
        (text(echo="yes"), "echo"),
        (text(echo=False, max_tokens=0), "max_tokens"),
        (text(echo=True, max_tokens=-1), "max_tokens"),
        (text(echo=True, max_tokens=0, min_tokens=1), "min_tokens"),
        (text(echo=True, logprobs=21), "logprobs"),
        (text(best_of=1, n=2), "best_of"),
        (text(best_of=3, temperature=0), "best_of"),
        (text(prompt=["a"] * (fanout // 2 + 1), best_of=2), "prompt"),
        (text(guided_json={"if": {}}), "guided_json.if"),
        (text(guided_regex="a", guided_choice=["a"]), "guided_choice"),
        # tokenize and detokenize
        (("/tokenize", {}), "prompt"),
        (("/tokenize", {"prompt": "a", "messages": USER}), "prompt"),
        (("/tokenize", {"prompt": 5}), "prompt"),
        (("/tokenize", {"messages": []}), "messages"),
        (("/tokenize", {"messages": USER, "tools": []}), "tools"),
        (("/detokenize", {}), "tokens"),
        (("/detokenize", {"tokens": "abc"}), "tokens"),
        (("/detokenize", {"tokens": [True]}), "tokens.0"),
        (("/detokenize", {"tokens": [-1]}), "tokens"),
        (("/detokenize", {"tokens": [vocab]}), "tokens"),
        (("/detokenize", {"tokens": [2**64]}), "tokens.0"),
    ]


def row_id(row: Any) -> str:
    (path, body), param = row
    return f"{path} {param} {body if isinstance(body, bytes) else json.dumps(body)}"[:100]
