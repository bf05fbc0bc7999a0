"""Templates of strangers are rendered in a helper process: what hangs or breaks it is one request's error."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from octavo.base.errors import InvalidRequest, ServerError
from octavo.base.frames import read_frame, write_frame
from octavo.text.templates.chat_template import TemplateSyntaxError
from octavo.text.templates.worker import TemplateWorker

HI = [{"role": "user", "content": "hi"}]

#: A value of 60 lists that holds itself 2**60 times; one call that walks it never comes back.
SELF_SIMILAR = "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
#: Templates whose time or memory no bound from within sees, as they are spent in one call.
ONE_CALL = {
    "tojson": SELF_SIMILAR + "{{ n.x | tojson }}",
    "string": SELF_SIMILAR + "{{ n.x | string }}",
    "compare": SELF_SIMILAR + "{% set m = n.x %}" + SELF_SIMILAR + "{{ n.x == m }}",
    "sum": "{% set a = [0] * 10000000 %}{{ ([a] * 100000) | sum(start=[]) | length }}",
    "sort": "{% set a = ('ab' * 8000000) | list %}{{ a | sort | list | length }}{{ a | unique | list }}" * 9,
    "memory": "{% set n = namespace(x=[]) %}{% for i in range(99999) %}{% set n.x = n.x + ['é' * 9999999 ~ i] %}"
    "{% endfor %}",
}


def helpers() -> set[int]:
    children = psutil.Process().children()
    return {child.pid for child in children if "octavo.text.templates.helper" in child.cmdline()}


def render(worker: TemplateWorker, source: str, messages: Any = HI, **options: Any) -> str:
    return worker.render(source, {"bos_token": "<s>"}, messages, "auto", options)


@pytest.mark.parametrize("name", ONE_CALL)
def test_a_call_that_does_not_return_ends_with_the_helper_and_the_next_is_served(name: str) -> None:
    worker = TemplateWorker(seconds=1.5)
    begin = time.monotonic()
    with pytest.raises(InvalidRequest, match="stopped|MemoryError"):
        render(worker, ONE_CALL[name])
    assert time.monotonic() - begin < 20  # with the start of a helper
    assert render(worker, "{{ bos_token }}{{ messages[0].content }}") == "<s>hi"
    worker.close()


def test_w01_a_model_whose_template_does_not_return_is_refused_at_start() -> None:
    worker = TemplateWorker(seconds=1)
    for source in (ONE_CALL["tojson"], "{% for i in range(10**9) %}x{% endfor %}", "{{ lipsum.__globals__ }}"):
        with pytest.raises(InvalidRequest):
            worker.check(source, {})
    for source in ("{{ " + "(" * 6000 + " }}", "{% if %}"):
        with pytest.raises(TemplateSyntaxError):
            worker.check(source, {})
    worker.check("fine", {})
    worker.close()


def test_the_callers_and_the_templates_own_errors_come_through() -> None:
    worker = TemplateWorker()
    with pytest.raises(InvalidRequest, match="^No!$") as caught:
        render(worker, "{{ raise_exception('No!') }}")
    assert caught.value.param == "messages"
    with pytest.raises(InvalidRequest) as caught:
        render(worker, "x", [{"role": "user", "content": [{"type": "image_url"}]}])
    assert caught.value.param == "messages[0].content[0]"
    with pytest.raises(InvalidRequest, match="only JSON values"):
        render(worker, "x", [{"role": "user", "content": object()}])
    assert render(worker, "{{ messages[0].content }}", [{"role": "user", "content": "a\ud800é"}]) == "a\ud800é"
    worker.close()


def test_one_helper_serves_all_threads_one_at_a_time_and_close_ends_it() -> None:
    before, worker = helpers(), TemplateWorker()
    texts: list[str] = []
    threads = [threading.Thread(target=lambda i=i: texts.append(render(worker, f"text {i}"))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts) == [f"text {i}" for i in range(8)]
    assert len(helpers() - before) == 1
    worker.close()
    assert helpers() <= before
    assert render(worker, "again") == "again"
    worker.close()


def test_close_does_not_wait_for_a_template() -> None:
    before, worker = helpers(), TemplateWorker(seconds=600)
    worker.check("x", {})
    errors: list[BaseException] = []

    def hang() -> None:
        try:
            render(worker, ONE_CALL["tojson"])
        except InvalidRequest as exc:
            errors.append(exc)

    thread = threading.Thread(target=hang)
    (pid,) = helpers() - before
    busy = psutil.Process(pid).cpu_times().user + 0.2
    thread.start()
    deadline = time.monotonic() + 60
    while psutil.Process(pid).cpu_times().user < busy:  # it is at the template
        assert time.monotonic() < deadline
        time.sleep(0.01)
    worker.close()
    thread.join(30)
    assert not thread.is_alive() and len(errors) == 1
    assert helpers() <= before


def test_a_helper_that_does_not_start_is_the_servers_fault() -> None:
    worker = TemplateWorker(command=(sys.executable, "-c", "pass"))
    with pytest.raises(ServerError):
        render(worker, "x")


def test_a_helper_that_was_killed_between_two_requests_is_replaced() -> None:
    before, worker = helpers(), TemplateWorker()
    assert render(worker, "1") == "1"
    (pid,) = helpers() - before
    helper = psutil.Process(pid)
    helper.kill()
    helper.wait(10)
    assert render(worker, "2") == "2"
    worker.close()


def test_a_helper_in_an_endless_call_ends_though_nobody_is_left_to_kill_it() -> None:
    command = [sys.executable, "-m", "octavo.text.templates.helper"]
    helper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert helper.stdin is not None and helper.stdout is not None
    assert read_frame(helper.stdout) == {"ready": True}
    write_frame(helper.stdin, {"source": ONE_CALL["tojson"], "special_tokens": {}, "seconds": 0.2})
    assert helper.wait(30) != 0
    helper.stdin.close()
    helper.stdout.close()


def test_a_helper_whose_reader_is_gone_ends_without_a_word() -> None:
    """A server that is stopped while it starts leaves nothing in its log but that."""
    for module in ("octavo.text.templates.helper", "octavo.text.grammars.helper"):
        read_end, write_end = os.pipe()
        os.close(read_end)
        helper = subprocess.run(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=write_end, stderr=subprocess.PIPE, check=False
        )
        os.close(write_end)
        assert helper.returncode == 1
        assert helper.stderr == b""


def test_a_frame_that_breaks_off_is_the_end(tmp_path: Path) -> None:
    path = tmp_path / "frames"
    with path.open("wb") as file:
        write_frame(file, [1])
        write_frame(file, [2])
    data = path.read_bytes()
    for size in range(len(data) // 2, len(data)):
        path.write_bytes(data[:size])
        with path.open("rb") as file:
            assert read_frame(file) == [1]
            assert read_frame(file) is None
