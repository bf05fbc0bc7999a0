"""From the body of a request to a turn: what the model sees, and what its output is held to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from octavo.base.errors import ContextLengthExceeded, InvalidRequest, RequestError
from octavo.base.params import GrammarSpec
from octavo.served.messages import Message
from octavo.served.model import Prepared, ServedModel
from octavo.served.turn import Conversation, Function, MediaOptions, ReplyWishes, ToolChoice, Turn
from octavo.server.http.exchange import Exchange
from octavo.server.openai.conversation import shown_tools, unread_variables
from octavo.server.openai.protocol import conversation as chat
from octavo.server.openai.serving import Serving
from octavo.server.responses.protocol.request import (
    LOGPROBS,
    SAMPLING_FIELDS,
    ConversationFields,
    FunctionTool,
    ResponsesRequest,
    TextFormat,
)
from octavo.text.grammars.grammar import ANY_OBJECT, GrammarLimits, spec_of_schema

#: What this API calls chat's fields for templates, and our parameters.
_SWITCHES = {"reasoning_effort": "reasoning.effort", "verbosity": "text.verbosity"}
_NAMES = {"max_tokens": "max_output_tokens", "logprobs": "top_logprobs", "tools.*.function": "tools.*"}


@dataclass(frozen=True)
class Offered:
    """The functions that a model is told of, and may call.

    `places`: which of the request's tools each is of. `may_call`: the model may decide, whatever the server's flag
    says.
    """

    functions: Sequence[FunctionTool]
    choice: ToolChoice | None
    places: Sequence[int]
    may_call: bool = False

    @property
    def forces_calls(self) -> bool:
        """The model writes no text, which a format of it could hold."""
        return self.choice is not None and self.choice.forces_calls


def offered_of(request: ConversationFields) -> Offered:
    """The functions of a request that has no others."""
    choice = request.tool_choice
    assert choice is None or isinstance(choice, ToolChoice)
    functions = [tool for tool in request.tools or () if isinstance(tool, FunctionTool)]
    return Offered(functions, choice, range(len(functions)))


@contextmanager
def own_place(offered: Offered) -> Iterator[None]:
    """Errors about a message leave the block as errors of `input`: the items have other numbers. So have tools."""
    try:
        yield
    except RequestError as exc:
        first, *rest = (exc.param or "").split(".")
        if first == "messages":
            exc.param = "input"
        elif first == "tools" and rest and rest[0].isdecimal() and int(rest[0]) < len(offered.places):
            exc.param = ".".join([first, str(offered.places[int(rest[0])]), *rest[1:]])
        raise


def constraint_of(text_format: TextFormat | None, limits: GrammarLimits) -> GrammarSpec | None:
    """Raises `InvalidRequest`."""
    if text_format is None or text_format.type == "text":
        return None
    schema, param = ANY_OBJECT, "text.format"
    if text_format.type == "json_schema":
        if not text_format.name:
            raise InvalidRequest("A format of the type `json_schema` needs a `name`.", "text.format.name")
        if text_format.schema_ is None:
            raise InvalidRequest("A format of the type `json_schema` needs a `schema`.", "text.format.schema")
        schema, param = text_format.schema_, "text.format.schema"
    elif text_format.schema_ is not None:
        raise InvalidRequest("A `schema` belongs to a format of the type `json_schema`.", "text.format.schema")
    return spec_of_schema(schema, param, limits)


def wishes_of(request: ResponsesRequest, offered: Offered) -> ReplyWishes:
    return ReplyWishes(
        functions=[Function(tool.name, tool.parameters, bool(tool.strict)) for tool in offered.functions],
        choice=offered.choice,
        may_call=offered.may_call,
        parallel_calls=request.parallel_tool_calls is not False,
        thinking_budget=request.thinking_token_budget,
    )


def conversation_of(
    request: ConversationFields, messages: Sequence[Message], serving: Serving, offered: Offered
) -> Conversation:
    choice = offered.choice
    return Conversation(
        messages=messages,
        tools=shown_tools(serving.state.config, offered.functions, None if choice is None else choice.mode),
        chat_template_kwargs=_chat_fields(request).template_kwargs,
        media_options=MediaOptions(request.mm_processor_kwargs, request.media_io_kwargs),
    )


def _chat_fields(request: ConversationFields) -> chat.ConversationFields:
    return chat.ConversationFields(
        reasoning_effort=request.reasoning.effort if request.reasoning is not None else None,
        verbosity=request.text.verbosity if request.text is not None else None,
        chat_template_kwargs=request.chat_template_kwargs,
    )


def note_unheard(serving: Serving, model: ServedModel, exchange: Exchange, request: ConversationFields) -> None:
    """Name in the reply what no template reads, and the summaries that nobody here writes."""
    variables = model.renderer.template_variables
    switches = _chat_fields(request).template_switches()
    unheard = [_SWITCHES[name] for name, known in switches.items() if not variables & known]
    reasoning = request.reasoning
    if reasoning is not None and (reasoning.summary or reasoning.generate_summary):
        unheard.append("reasoning.summary")
    if isinstance(request, ResponsesRequest) and request.service_tier not in (None, "auto", "default"):
        unheard.append("service_tier")
    unheard += unread_variables(serving, model, request.chat_template_kwargs)
    if unheard:
        serving.note_ignored(exchange, unheard)


def turn_of(
    request: ResponsesRequest,
    conversation: Conversation,
    offered: Offered,
    model: ServedModel,
    request_id: str,
    trace_headers: tuple[tuple[str, str], ...],
) -> Turn:
    """Raises `InvalidRequest`."""
    top = request.top_logprobs
    has_logprobs = LOGPROBS in (request.include or ())
    if top and not has_logprobs:
        raise InvalidRequest(f"`top_logprobs` needs {LOGPROBS} in `include`.", "top_logprobs")
    sampling = {name: value for name in SAMPLING_FIELDS if (value := getattr(request, name)) is not None}
    sampling |= request.sampler_values()
    sampling |= {"stop": tuple(request.stop), "logprobs": (top or 0) if has_logprobs else None}
    if request.logprob_token_ids:
        if not has_logprobs:
            raise InvalidRequest(f"`logprob_token_ids` needs {LOGPROBS} in `include`.", "logprob_token_ids")
        sampling["logprob_token_ids"] = tuple(request.logprob_token_ids)
    if request.repetition_detection is not None:
        sampling["repetition_detection"] = request.repetition_detection.detection()
    if request.max_output_tokens is not None:
        sampling["max_tokens"] = request.max_output_tokens
    constraint = constraint_of(request.text.format if request.text is not None else None, model.grammar_limits)
    return Turn(
        request_id=request_id,
        prompts=[conversation],
        sampling=sampling,
        prompt_param="input",
        constraint=None if offered.forces_calls else constraint,
        wishes=wishes_of(request, offered),
        priority=request.priority or 0,
        cache_salt=request.cache_salt or "",
        is_whole=not request.stream and not request.background,
        trace_headers=trace_headers,
        names=_NAMES,
    )


async def prepared(model: ServedModel, turn: Turn, *, truncates: bool) -> Prepared:
    """`truncates`: what stands first in the conversation, but for its instructions, is left out until the rest fits.

    Raises as `ServedModel.prepare`.
    """
    try:
        return await model.prepare(turn)
    except ContextLengthExceeded:
        if not truncates:
            raise
    return await _truncated(model, turn)


async def _truncated(model: ServedModel, turn: Turn) -> Prepared:
    [conversation] = turn.prompts
    assert isinstance(conversation, Conversation)
    messages = conversation.messages
    num_kept = next((i for i, m in enumerate(messages) if m["role"] not in ("system", "developer")), len(messages))
    users = [i for i in range(num_kept + 1, len(messages)) if messages[i]["role"] == "user"]
    # Within the last turn, which may be long: an output does not stand without its call.
    last = users[-1] if users else num_kept
    others = [i for i in range(last + 1, len(messages)) if messages[i]["role"] not in ("tool", "user")]

    async def cut(start: int) -> Prepared:
        rest = replace(conversation, messages=[*messages[:num_kept], *messages[start:]])
        return await model.prepare(replace(turn, prompts=[rest]))

    async def first_that_fits(starts: Sequence[int]) -> Prepared:
        best = await cut(starts[-1])  # raises when not even the last fits
        low, high = 0, len(starts) - 1
        while low < high:
            middle = (low + high) // 2
            try:
                best = await cut(starts[middle])
                high = middle
            except ContextLengthExceeded:
                low = middle + 1
        return best

    if users:
        try:
            return await first_that_fits(users)
        except ContextLengthExceeded:
            if not others:
                raise
    return await first_that_fits(others or [num_kept])
