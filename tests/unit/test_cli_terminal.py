"""`octavo chat` and `octavo complete` in a terminal, as somebody who sits there sees them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from support.client_fakes import TOKENIZER
from support.fake_api import FakeAPI, serving_fake_api
from support.server_process import ServerProcess, bound, eventually
from support.terminal_process import CTRL_D, END_OF_PASTE, PASTE, TerminalProcess

DIM, PLAIN = "\x1b[2m", "\x1b[0m"

Start = Callable[..., TerminalProcess]


@pytest.fixture
def api() -> Iterator[FakeAPI]:
    with serving_fake_api() as server:
        yield server


@pytest.fixture
def start(api: FakeAPI) -> Iterator[Start]:
    """Start a command in a terminal and wait for its first prompt."""
    with ExitStack() as stack:

        def start(command: str = "chat", *words: str, **options: Any) -> TerminalProcess:
            process = stack.enter_context(TerminalProcess(command, "--url", api.url, *words, **options))
            process.expect("> ")
            return process

        yield start


def contents(api: FakeAPI) -> list[list[str]]:
    return [[message["content"] for message in request["messages"]] for request in api.requests]


# ---------------------------------------------------------------- a conversation
def test_a_conversation_is_sent_whole_each_time(api: FakeAPI, start: Start) -> None:
    chat = start()
    assert "Talking to first. /help lists the commands, Ctrl-D ends." in chat.text
    for question in ("one", "", "Gr\u00fc\u00dfe \U0001f642"):
        chat.enter(question)
        if question:
            chat.expect("Hello!\n")
        chat.expect("> ")
    chat.type(CTRL_D)
    assert chat.wait() == 0
    assert contents(api) == [["one"], ["one", "Hello!", "Gr\u00fc\u00dfe \U0001f642"]]


def test_a_message_may_have_many_lines(api: FakeAPI, start: Start) -> None:
    chat = start()
    chat.enter("one \\")
    chat.expect("... ")
    chat.enter("two")
    chat.expect("Hello!\n> ")
    chat.enter('"""/three')
    chat.expect("... ")
    chat.enter("")
    chat.expect("... ")
    chat.enter('four"""')
    chat.expect("Hello!\n> ")
    chat.enter('"""//five"""')
    chat.expect("Hello!\n> ")
    chat.enter("//six")
    chat.expect("Hello!\n> ")
    # No Enter in between: the line ends in it are part of the text.
    chat.type(PASTE + "seven\n/eight\n\nnine" + END_OF_PASTE)
    chat.expect("nine")
    assert len(api.requests) == 4
    chat.enter("")
    chat.expect("Hello!\n> ")
    sent = [texts[-1] for texts in contents(api)]
    assert sent == ["one \ntwo", "/three\n\nfour", "//five", "/six", "seven\n/eight\n\nnine"]


def test_the_history_can_be_walked(api: FakeAPI, start: Start) -> None:
    chat = start()
    chat.enter("one")
    chat.expect("Hello!\n> ")
    chat.type("\x1b[A")
    chat.expect("one")
    chat.enter(" again")
    chat.expect("Hello!\n> ")
    assert contents(api)[-1][-1] == "one again"


# ---------------------------------------------------------------- Ctrl-C
def test_ctrl_c_drops_the_line_and_twice_ends(api: FakeAPI, start: Start) -> None:
    chat = start()
    chat.type("half a li")
    chat.expect("half a li")
    chat.interrupt()
    chat.expect("Ctrl-C again, or Ctrl-D, ends.")
    chat.expect("> ")
    chat.enter("whole")  # what comes between two makes them two first ones
    chat.expect("Hello!\n> ")
    chat.enter('"""dropped')
    chat.expect("... ")
    chat.interrupt()
    chat.expect("Ctrl-C again, or Ctrl-D, ends.")
    chat.expect("> ")
    chat.interrupt()
    assert chat.wait() == 0
    assert contents(api) == [["whole"]]
    assert "Traceback" not in chat.text


def test_ctrl_c_ends_the_reply_and_not_the_conversation(api: FakeAPI, start: Start) -> None:
    chat = start()
    api.never_ends = True
    chat.enter("long")
    chat.expect("Hello!")
    assert not api.client_left.is_set()
    chat.interrupt()
    assert api.client_left.wait(bound(10))
    chat.expect("(stopped)\n> ")
    api.reply = []
    chat.enter("silent")  # stopped before its first word: this turn has not been
    chat.expect("silent\n")
    eventually(lambda: len(api.requests) == 2 or None, 10, "the request")
    chat.interrupt()
    chat.expect("(stopped)\n> ")
    api.never_ends, api.reply = False, ["Yes."]
    chat.enter("short")
    chat.expect("Yes.\n> ")
    assert contents(api)[-1] == ["long", "Hello!", "short"]
    assert "Traceback" not in chat.text


