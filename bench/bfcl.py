"""Tool calling on BFCL's questions: how many calls of a running server are right, and whether all of them are sound.

    python bench/bfcl.py --url http://127.0.0.1:8000 --wheel bfcl_eval-2026.3.23-py3-none-any.whl --limit 40
    python bench/bfcl.py ... --reference transformers --gguf MODEL.gguf      # and what transformers makes of them

Each question is asked in each mode, streamed and not, at temperature 0. Besides the score, these are counted, and any
of them makes the bench fail: replies that differ when streamed, arguments that are no JSON or do not fit the schema of
their function although they were forced, requests that fail, prompts whose tokens are not those of transformers.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import openai
from bfcl_data import CATEGORIES, SINGLE_CALL, Question, load
from bfcl_reference import Transformers, read_calls
from bfcl_score import Call, mistake

MODES = ("auto", "required", "named")
REFERENCE = "transformers"


@dataclass
class Result:
    """One question in one mode. `errors`: what must not be, whatever the model thinks."""

    id: str
    category: str
    mode: str
    mistake: str
    calls: list[tuple[str, str]] = field(default_factory=list)
    content: str = ""
    finish_reason: str = ""
    errors: list[str] = field(default_factory=list)
    prompt_ids: list[int] = field(default_factory=list)  # these three of the reference only
    token_ids: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)


@dataclass
class Reply:
    calls: list[tuple[str, str]]
    content: str
    finish_reason: str


class Asker:
    """Asks a server."""

    def __init__(self, url: str, model: str | None, max_tokens: int) -> None:
        self._url = url.rstrip("/")
        self._client = openai.OpenAI(base_url=f"{self._url}/v1", api_key="none", max_retries=0, timeout=600)
        self._model = model or self._client.models.list().data[0].id
        self._max_tokens = max_tokens

    def ask(self, question: Question, mode: str) -> Result:
        result = Result(question.id, question.category, mode, "")
        choice: Any = mode
        if mode == "named":
            choice = {"type": "function", "function": {"name": next(iter(question.answer[0]))}}
        fields: dict[str, Any] = {
            "model": self._model, "messages": question.messages, "tools": question.tools, "tool_choice": choice,
            "temperature": 0, "max_tokens": self._max_tokens,
        }  # fmt: skip
        try:
            whole = _whole(self._client.chat.completions.create(**fields))
            streamed = _folded(self._client.chat.completions.create(**fields, stream=True))
        except openai.APIError as error:
            result.mistake = "failed"
            result.errors.append(f"request failed: {error}")
            return result
        if whole != streamed:
            result.errors.append(f"streamed differs: {whole} / {streamed}")
        result.calls, result.content, result.finish_reason = whole.calls, whole.content, whole.finish_reason
        calls = _decoded(whole, question, mode, result.errors)
        result.mistake = mistake(question, calls)
        return result

    def prompt_ids(self, question: Question) -> list[int]:
        body = {"model": self._model, "messages": question.messages, "tools": question.tools}
        return list(self._post("/tokenize", body)["tokens"])

    def token_ids(self, prompt_ids: Sequence[int]) -> list[int]:
        """The tokens that the server generates after a prompt at temperature 0."""
        body = {
            "model": self._model, "prompt": list(prompt_ids), "temperature": 0, "max_tokens": self._max_tokens,
            "return_token_ids": True,
        }  # fmt: skip
        return list(self._post("/v1/completions", body)["choices"][0]["token_ids"])

    def _post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            self._url + path, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as reply:
            return json.load(reply)


def _whole(reply: Any) -> Reply:
    [choice] = reply.choices
    calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]
    return Reply(calls, choice.message.content or "", choice.finish_reason)


def _folded(stream: Iterable[Any]) -> Reply:
    reply = Reply([], "", "")
    for chunk in stream:
        for choice in chunk.choices:
            reply.content += choice.delta.content or ""
            reply.finish_reason += choice.finish_reason or ""
            for news in choice.delta.tool_calls or []:
                if news.index == len(reply.calls):
                    reply.calls.append((news.function.name, ""))
                name, arguments = reply.calls[news.index]
                reply.calls[news.index] = (name, arguments + (news.function.arguments or ""))
    return reply


def _decoded(reply: Reply, question: Question, mode: str, errors: list[str]) -> list[Call]:
    """The calls; what is wrong with them whatever the answer goes to `errors`."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in question.tools}
    calls: list[Call] = []
    for i, (name, text) in enumerate(reply.calls):
        try:
            arguments = json.loads(text)
        except ValueError:
            if reply.finish_reason != "length" or i + 1 < len(reply.calls):
                errors.append(f"no JSON: {text!r}")
            continue
        calls.append((name, arguments))
        if mode != "auto":
            try:
                jsonschema.validate(arguments, schemas[name])
            except (KeyError, jsonschema.ValidationError) as error:
                errors.append(f"not of the schema: {text!r}: {error!r:.200}")
    if mode != "auto" and not reply.calls and reply.finish_reason != "length":
        errors.append(f"no call: {reply.content!r}")
    return calls


