"""Chat templates of a whole server, with the fake model's engine: hostile ones at start and in requests, flags, ids."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.client_fakes import TOKENIZER
from support.server_process import Background, ServerProcess, bound, eventually

EXAMPLES = Path(__file__).parents[2] / "examples"
USER = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ mood }}"
#: One call that does not return.
ENDLESS = (
    "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}"
)

Start = Callable[..., ServerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    servers: list[ServerProcess] = []

    def start(template: Any, *flags: str) -> ServerProcess:
        TOKENIZER._backend.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "config.json").write_text("{}")
        config = {"eos_token": "<eos>"} | ({} if template is None else {"chat_template": template})
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        servers.append(ServerProcess(tmp_path, *flags, fake=True))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def chat(server: ServerProcess, **fields: Any) -> Any:
    return server.request("POST", "/v1/chat/completions", {"messages": USER, "max_tokens": 2, **fields})


def prompt(server: ServerProcess, **fields: Any) -> str:
    ids = server.request("POST", "/tokenize", {"messages": USER, **fields}).json["tokens"]
    text: str = server.request("POST", "/detokenize", {"tokens": ids}).json["prompt"]
    return text


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(10**9) %}x{% endfor %}", "cannot render even a short conversation"),
        ("{{ lipsum.__globals__ }}", "'lipsum' is undefined"),
        ("{{ " + "(" * 6000 + " }}", "cannot be compiled"),
        (ENDLESS, "needs more than"),
    ],
    ids=["range", "globals", "brackets", "one call"],
)
def test_w01_a_model_with_a_hostile_template_is_refused_at_start(start: Start, template: str, reason: str) -> None:
    server = start(template)
    assert server.wait(10) == 1
    assert time.monotonic() - server.started < bound(10)
    assert f"The chat template 'default' of {server.process.args[3]}" in server.stderr  # type: ignore[index]
    assert reason in server.stderr and "Traceback" not in server.stderr


def test_w01_t4_without_a_template_chat_is_a_400_and_texts_work(start: Start) -> None:
    server = start(None).wait_ready()
    reply = chat(server)
    assert reply.status == 400
    assert reply.json["error"]["message"] == (
        "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template "
        "if the tokenizer does not define one."
    )
    assert server.complete("a", max_tokens=2).status == 200


def test_t22_an_endless_template_of_a_request_holds_up_nobody(start: Start) -> None:
    server = start(PLAIN, "--trust-request-chat-template").wait_ready()
    assert prompt(server, chat_template="<{{ messages[0].content }}>") == "<Hi>"
    hostile = Background()
    for template in (ENDLESS, ENDLESS + " "):
        hostile.start(lambda template=template: chat(server, chat_template=template))
    begin, longest = time.monotonic(), 0.0
    while time.monotonic() - begin < 2:
        started = time.monotonic()
        assert chat(server).status == 200
        assert server.request("GET", "/health").status == 200
        longest = max(longest, time.monotonic() - started)
    assert longest < bound(1)
    for reply in hostile.join(30):
        assert (reply.status, reply.json["error"]["param"]) == (400, "chat_template")
        assert "needs more than" in reply.json["error"]["message"]
    assert prompt(server, chat_template="<{{ messages[0].content }}>") == "<Hi>"


def test_a_server_ends_at_once_in_the_middle_of_a_template(start: Start) -> None:
    server = start(PLAIN, "--trust-request-chat-template", "--shutdown-timeout", "0").wait_ready()
    background = Background()
    for _ in range(3):
        background.start(lambda: chat(server, chat_template=ENDLESS))

    def helper() -> psutil.Process | None:
        children = psutil.Process(server.process.pid).children()
        return next((child for child in children if "octavo.text.templates.helper" in child.cmdline()), None)

    found = eventually(helper, 20, "a helper")
    eventually(lambda: found.cpu_times().user > 0.5 or None, 20, "a helper at work")
    server.signal(signal.SIGTERM)
    assert server.wait(4) == 0
    assert not found.is_running()
    background.join(10)


def test_t1_t3_t22_names_work_in_requests_and_on_the_command_line(start: Start) -> None:
    named = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": "T{{ tools | length }}"}]
    named.append({"name": "rag", "template": "R{% if documents %}{{ documents[0].text }}{% endif %}"})
    server = start(named).wait_ready()
    assert prompt(server) == "user: Hi\n"
    assert prompt(server, tools=TOOLS) == "T1"
    assert prompt(server, chat_template="rag", documents=[{"text": "D"}]) == "RD"
    assert chat(server, chat_template="rag", documents=[{"text": "D"}]).json["usage"]["prompt_tokens"] == 2
    refused = chat(server, chat_template="{{ 1 }}")
    assert (refused.status, refused.json["error"]["param"]) == (400, "chat_template")
    server = start(named, "--chat-template", "rag").wait_ready()
    assert prompt(server, tools=TOOLS) == "R"


def test_t16_t23_t24_flags_reach_the_template(start: Start) -> None:
    hermes = EXAMPLES / "tool_chat_template_hermes.jinja"
    server = start(PLAIN, "--chat-template", str(hermes)).wait_ready()
    assert "<tools>\n" + json.dumps(TOOLS[0]) + "\n</tools>" in prompt(server, tools=TOOLS)
    server = start(PLAIN, "--default-chat-template-kwargs", '{"mood": "fine"}').wait_ready()
    assert prompt(server) == "user: Hi\nfine"
    assert prompt(server, chat_template_kwargs={"mood": "bad"}) == "user: Hi\nbad"
    reply = chat(server, chat_template_kwargs={"self": 1, "moood": 2})
    assert reply.status == 200
    assert reply.headers["x-octavo-ignored-fields"] == "chat_template_kwargs.moood, chat_template_kwargs.self"
    assert chat(server, chat_template_kwargs={"messages": []}).json["error"]["param"] == "chat_template_kwargs.messages"


def test_d17_arguments_that_were_cut_off_can_be_sent_back(start: Start) -> None:
    server = start(PLAIN).wait_ready()
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}
    reply = chat(server, messages=[*USER, {"role": "assistant", "tool_calls": [call]}])
    assert reply.status == 200