def test_a_stopped_reply_is_aborted_in_the_engine(tmp_path: Path) -> None:
    model = tmp_path / "tiny"
    model.mkdir()
    TOKENIZER._backend.save(str(model / "tokenizer.json"))
    (model / "config.json").write_text("{}")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "chat_template": template}))
    with ServerProcess(model, fake=True, env={"FAKE_STEP_SECONDS": "0.02"}) as server:
        server.wait_ready()
        with TerminalProcess("chat", "--url", server.url, "--max-tokens", "4000") as chat:
            chat.expect("> ")
            chat.enter("go on")
            server.wait_metric("vllm:num_requests_running", lambda n: n == 1)
            chat.interrupt()
            chat.expect("(stopped)")
            server.wait_metric("vllm:num_requests_running", lambda n: n == 0)
            chat.enter("/set max_tokens 3")
            chat.enter("and now")
            chat.expect("(cut off at the limit of tokens: /set max_tokens N)")
            chat.enter("/stats")
            chat.expect("3 tokens, the first after ")
            # The fake model writes control characters; the terminal is to show them, not to obey them.
            chat.enter("/quit")
            assert chat.wait() == 0
            assert "\x07" not in chat.screen


def test_one_question_is_interrupted_with_130(api: FakeAPI) -> None:
    api.never_ends = True
    for command in ("chat", "complete"):
        with TerminalProcess(command, "--url", api.url, "-q", "x") as process:
            process.expect("Hello!")
            os.kill(process.process.pid, signal.SIGINT)
            assert process.wait() == 130
            assert "Traceback" not in process.text


# ---------------------------------------------------------------- commands
def test_help_lists_every_command(start: Start) -> None:
    from octavo.cli.chat_commands import COMMANDS

    chat = start()
    chat.enter("/help")
    for usage, text, _ in COMMANDS.values():
        chat.expect(usage)
        chat.expect(text)
    chat.enter("/quit")
    assert chat.wait() == 0


def test_the_system_prompt_and_the_messages_change(api: FakeAPI, start: Start) -> None:
    chat = start("chat", "--system-prompt", "old")
    for line, shown in (
        ("/system", "System prompt: old"),
        ("a", "Hello!"),
        ("/system Be  brief.", "System prompt: Be  brief."),
        ("b", "Hello!"),
        ("/clear", "A new conversation."),
        ("c", "Hello!"),
        ("/system -", "No system prompt."),
        ("d", "Hello!"),
    ):
        chat.enter(line)
        chat.expect(shown)
        chat.expect("> ")
    assert contents(api) == [
        ["old", "a"], ["Be  brief.", "a", "Hello!", "b"], ["Be  brief.", "c"], ["c", "Hello!", "d"],
    ]  # fmt: skip


def test_settings_are_checked_and_sent(api: FakeAPI, start: Start) -> None:
    chat = start("chat", "--seed", "7", "--temperature", "1")
    for line, shown in (
        ("/set temperature 0.25", "temperature         0.25"),
        ("/set max-tokens=1k", "max_tokens          1000"),
        ("/set seed default", "seed                (the server's)"),
        ("/set temperature 3", "error: temperature must be"),
        ("/set temperature nan", "error: temperature must be"),
        ("/set max_tokens x", "error: max_tokens must be a whole number; got 'x'"),
        ("/set temprature 1", "error: there is no setting temprature; did you mean temperature?"),
        ("/set", "top_p               (the server's)"),
        ("hi", "Hello!"),
    ):
        chat.enter(line)
        chat.expect(shown)
        chat.expect("> ")
    (request,) = api.requests
    assert (request["temperature"], request["max_tokens"]) == (0.25, 1000)
    assert "seed" not in request and "top_p" not in request


def test_figures_of_replies(api: FakeAPI, start: Start) -> None:
    chat = start()
    chat.enter("/stats")
    chat.expect("last: no reply yet")
    for _ in range(2):
        chat.enter("hi")
        chat.expect("Hello!\n> ")
    chat.enter("/stats")
    chat.expect("last: 11 prompt tokens (4 cached), 3 tokens, the first after ")
    chat.expect(" tokens/s")
    chat.expect("all:  2 replies, 22 prompt tokens, 6 tokens, the first after ")
    chat.expect(" s on average, ")
    chat.expect(" tokens/s")
    told = start("complete", "--stats")
    told.enter("Once")
    told.expect("Hello!\n11 prompt tokens (4 cached), 3 tokens, ")


