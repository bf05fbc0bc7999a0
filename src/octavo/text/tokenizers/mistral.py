"""`--tokenizer-mode mistral`: the vocabulary and the form of conversations that Mistral's own models were trained with.

The form has versions. A file of SentencePiece has its version in its name, tekken.json in its configuration. The
template below writes them all; special tokens stand in its text, and each part between them is encoded by itself, as
Mistral does it.

    v1   text only: "[INST] ... [/INST]" are ordinary characters
    v2   special tokens; tools and results before the last question only
    v3   results and calls have ids, of nine characters, and stay in the prompt
    v7   the system prompt between tokens of its own; results as they are
    v11  a call is its name and, behind further tokens, its arguments
    v13  tools stand at the first question; calls have no ids
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from octavo.base.errors import CheckpointError
from octavo.files.reading import MAX_VOCABULARY_BYTES, read_object
from octavo.text.tokenizers.originals import load_vocabulary_file, mistral_file
from octavo.text.tokenizers.parts import BuiltVocabulary
from octavo.text.tokenizers.tiktoken import build_tekken

_VERSION: Final = re.compile(r"v(\d+)")
_KNOWN: Final = (1, 2, 3, 7, 11, 13)

#: `version` is set in front.
_TEMPLATE: Final = r"""
{%- set ns = namespace(system='', question=[], last=-1, first=-1, results=0) %}
{%- for message in messages %}
  {%- if message.role == 'system' or message.role == 'developer' %}
    {%- if version < 7 %}{% set ns.system = ns.system + ('\n\n' if ns.system else '') + message.content %}{% endif %}
  {%- elif message.role == 'user' %}
    {%- set ns.last = loop.index0 %}
    {%- if ns.first < 0 %}{% set ns.first = loop.index0 %}{% endif %}
  {%- elif message.role not in ('assistant', 'tool') %}
    {{- raise_exception('The role ' + message.role + ' is not known to this model: system, user, assistant, tool.') }}
  {%- endif %}
{%- endfor %}
{%- if version == 1 and tools %}
  {{- raise_exception('This model cannot call tools.') }}
{%- endif %}
{{- bos_token }}
{%- for message in messages %}
  {%- if message.role == 'system' or message.role == 'developer' %}
    {%- if version >= 7 %}{{ '[SYSTEM_PROMPT]' + message.content + '[/SYSTEM_PROMPT]' }}{% endif %}
  {%- elif message.role == 'user' %}
    {%- set ns.question = ns.question + [message.content] %}
    {%- if loop.last or loop.nextitem.role != 'user' %}
      {%- set text = ns.question | join('\n\n') %}
      {%- set is_first = loop.index0 - (ns.question | length) + 1 <= ns.first %}
      {%- set ns.question = [] %}
      {%- set is_last = loop.index0 == ns.last %}
      {%- if tools and version > 1 and (is_first if version >= 13 else is_last) %}
        {{- '[AVAILABLE_TOOLS][' }}
        {%- for tool in tools %}
          {%- set function = tool.function %}
          {{- '{"type": "function", "function": {"name": ' + function.name | tojson + ', "description": ' }}
          {{- (function.description or '') | tojson + ', "parameters": ' }}
          {{- (function.parameters or {}) | tojson + '}}' }}
          {{- '' if loop.last else ', ' }}
        {%- endfor %}
        {{- '][/AVAILABLE_TOOLS]' }}
      {%- endif %}
      {%- if ns.system and (is_first if version == 1 else is_last) %}
        {%- set text = ns.system + '\n\n' + text %}
      {%- endif %}
      {{- '[INST] ' + text + ' [/INST]' if version == 1 else '[INST]' + text + '[/INST]' }}
    {%- endif %}
  {%- elif message.role == 'assistant' %}
    {%- if message.tool_calls and version == 1 %}{{ raise_exception('This model cannot call tools.') }}{% endif %}
    {%- set is_past = version == 2 and loop.index0 < ns.last %}
    {%- if message.content and not (message.tool_calls and version < 7) %}
      {{- ' ' + message.content if version == 1 else message.content.rstrip(' ') }}
    {%- endif %}
    {%- if message.tool_calls and not is_past %}
      {%- if version >= 11 %}
        {%- for call in message.tool_calls %}
          {{- '[TOOL_CALLS]' + call.function.name }}
          {%- if version == 11 and call.id %}{{ '[CALL_ID]' + call.id[-9:] }}{% endif %}
          {{- '[ARGS]' + call.function.arguments | tojson }}
        {%- endfor %}
      {%- else %}
        {{- '[TOOL_CALLS][' }}
        {%- for call in message.tool_calls %}
          {{- '{"name": ' + call.function.name | tojson + ', "arguments": ' + call.function.arguments | tojson }}
          {%- if version > 2 and call.id %}{{ ', "id": ' + call.id[-9:] | tojson }}{% endif %}
          {{- '}' if loop.last else '}, ' }}
        {%- endfor %}
        {{- ']' }}
      {%- endif %}
    {%- endif %}
    {%- if not (is_past and message.tool_calls) %}{{ eos_token }}{% endif %}
  {%- elif message.role == 'tool' %}
    {%- if version == 1 %}{{ raise_exception('This model cannot call tools.') }}{% endif %}
    {%- if version >= 13 %}
      {{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}
    {%- elif version >= 7 %}
      {{- '[TOOL_RESULTS]' + message.tool_call_id[-9:] + '[TOOL_CONTENT]' + message.content + '[/TOOL_RESULTS]' }}
    {%- else %}
      {%- set content = message.content | json_or_text %}
      {%- if version == 3 %}
        {{- '[TOOL_RESULTS]{"content": ' + content + ', "call_id": ' + message.tool_call_id[-9:] | tojson }}
        {{- '}[/TOOL_RESULTS]' }}
      {%- elif loop.index0 > ns.last %}
        {{- '[TOOL_RESULTS][{"name": ' + message.name | tojson + ', "content": ' + content + '}][/TOOL_RESULTS]' }}
      {%- endif %}
    {%- endif %}
  {%- endif %}
{%- endfor %}
"""


def load_mistral(directory: Path) -> BuiltVocabulary:
    """Raises `CheckpointError`."""
    path = mistral_file(directory)
    if path is None:
        raise CheckpointError(
            f"{directory}: --tokenizer-mode mistral reads tekken.json or tokenizer.model; neither is there."
        )
    if path.name == "tekken.json":
        content = read_object(path, MAX_VOCABULARY_BYTES)
        built = build_tekken(content, path)
        version = _version(str(content["config"].get("version")), path)
    else:
        built = load_vocabulary_file(path, {})
        version = _version(path.name.removeprefix("tokenizer.model").removeprefix(".") or "v1", path)
    template = f"{{%- set version = {version} %}}" + _TEMPLATE.strip("\n")
    return replace(built, chat_template=template)


def _version(name: str, path: Path) -> int:
    """The number in the name of a version. Raises `CheckpointError` for a form that the template does not write."""
    match = _VERSION.match(name)
    number = int(match[1]) if match else 0
    if number not in _KNOWN:
        known = ", ".join(f"v{known}" for known in _KNOWN)
        raise CheckpointError(f"{path}: conversations of version {name[:20]!r} are not known to octavo; {known} are.")
    return number