# ------------------------------------------------------------------------------------------------ the reference
def reference(asker: Asker, other: Transformers, question: Question, max_tokens: int) -> Result:
    """What transformers answers."""
    generated = other.generate(question, max_tokens)
    calls = read_calls(generated.text, list(question.functions))
    result = Result(question.id, question.category, REFERENCE, mistake(question, calls), content=generated.text)
    result.calls = [(name, json.dumps(arguments)) for name, arguments in calls]
    result.prompt_ids, result.token_ids = generated.prompt_ids, generated.token_ids
    result.margins = [round(margin, 4) for margin in generated.margins]
    if asker.prompt_ids(question) != generated.prompt_ids:
        result.errors.append("the prompt's tokens are not those of transformers")
    return result


def print_differences(asker: Asker, results: Sequence[Result]) -> None:
    """Where one of the two is right and the other is not: the token at which their texts part, and how close it was."""
    own = {result.id: result for result in results if result.mode == "auto"}
    for its in results:
        mine = own.get(its.id)
        if its.mode != REFERENCE or mine is None or bool(mine.mistake) == bool(its.mistake):
            continue
        pairs = enumerate(zip(asker.token_ids(its.prompt_ids), its.token_ids, strict=False))
        place = next((i for i, (ours, theirs) in pairs if ours != theirs), None)
        margin = f"texts part at token {place}, margin {its.margins[place]}" if place is not None else "one text"
        print(f"{its.id}: octavo {mine.mistake or 'right'} | transformers {its.mistake or 'right'} | {margin}")
        print(f"    octavo {mine.calls} {mine.content!r:.300}\n    transformers {its.content!r:.400}")


# ------------------------------------------------------------------------------------------------ the table
def table(results: Sequence[Result]) -> str:
    modes = list(dict.fromkeys(result.mode for result in results))
    lines = [f"| category | questions | {' | '.join(modes)} |", "|---|---|" + "---|" * len(modes)]
    groups = [(category, [r for r in results if r.category == category]) for category in CATEGORIES]
    for category, group in [*groups, ("all", list(results))]:
        if not group:
            continue
        cells = []
        for mode in modes:
            its = [result for result in group if result.mode == mode]
            right = sum(not result.mistake for result in its)
            cells.append(f"{right} / {len(its)} ({100 * right / len(its):.0f} %)" if its else "")
        lines.append(f"| {category} | {len({result.id for result in group})} | {' | '.join(cells)} |")
    return "\n".join(lines)


class Results:
    """Those of this run, and those that the output file has already: a run that was cut off goes on."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.all: list[Result] = []
        if file is not None and file.exists():
            self.all = [Result(**json.loads(line)) for line in file.read_text().splitlines()]
        self._known = {(result.id, result.mode) for result in self.all}

    def has(self, question: Question, mode: str) -> bool:
        return (question.id, mode) in self._known

    def add(self, result: Result) -> None:
        self.all.append(result)
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(json.dumps(asdict(result)) + "\n")


def asks(question: Question, mode: str) -> bool:
    """Whether the mode makes sense: where no call is due, none is forced."""
    return bool(question.answer) or mode == "auto" if mode != "named" else question.category in SINGLE_CALL


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", help="the served name; default: the first one")
    parser.add_argument("--wheel", type=Path, required=True, help="bfcl-eval, from the package index")
    parser.add_argument("--categories", default=",".join(CATEGORIES))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--limit", type=int, help="questions of each category")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--reference", choices=[REFERENCE])
    parser.add_argument("--gguf", type=Path, help="the file that the server serves, for the reference")
    parser.add_argument("--reference-threads", type=int)
    parser.add_argument("--output", type=Path, help="JSON lines; results that it has are kept")
    args = parser.parse_args()
    if args.reference and not args.gguf:
        parser.error("--reference needs --gguf")
    questions = [q for category in args.categories.split(",") for q in load(args.wheel, category, args.limit)]
    jobs = [(q, mode) for mode in filter(None, args.modes.split(",")) for q in questions if asks(q, mode)]
    results = Results(args.output)
    asker = Asker(args.url, args.model, args.max_tokens)
    with ThreadPoolExecutor(args.concurrency) as pool:
        wanted = [(q, mode) for q, mode in jobs if not results.has(q, mode)]
        for done in as_completed([pool.submit(asker.ask, *job) for job in wanted]):
            results.add(done.result())
    left = [question for question in questions if not results.has(question, REFERENCE)]
    if args.reference and left:
        other = Transformers(args.gguf, args.reference_threads)
        for question in left:
            results.add(reference(asker, other, question, args.max_tokens))
    return report(asker, results.all)


def report(asker: Asker, results: Sequence[Result]) -> int:
    """The exit code."""
    print_differences(asker, results)
    print(table(results))
    errors = [(result, error) for result in results for error in result.errors]
    for result, error in errors:
        print(f"ERROR {result.id} {result.mode}: {error}")
    print(f"{len(errors)} errors")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