def test_a_conversation_is_saved_and_goes_on(api: FakeAPI, start: Start, tmp_path: Path) -> None:
    file, other = tmp_path / "talk.json", tmp_path / "other.json"
    other.write_text("[]")
    first = start("chat", "--system-prompt", "Be brief.")
    for line, shown in (
        ("\u00e9", "Hello!"),
        (f"/save {file}", f"Saved to {file}."),
        ("two", "Hello!"),
        (f"/save {file}", f"Saved to {file}."),
        (f"/save {other}", f"error: {other} is there already; name another file"),
        ("/save", "error: /save needs the name of a file"),
        (f"/save {tmp_path}/no/where", "error: cannot write"),
        (f"/load {other}", f"error: {other} is not a saved conversation"),
        (f"/load {tmp_path}/nothing", "error: cannot read"),
        ("/load ~nobody-of-this-name/x", "error: /load ~nobody-of-this-name/x: "),
        ("/save .", "error: . is there already"),
    ):
        first.enter(line)
        first.expect(shown)
        first.expect("> ")
    assert {path.name for path in tmp_path.iterdir()} == {"talk.json", "other.json"}
    second = start()
    second.enter(f"/load {file}")
    second.expect(f"4 messages from {file}.")
    second.enter("three")
    second.expect("Hello!\n> ")
    assert contents(api)[-1] == ["Be brief.", "\u00e9", "Hello!", "two", "Hello!", "three"]


def test_an_unknown_command_gets_a_hint_and_is_not_sent(api: FakeAPI, start: Start) -> None:
    chat = start()
    chat.enter("/hlep")
    chat.expect("error: there is no command /hlep; did you mean /help?")
    chat.enter("/usr/bin/env")
    chat.expect(
        "error: there is no command /usr/bin/env; /help lists them. To send a message that begins with /, write"
    )
    chat.type(PASTE + "/usr/bin: no\nline 2" + END_OF_PASTE + "\r")
    chat.expect("error: there is no command /usr/bin:;")
    chat.enter("/clear all")
    chat.expect("error: /clear takes nothing after it")
    assert api.requests == []


# ---------------------------------------------------------------- what is seen
def test_thoughts_are_dimmed_and_not_sent_again(api: FakeAPI, start: Start) -> None:
    api.thoughts = ["Let me ", "see."]
    chat = start()
    chat.enter("one")
    chat.expect("Hello!\n> ")
    assert f"{DIM}Let me see.{PLAIN}\r\n\r\nHello!" in chat.screen
    chat.enter("two")
    chat.expect("Hello!\n> ")
    assert contents(api)[-1] == ["one", "Hello!", "two"]


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "dumb"])
def test_without_colours_thoughts_are_marked(api: FakeAPI, start: Start, env: dict[str, str]) -> None:
    api.thoughts = ["Hm."]
    chat = start("chat", "--stats", env=env)
    chat.enter("one")
    chat.expect("(thinking) Hm.\n\nHello!\n")
    chat.expect("> ")
    assert DIM not in chat.screen


def test_a_failed_turn_is_told_and_forgotten(api: FakeAPI, start: Start) -> None:
    chat = start()
    api.refusal = (400, b'{"error": {"message": "too long"}}')
    chat.enter("refused")
    chat.expect("error: the server refused (400): too long\n> ")
    api.refusal, api.error_in_stream = None, True
    chat.enter("broken")
    chat.expect("Hello!\nerror: the engine died\n> ")
    api.error_in_stream = False
    chat.enter("fine")
    chat.expect("Hello!\n> ")
    assert contents(api)[-1] == ["fine"]


def test_what_a_model_writes_does_not_command_the_terminal(api: FakeAPI, start: Start) -> None:
    api.reply = ["\x1b]0;title\x07", "\x9b31m", "a\tb\n"]
    chat = start()
    chat.enter("x")
    chat.expect("\u241b]0;title\u2407\ufffd31ma")
    chat.expect("> ")
    assert "\x1b]" not in chat.screen and "\x9b" not in chat.screen


def test_replies_may_go_to_a_file(api: FakeAPI, start: Start, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        chat = start("chat", stdout=out.fileno())
        chat.enter("one")
        chat.expect("> ")
        chat.type(CTRL_D)
        assert chat.wait() == 0
    assert (tmp_path / "out").read_text() == "Hello!\n"


def test_no_server_ends_before_the_first_prompt(api: FakeAPI) -> None:
    api.models = (503, "application/json", b'{"error": {"message": "loading"}}')
    for command in ("chat", "complete"):
        with TerminalProcess(command, "--url", api.url, "--model", "m") as process:
            assert process.wait() == 1
            assert process.text == f"octavo {command}: error: the server is not ready (503): loading\n"


# ---------------------------------------------------------------- complete
def test_texts_are_continued_until_the_end(api: FakeAPI, start: Start) -> None:
    complete = start("complete")
    complete.enter("//a\\")
    complete.expect("... ")
    complete.enter("b")
    complete.expect("Hello!\n> ")
    api.never_ends = True
    complete.enter("/help")
    complete.expect("Hello!")
    complete.interrupt()
    assert api.client_left.wait(bound(10))
    complete.expect("(stopped)\n> ")
    api.never_ends, api.refusal = False, (400, b'{"error": {"message": "no"}}')
    complete.enter("c")
    complete.expect("error: the server refused (400): no\n> ")
    complete.type(CTRL_D)
    assert complete.wait() == 0
    assert [request["prompt"] for request in api.requests] == ["//a\nb", "/help", "c"]
