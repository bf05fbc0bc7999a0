"""Proves grammars, in a process of its own: `python -m octavo.text.grammars.helper`.

Grammars come from strangers and are compiled by native code, which may run for long or overflow a stack. Whoever
started this process may kill it at any moment; nothing is lost but the grammar in hand.

Frames on stdin and stdout: 4 bytes of length, little endian, then JSON. In: {kind, source, options, frames}. Out:
{grammar}, the canonical text that the engine compiles again, or {error}.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import threading
from collections.abc import Sequence
from typing import Any, Final

import llguidance
from llguidance.gbnf_to_lark import gbnf_to_lark

from octavo.base.frames import serve_frames
from octavo.base.grammar import LIMITS, STACK_BYTES, ByteVocabulary
from octavo.text.grammars.lark_dialect import LarkError, plain_lark

#: The stack counts too, as address space.
MAX_ADDRESS_SPACE: Final = STACK_BYTES + (1 << 30)
_EOS: Final = 256
_DIRECTIVE: Final = re.compile(r"^[ \t]*%llguidance[ \t]*(\{.*\})?[ \t]*$", re.MULTILINE)
_STRING: Final = re.compile(r'"(?:\\.|[^"\\\n])*"')
_SLASH: Final = re.compile(r"\\.|/|\n", re.DOTALL)


class Refused(Exception):
    """The grammar cannot be used; the text is for its author."""


def canonical(kind: str, source: Any, options: dict[str, Any], frames: Sequence[dict[str, str]] = ()) -> str:
    """The grammar as Lark text in which no token is forced: which spelling of a text is taken is the model's choice."""
    return _canonical(kind, source, options, frames, "lark")


def _canonical(kind: str, source: Any, options: dict[str, Any], frames: Sequence[dict[str, str]], form: str) -> str:
    """`form`: "lark" for the engine, "proof" for the vocabulary of bytes, which has no special tokens."""
    text = source[form] if kind == "lark" else _as_lark(kind, source, options)
    text, own = _without_directive(text)
    for frame in frames:
        text = f"{frame[form]}\nbody: %lark {{\n{text}\n}}"
    return _lark(text, own)


def _as_lark(kind: str, source: Any, options: dict[str, Any]) -> str:
    if kind == "json":
        return f"start: %json {_json(source, options)}"
    if kind == "regex":
        return f"start: /{_inside_slashes(source)}/"
    if kind == "choice":
        return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in source)
    if kind == "structural_tag":
        return _structural(source, options)
    plain = _STRING.sub("", source)
    if "%json" in plain:
        raise Refused("A grammar cannot contain %json; send the schema as `json`.")
    try:
        lark = gbnf_to_lark(source) if "::=" in plain else plain_lark(source)
    except RecursionError:
        raise Refused("The grammar is nested too deeply.") from None
    except LarkError as exc:
        raise Refused(f"The grammar, which has no `::=` of GBNF, is no Lark that can be used: {exc}.") from None
    except Exception as exc:  # noqa: BLE001  (a parser of somebody else's: whatever it raises is about the text)
        raise Refused(f"The grammar has `::=` and is no GBNF: {exc}") from None
    return str(lark)


def _lark(text: str, options: dict[str, Any] | None = None) -> str:
    """`text` with the options of the engine that octavo relies on, and the author's own."""
    text, own = _without_directive(text)
    return f"%llguidance {json.dumps(own | (options or {}) | {'no_forcing': True})}\n{text}"


def _without_directive(text: str) -> tuple[str, dict[str, Any]]:
    found = _DIRECTIVE.search(text)
    if found is None:
        return text, {}
    try:
        options = json.loads(found[1] or "{}")
    except ValueError:
        raise Refused("The options after %llguidance are not JSON.") from None
    if not isinstance(options, dict) or options.keys() - {"no_forcing", "allow_initial_skip"}:
        raise Refused("The options after %llguidance are not supported.")
    return text[: found.start()] + text[found.end() :], options


def _json(schema: Any, options: dict[str, Any]) -> str:
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    return json.dumps(schema | {"x-guidance": options})


def _inside_slashes(regex: str) -> str:
    return _SLASH.sub(lambda found: {"/": "\\/", "\n": "\\n"}.get(found[0], found[0]), regex)


def _structural(tags: list[dict[str, Any]], options: dict[str, Any]) -> str:
    """Free text; after a trigger the rest of its tag's beginning, a value of the schema, and the end.

    tags: {trigger, begin, schema, end}, where `begin` starts with `trigger`. Tags of one trigger share its rule.
    """
    triggers: dict[str, list[int]] = {}
    for i, tag in enumerate(tags):
        triggers.setdefault(tag["trigger"], []).append(i)
    lines = [f"start: ({' | '.join(f'call_{i}' for i in range(len(triggers)))})* rest", "rest: TEXT"]
    lines.append(r"TEXT: /(.|\n)*/")
    for i, (trigger, members) in enumerate(triggers.items()):
        lines.append(f"head_{i}[lazy]: TEXT {json.dumps(trigger)}")
        lines.append(f"call_{i}: head_{i} ({' | '.join(f'tag_{m}' for m in members)})")
        for m in members:
            tag = tags[m]
            begin = tag["begin"][len(trigger) :]
            parts = [json.dumps(begin) if begin else "", f"%json {_json(tag['schema'], options)}"]
            parts.append(json.dumps(tag["end"]) if tag["end"] else "")
            lines.append(f"tag_{m}: {' '.join(filter(None, parts))}")
    return "\n".join(lines)


def make_prover() -> llguidance.LLTokenizer:
    """A vocabulary of the 256 bytes, enough to see whether a grammar has a first step."""
    tokens = [bytes([i]) for i in range(_EOS)] + [b"</s>"]
    vocabulary: Any = ByteVocabulary(tokens, [_EOS], [_EOS])
    return llguidance.LLTokenizer(vocabulary, eos_token=[_EOS], slices=[])


def prove(grammar: str, tokenizer: llguidance.LLTokenizer) -> None:
    """Compile, and take the first step. Raises `Refused`."""
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=llguidance.LLParserLimits(**LIMITS))
    if not matcher.is_error() and not any(matcher.compute_bitmask()):
        raise Refused("No text at all fits the grammar.")
    if matcher.is_error():
        error = matcher.get_error()
        raise Refused("No text at all fits the grammar." if "NoExtension" in error else _first_lines(error))


def _first_lines(error: str) -> str:
    """The message without the parser's state and without the excerpt of a grammar that the caller did not write."""
    text = error.split("<state>")[0].split("\n   1 | ")[0].strip()
    return text if len(text) <= 400 else text[:400] + "..."


def handle(request: dict[str, Any], tokenizer: llguidance.LLTokenizer) -> dict[str, str]:
    try:
        parts = (request["kind"], request["source"], request["options"], request["frames"])
        prove(_canonical(*parts, "proof"), tokenizer)
        grammar = canonical(*parts)
    except Refused as exc:
        return {"error": str(exc)}
    except (MemoryError, RecursionError):
        return {"error": "The grammar is too large."}
    except BaseException as exc:  # noqa: BLE001  (a panic of the library is a BaseException)
        return {"error": f"The grammar cannot be compiled: {_first_lines(str(exc))}"}
    return {"grammar": grammar}


def _serve() -> None:
    tokenizer = make_prover()
    serve_frames(lambda request: handle(request, tokenizer))


def main() -> None:
    # A terminal sends INT to the whole group; this process ends when its input does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE, MAX_ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=_serve, name="octavo-grammar")
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
