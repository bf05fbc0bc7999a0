"""The whole server, seen by the official `openai` client: a real process with real weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from support.server_process import ServerProcess

MODEL = "smol"
KEY = "test-key"
CONTEXT = 1024
FLAGS = (
    "--served-model-name", MODEL, "--api-key", KEY, "--max-model-len", str(CONTEXT),
    "--num-kv-blocks-override", "256",
)  # fmt: skip
QUESTION: list[Any] = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path) -> Iterator[ServerProcess]:
    with ServerProcess(smollm2_gguf, *FLAGS) as process:
        yield process.wait_ready(180)


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


def streamed_text(events: list[Any], index: int = 0) -> str:
    choices = (choice for event in events for choice in event.choices)
    return "".join(choice.delta.content or "" for choice in choices if choice.index == index)


# ---------------------------------------------------------------- chat
def test_chat(client: OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=24, temperature=0)
    (choice,) = reply.choices
    assert reply.model == MODEL and reply.object == "chat.completion" and reply.id.startswith("chatcmpl-")
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert reply.usage is not None
    assert 0 < reply.usage.completion_tokens <= 24
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_chat_streamed_is_chat_whole(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 32, "temperature": 0}
    whole = client.chat.completions.create(**fields)
    events = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    assert events[0].choices[0].delta.role == "assistant" and events[0].choices[0].delta.content == ""
    assert streamed_text(events) == whole.choices[0].message.content
    assert [e.choices[0].finish_reason for e in events if e.choices and e.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert events[-1].choices == [] and events[-1].usage is not None and whole.usage is not None
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert events[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert len({e.id for e in events}) == 1


def test_n_samples_differ_and_usage_sums_them(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=12, n=4, temperature=1.5, seed=1, extra_body={"ignore_eos": True}
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert len({choice.message.content for choice in reply.choices}) > 1
    assert reply.usage is not None and reply.usage.completion_tokens == 48


def test_n_samples_streamed_are_those_of_the_whole_reply(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "max_tokens": 12, "n": 3, "seed": 7}
    whole = client.chat.completions.create(**fields)
    events = list(client.chat.completions.create(**fields, stream=True))
    for choice in whole.choices:
        assert streamed_text(events, choice.index) == choice.message.content
    finishes = [c.index for e in events for c in e.choices if c.finish_reason is not None]
    assert sorted(finishes) == [0, 1, 2]


def test_s8_the_same_seed_gives_the_same_text_also_in_company(client: OpenAI) -> None:
    def ask(seed: int) -> str | None:
        reply = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=16, temperature=1, seed=seed)
        return reply.choices[0].message.content

    alone = ask(42)
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(ask, [42, 1, 2, 42, 3, 42]))
    assert [together[0], together[3], together[5]] == [alone] * 3
    assert len(set(together)) > 1


def test_chat_logprobs(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and reply.usage is not None
    assert len(logprobs.content) == reply.usage.completion_tokens
    for entry in logprobs.content:
        tops = [top.logprob for top in entry.top_logprobs]
        assert len(tops) == 3 and tops == sorted(tops, reverse=True)
        assert entry.logprob == tops[0] <= 0  # greedy: the sampled token is the most likely
        assert entry.bytes is not None and bytes(entry.bytes).decode() == entry.token


def test_s11_a_stop_string_ends_the_text_before_it(client: OpenAI) -> None:
    prompt = "1, 2, 3, 4, 5, 6, 7, 8,"
    plain = client.completions.create(model=MODEL, prompt=prompt, max_tokens=24, temperature=0).choices[0].text
    stop = plain[8:11]
    for stream in (False, True):
        reply: Any = client.completions.create(
            model=MODEL, prompt=prompt, max_tokens=24, temperature=0, stop=[stop, "never"], stream=stream
        )
        parts = [e.choices[0] for e in reply] if stream else [reply.choices[0]]
        assert "".join(part.text for part in parts) == plain[: plain.index(stop)]
        assert parts[-1].finish_reason == "stop" and parts[-1].stop_reason == stop


def test_s15_stop_token_ids_min_tokens_and_ignore_eos(client: OpenAI) -> None:
    extra = {"ignore_eos": True, "min_tokens": 10}
    reply = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=10, extra_body=extra)
    assert reply.usage is not None and reply.usage.completion_tokens == 10
    assert reply.choices[0].finish_reason == "length"


def test_s12_logit_bias_forces_a_token(client: OpenAI) -> None:
    token = client.post("/../tokenize", body={"prompt": "!"}, cast_to=object)["tokens"][0]  # type: ignore[index]
    reply = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=5, logit_bias={str(token): 100})
    assert reply.choices[0].message.content == "!!!!!"


def test_continue_final_message(client: OpenAI) -> None:
    messages: list[Any] = [*QUESTION, {"role": "assistant", "content": "Red, green and"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    reply = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=4, temperature=0, extra_body=extra
    )
    assert "blue" in (reply.choices[0].message.content or "").lower()


# ---------------------------------------------------------------- completions
def test_completion_streamed_is_completion_whole(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**fields)
    events = list(client.completions.create(**fields, stream=True))
    assert "Paris" in whole.choices[0].text
    assert "".join(e.choices[0].text for e in events) == whole.choices[0].text
    assert whole.id.startswith("cmpl-") and whole.object == "text_completion"


def test_text_and_token_ids_are_the_same_prompt(client: OpenAI) -> None:
    text = "Once upon a time"
    ids = client.post("/../tokenize", body={"prompt": text}, cast_to=object)["tokens"]  # type: ignore[index]
    prompts: list[Any] = [text, ids, [text, text], [ids, ids]]
    texts = set()
    for prompt in prompts:
        reply = client.completions.create(model=MODEL, prompt=prompt, max_tokens=8, temperature=0)
        texts |= {choice.text for choice in reply.choices}
        assert len(reply.choices) == (1 if prompt in (text, ids) else 2)
    assert len(texts) == 1


def test_completion_logprobs_tell_where_the_tokens_stand(client: OpenAI) -> None:
    reply = client.completions.create(model=MODEL, prompt="The sky is", max_tokens=6, temperature=0, logprobs=2)
    choice = reply.choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None and logprobs.tokens and logprobs.text_offset and logprobs.top_logprobs
    assert "".join(logprobs.tokens) == choice.text
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert choice.text[offset : offset + len(token)] == token
    assert all(2 <= len(top) <= 3 for top in logprobs.top_logprobs)


def test_s20_a_text_scores_the_same_as_when_it_was_made(client: OpenAI) -> None:
    made = client.completions.create(model=MODEL, prompt="The sky is", max_tokens=8, temperature=0, logprobs=1)
    text = made.choices[0].text
    scored = client.completions.create(model=MODEL, prompt="The sky is" + text, max_tokens=0, echo=True, logprobs=1)
    assert scored.choices[0].text == "The sky is" + text
    first, second = made.choices[0].logprobs, scored.choices[0].logprobs
    assert first is not None and second is not None and first.token_logprobs and second.token_logprobs
    assert second.tokens is not None and first.tokens == second.tokens[-len(first.tokens or []) :]
    assert second.token_logprobs[0] is None
    assert second.token_logprobs[-len(first.token_logprobs) :] == first.token_logprobs
    assert scored.usage is not None and scored.usage.completion_tokens == 0


def test_s19_prompt_logprobs(client: OpenAI) -> None:
    reply: Any = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=1, extra_body={"prompt_logprobs": 2}
    )
    scores = reply.prompt_logprobs
    assert len(scores) == reply.usage.prompt_tokens and scores[0] is None
    for entries in scores[1:]:
        assert 2 <= len(entries) <= 3
        assert {entry["rank"] for entry in entries.values()} >= {1, 2}


def test_s10_best_of_returns_the_most_likely(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "prompt": "A colour:", "max_tokens": 6, "seed": 5, "logprobs": 0}
    every = client.completions.create(**fields, n=4).choices
    sums = {choice.text: sum(choice.logprobs.token_logprobs) for choice in every}  # type: ignore[union-attr, arg-type]
    best = client.completions.create(**fields, n=2, best_of=4).choices
    assert [choice.text for choice in best] == sorted(sums, key=lambda text: -sums[text])[:2]


def test_s27_allowed_token_ids_and_bad_words(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": MODEL, "prompt": "One two three", "max_tokens": 12, "temperature": 0}
    plain: Any = client.completions.create(**fields, extra_body={"return_token_ids": True})
    ids = plain.choices[0].token_ids
    word = plain.choices[0].text.split()[0]
    without = client.completions.create(**fields, extra_body={"bad_words": [word]}).choices[0].text
    assert word not in without.split()
    only: Any = client.completions.create(**fields, extra_body={"allowed_token_ids": ids[:2], "return_token_ids": True})
    assert set(only.choices[0].token_ids) <= set(ids[:2])


def test_s26_a_long_prompt_is_cut_when_asked_for(client: OpenAI) -> None:
    prompt = [2000 + i for i in range(CONTEXT + 100)]
    fields: dict[str, Any] = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "temperature": 0}
    reply = client.completions.create(**fields, extra_body={"truncate_prompt_tokens": -1})
    assert reply.usage is not None and reply.usage.prompt_tokens == CONTEXT - 4
    with pytest.raises(openai.BadRequestError):
        client.completions.create(**fields)


def test_max_tokens_is_16_by_default(client: OpenAI) -> None:
    reply = client.completions.create(model=MODEL, prompt="a b c", extra_body={"ignore_eos": True})
    assert reply.usage is not None and reply.usage.completion_tokens == 16


def test_the_context_can_be_filled_to_its_last_token(client: OpenAI) -> None:
    prompt = [1000] * (CONTEXT - 4)
    reply = client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=None, temperature=0, extra_body={"ignore_eos": True}
    )
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (CONTEXT - 4, 4)
    assert reply.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError) as info:
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=5)
    assert info.value.code == "context_length_exceeded"


def test_the_second_time_the_prompt_is_cached(client: OpenAI) -> None:
    prompt = [2000 + i for i in range(200)]
    cached = []
    for _ in range(2):
        usage = client.completions.create(model=MODEL, prompt=prompt, max_tokens=1).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        cached.append(usage.prompt_tokens_details.cached_tokens)
    assert cached[0] == 0
    assert cached[1] is not None and 150 < cached[1] < 200


# ---------------------------------------------------------------- the rest
def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize("text", ["Hello, world!", "Grüße, 世界 🙂\n\ttabs", " leading and trailing ", "a" * 500])
def test_tokenize_and_detokenize_round_trip(client: OpenAI, text: str) -> None:
    body = {"prompt": text, "add_special_tokens": False}
    reply: Any = client.post("/../tokenize", body=body, cast_to=object)
    assert reply["count"] == len(reply["tokens"]) and reply["max_model_len"] == CONTEXT
    back: Any = client.post("/../detokenize", body={"tokens": reply["tokens"]}, cast_to=object)
    assert back["prompt"] == text


def test_the_clients_errors_have_their_classes(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(model="other", messages=QUESTION)
    assert not_found.value.code == "model_not_found" and not_found.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=3)
    assert bad.value.param == "temperature" and bad.value.type == "BadRequestError"
    stranger = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model=MODEL, prompt=[1] * (CONTEXT + 1), stream=stream)


def test_a_client_that_leaves_frees_its_request(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    # What follows is served at once, not after 900 tokens; the end of the other is counted as an abort.
    client.completions.create(model=MODEL, prompt="a", max_tokens=1)
    metrics: Any = client.with_options(timeout=30).get("/../metrics", cast_to=str)
    assert 'vllm:request_success_total{finished_reason="abort",model_name="smol"} 1.0' in metrics


def test_many_clients_at_once_get_what_one_gets(server: ServerProcess, client: OpenAI) -> None:
    prompts = [f"Count from {i}:" for i in range(8)]

    def alone(prompt: str) -> str:
        return client.completions.create(model=MODEL, prompt=prompt, max_tokens=12, temperature=0).choices[0].text

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as many:

            async def one(prompt: str) -> str:
                stream = await many.completions.create(
                    model=MODEL, prompt=prompt, max_tokens=12, temperature=0, stream=True
                )
                return "".join([event.choices[0].text async for event in stream])

            return list(await asyncio.gather(*map(one, prompts)))

    assert asyncio.run(together()) == [alone(prompt) for prompt in prompts]


def test_unknown_fields_are_named_in_a_header(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=QUESTION, max_tokens=1, extra_body={"nonsense": 1}
    )
    assert raw.headers["x-octavo-ignored-fields"] == "nonsense"
    assert raw.parse().choices
