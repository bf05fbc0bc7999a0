"""The page in a real Chromium, over real HTTP, with an engine that says what a test has it say."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.base.errors import ServerError
from support.scripted_server import Gate, ScriptedServer
from support.server_process import bound

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (`make ui-test`)")

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (CHROMIUM names one)"),
]

#: No sandbox: it needs rights that containers do not give; the pages are our own. The rest keeps it off the network.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


Open = Callable[..., Any]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """A page in a profile of its own. At the end of the test nothing went wrong in it that it did not take care of."""
    faults: list[str] = []
    with contextlib.ExitStack() as stack:

        def open_page(server: ScriptedServer, is_ready: bool = True, **options: Any) -> Any:
            context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
            stack.callback(context.close)
            context.set_default_timeout(bound(10) * 1000)
            page = context.new_page()
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("console", lambda message: faults.append(message.text) if _is_fault(message) else None)
            page.on("request", lambda request: faults.append(request.url) if not _is_own(request.url, server) else None)
            page.on("dialog", lambda dialog: faults.append(dialog.message))
            page.goto(server.url)
            if is_ready:
                page.wait_for_selector("#model:enabled")
            return page

        yield open_page
    assert faults == []


def _is_fault(message: Any) -> bool:
    # Chromium tells of every reply that is an error; what the page makes of it is what the tests look at.
    return message.type in ("error", "warning") and "Failed to load resource" not in message.text


def _is_own(url: str, server: ScriptedServer) -> bool:
    return url.startswith((server.url.rstrip("/"), "data:", "blob:"))


def ask(page: Any, text: str) -> None:
    page.fill("#input", text)
    page.press("#input", "Enter")


def ended(page: Any, count: int = 1) -> Any:
    """The last reply, when `count` of them are shown and complete."""
    replies = page.locator(".assistant:not(.streaming)")
    sync_api.expect(replies).to_have_count(count, timeout=bound(10) * 1000)
    return replies.last


def see(locator: Any, text: str) -> None:
    sync_api.expect(locator).to_contain_text(text, timeout=bound(10) * 1000)


def has_focus(page: Any, name: str) -> None:
    """Not `page.wait_for_function`: the page's policy refuses the text that it evaluates again and again."""
    sync_api.expect(page.locator(f"#{name}")).to_be_focused(timeout=bound(10) * 1000)


# ---------------------------------------------------------------- a conversation
def test_a_conversation_streams_and_is_kept(open_page: Open) -> None:
    gate = Gate()
    with ScriptedServer(["One **two", gate, "** three."], ["Four."]) as server:
        page = open_page(server)
        ask(page, "First <b>question</b>")
        see(page.locator(".assistant.streaming"), "One **two")
        assert page.locator("#stop").is_visible()
        server.open(gate)
        reply = ended(page)
        assert reply.locator(".markdown").inner_text() == "One two three."
        see(reply.locator(".stats"), "tiny · 18 tokens")
        assert page.locator(".user .bubble").inner_text() == "First <b>question</b>"
        ask(page, "Second")
        assert ended(page, 2).locator(".markdown").inner_text() == "Four."
        assert [(m["role"], m["content"]) for m in server.sent] == [
            ("user", "First <b>question</b>"), ("assistant", "One **two** three."), ("user", "Second"),
        ]  # fmt: skip
        page.reload()
        ended(page, 2)
        page.click("#new")
        page.click("#conversations .open")
        ended(page, 2)
        page.click("#new")
        assert page.locator(".message").count() == 0
        assert page.locator("#conversations li").count() == 1


def test_stop_ends_the_reply_here_and_at_the_server(open_page: Open) -> None:
    gate = Gate()
    with ScriptedServer(["Begun", gate, " never"], ["Again."]) as server:
        page = open_page(server)
        ask(page, "Go")
        see(page.locator(".assistant"), "Begun")
        page.click("#stop")
        reply = ended(page)
        see(reply, "You stopped this reply.")
        assert "never" not in reply.inner_text()
        has_focus(page, "input")
        ask(page, "More")  # what came of it stays in the conversation
        see(ended(page, 2), "Again.")
        assert [m["content"] for m in server.sent] == ["Go", "Begun", "More"]
        assert server.server.engine.num_closed == 2
        server.open(gate)


def test_regenerating_and_editing_keep_what_was_there(open_page: Open) -> None:
    with ScriptedServer(["A"], ["B"], ["C"]) as server:
        page = open_page(server)
        ask(page, "Question")
        ended(page).get_by_role("button", name="Regenerate").click()
        see(page.locator(".assistant .markdown"), "B")
        see(ended(page).locator(".versions"), "2 / 2")
        ended(page).get_by_role("button", name="Earlier version").click()
        assert ended(page).locator(".markdown").inner_text() == "A"
        page.hover(".user")
        page.get_by_role("button", name="Edit").click()
        page.get_by_label("Edit the message").fill("Other question")
        page.keyboard.press("Enter")
        see(page.locator(".assistant .markdown"), "C")
        assert [m["content"] for m in server.sent] == ["Other question"]
        page.get_by_role("button", name="Earlier version").click()
        see(page.locator(".bubble"), "Question")
        see(page.locator(".assistant .markdown"), "B")  # what came last below it


def test_replies_of_two_conversations_are_made_at_once(open_page: Open) -> None:
    gate = Gate()
    with ScriptedServer(["Slow", gate, " one."], ["Quick one."]) as server:
        page = open_page(server)
        ask(page, "First")
        see(page.locator(".assistant"), "Slow")
        page.click("#new")
        ask(page, "Second")
        see(ended(page), "Quick one.")
        assert page.locator("#conversations .busy").count() == 1
        server.open(gate)
        page.click("#conversations .open:has-text('First')")
        see(ended(page), "Slow one.")


def test_settings_are_sent_and_kept(open_page: Open) -> None:
    with ScriptedServer() as server:
        page = open_page(server)
        page.click("#settings-open")
        page.fill("#system", "Be brief.")
        page.fill("[data-setting=temperature]", "0.5")
        page.fill("[data-setting=max_completion_tokens]", "9")
        page.fill("[data-setting=top_p]", "7")  # out of range: not sent
        page.fill("#stops", "END\n###")
        page.fill("#tools", "{")
        page.get_by_role("button", name="Done").click()
        see(page.locator("#tools-error"), "The tools are no JSON list")
        page.fill("#tools", "")
        page.press("#stops", "Escape")
        page.select_option("#model", "alias")
        ask(page, "Hi")
        ended(page)
        params = server.server.engine.requests[-1].params
        assert (params.temperature, params.max_tokens, params.top_p, params.stop) == (0.5, 9, 1.0, ("END", "###"))
        assert server.sent[0] == {"role": "system", "content": "Be brief."}
        page.reload()
        page.wait_for_selector("#model:enabled")
        assert page.input_value("#model") == "alias"
        page.click("#settings-open")
        assert (page.input_value("#system"), page.input_value("[data-setting=temperature]")) == ("Be brief.", "0.5")


def test_thoughts_and_calls_are_folded_and_a_call_gets_its_result(open_page: Open) -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    options = {"tools": "hermes", "reasoning": "qwen3", "enable_auto_tool_choice": True}
    with ScriptedServer(["<think>", "Hm.", "</think>", call], ["It is 1."], **options) as server:
        page = open_page(server)
        page.click("#settings-open")
        page.fill("#tools", json.dumps([{"type": "function", "function": {"name": "add"}}]))
        page.get_by_role("button", name="Done").click()
        ask(page, "Add")
        reply = ended(page)
        thoughts = reply.locator("details:has(.thoughts)")
        assert thoughts.get_attribute("open") is None
        thoughts.locator("summary").click()
        assert thoughts.locator(".thoughts").inner_text().strip() == "Hm."
        see(reply.locator("summary >> nth=1"), "Calls add")
        assert json.loads(reply.locator("pre").text_content()) == {"a": 1}
        page.get_by_label("Result of add").fill("<b>1</b>")
        page.get_by_role("button", name="Send the results").click()
        see(ended(page, 2), "It is 1.")
        assert server.sent[-1]["content"] == "<b>1</b>"
        assert server.sent[-1]["tool_call_id"] == server.sent[-2]["tool_calls"][0]["id"]


def test_renaming_saving_deleting_and_undo(open_page: Open, tmp_path: Path) -> None:
    with ScriptedServer(["Reply."]) as server:
        page = open_page(server)
        ask(page, "Question")
        ended(page)
        page.hover("#conversations li")
        page.get_by_role("button", name="Rename Question").click()
        page.get_by_label("Title").fill("Name")
        page.keyboard.press("Enter")
        see(page.locator("#conversations .open"), "Name")
        with page.expect_download() as download:
            page.get_by_role("button", name="Save Name as a file").click()
        download.value.save_as(tmp_path / "saved.json")
        assert download.value.suggested_filename == "Name.json"
        assert json.loads((tmp_path / "saved.json").read_text()) == {
            "messages": [{"role": "user", "content": "Question"}, {"role": "assistant", "content": "Reply."}]
        }
        page.hover("#conversations li")
        page.get_by_role("button", name="Delete Name").click()
        sync_api.expect(page.locator("#conversations li")).to_have_count(0)
        page.get_by_role("button", name="Undo").click()
        page.click("#conversations .open")
        ended(page)


# ---------------------------------------------------------------- what goes wrong
def test_errors_are_shown_and_can_be_tried_again(open_page: Open) -> None:
    with ScriptedServer(["Half", ServerError("It broke.")], ["Whole."]) as server:
        page = open_page(server)
        ask(page, "Go")
        reply = ended(page)
        see(reply.locator(".error"), "It broke.")
        see(reply.locator(".markdown"), "Half")
        see(page.locator("#announcer"), "Error: It broke.")
        reply.get_by_role("button", name="Try again").click()
        see(page.locator(".assistant .markdown"), "Whole.")
        page.click("#settings-open")
        page.fill("[data-setting=top_k]", "999999999999999999999")
        page.get_by_role("button", name="Done").click()
        ask(page, "More")
        see(ended(page, 2).locator(".error"), "top_k")  # names the field


def test_a_server_that_went_away_is_told_of_and_found_again(open_page: Open) -> None:
    gate = Gate()
    with ScriptedServer(["Half", gate]) as server:
        page = open_page(server)
        ask(page, "Go")
        see(page.locator(".assistant"), "Half")
    reply = ended(page)
    see(reply.locator(".error"), "connection broke")
    see(page.locator("#notice"), "The server cannot be reached. Trying again…")
    ask(page, "Still there?")
    see(ended(page, 2).locator(".error"), "The server cannot be reached.")
    with ScriptedServer(["Whole."], port=server.port):
        sync_api.expect(page.locator("#notice")).to_be_hidden(timeout=bound(20) * 1000)
        ended(page, 2).get_by_role("button", name="Try again").click()
        see(page.locator(".assistant >> nth=1"), "Whole.")


def test_a_key_is_asked_for_sent_and_forgotten_with_the_tab(open_page: Open) -> None:
    with ScriptedServer(["Yes."], api_key=["rïght 鍵"]) as server:
        page = open_page(server, is_ready=False)
        page.wait_for_selector("#key-dialog[open]")
        assert page.inner_text("#key-error") == ""
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        see(page.locator("#key-error"), "does not accept this key")
        page.fill("#key", "rïght 鍵")
        page.keyboard.press("Enter")
        page.wait_for_selector("#model:enabled")
        ask(page, "Hi")
        see(ended(page), "Yes.")
        assert page.evaluate("[sessionStorage['octavo.key'], localStorage['octavo.key']]") == ["rïght 鍵", None]
        other = page.context.new_page()
        other.goto(server.url)
        other.wait_for_selector("#key-dialog[open]")
        other.fill("#key", "rïght 鍵")
        other.check("#key-remember")
        other.get_by_role("button", name="Use the key").click()
        other.wait_for_selector("#model:enabled")
        third = page.context.new_page()
        third.goto(server.url)
        third.wait_for_selector("#model:enabled")


HOSTILE = """<script>alert(1)</script> <img src=x onerror=alert(1)> <svg onload=alert(1)>
[a](javascript:alert(1)) [b](data:text/html,<script>alert(1)</script>) ![c](http://evil.example/?secret)

<iframe srcdoc="<script>parent.alert(1)</script>"></iframe>
<style>body { display: none }</style>
<meta http-equiv="refresh" content="0;url=http://evil.example/">

[real](https://good.example/path)

"""


def test_a_hostile_reply_is_text(open_page: Open) -> None:
    huge = "|a|b|\n|-|-|\n" + "|1|2|\n" * 20_000
    deep = "> " * 5_000 + "deep\n\n"
    with ScriptedServer([HOSTILE, deep, huge, "\n\n```\nnever closed <b>"]) as server:
        page = open_page(server)
        ask(page, "<img src=x onerror=alert(1)>\n<script>alert(1)</script>")
        reply = ended(page)
        assert "<img src=x onerror=alert(1)>" in reply.inner_text()
        assert reply.locator("script, img, iframe, style, meta, svg:not(.icon)").count() == 0
        assert [link.get_attribute("href") for link in reply.locator("a").all()] == [
            "http://evil.example/?secret", "https://good.example/path",
        ]  # fmt: skip
        see(reply.locator(".code").last, "never closed <b>")
        assert page.evaluate("document.querySelectorAll('td').length") <= 5_002
        page.click("#conversations .open >> nth=0")  # the title is what was written, too
        assert page.url == server.url


def test_the_policy_holds_where_the_page_would_not(browser: Any) -> None:
    with ScriptedServer() as server, contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(server.url)
        attempts = """() => {
            const attempt = (act) => { try { act(); } catch (error) { return error.name } return "done" };
            const script = document.createElement("script");
            const done = [
                attempt(() => { document.body.innerHTML = "<b>a</b>" }),
                attempt(() => { script.text = "ran = 1" }),
                attempt(() => { script.append("ran = 1"); document.body.append(script) }),
                attempt(() => { document.body.setAttribute("onclick", "ran = 1"); document.body.click() }),
            ];
            return [done, "ran" in window];
        }"""
        done, ran = page.evaluate(attempts)
        assert (done[:2], ran) == (["TypeError", "TypeError"], False)
        outside = """() => new Promise((tell) => { addEventListener("securitypolicyviolation",
                  (event) => tell(event.effectiveDirective)); fetch("http://127.0.0.1:9/").catch(() => 0) })"""
        assert page.evaluate(outside) == "connect-src"


# ---------------------------------------------------------------- for everybody
def focused(page: Any) -> str:
    """The id of what has the focus, or else its name."""
    name: str = page.evaluate(
        "(({id, ariaLabel, textContent}) => id || ariaLabel || textContent.trim())(document.activeElement)"
    )
    return name


def tabs(page: Any, count: int) -> list[str]:
    """What the Tab key leads to, `count` times."""
    found = []
    for _ in range(count):
        page.keyboard.press("Tab")
        found.append(focused(page))
    return found


def test_all_of_it_with_the_keyboard_alone(open_page: Open) -> None:
    gate = Gate()
    with ScriptedServer(["One.", gate], ["Two."], ["Three."]) as server:
        page = open_page(server)
        keys = page.keyboard
        assert focused(page) == "input"
        keys.type("First")
        keys.press("Shift+Enter")
        keys.type("line two")
        keys.press("Enter")
        see(page.locator(".assistant"), "One.")
        keys.press("Escape")
        see(ended(page), "You stopped")
        keys.press("ArrowUp")  # edits the last message
        assert focused(page) == "Edit the message"
        keys.press("Escape")
        assert focused(page) == "Edit"
        see(page.locator("#announcer"), "Reply: One.")
        keys.press("Tab")
        assert focused(page) == "Copy"
        keys.press("Tab")
        assert focused(page) == "Regenerate"
        keys.press("Enter")
        see(page.locator(".assistant"), "Two.")
        ended(page)
        page.focus(".skip")
        assert tabs(page, 15) == [
            "new", "First", "Rename First", "Save First as a file", "Delete First", "key-open", "model",
            "settings-open", "engine-open", "thread", "Copy", "Edit", "Earlier version", "Copy", "Regenerate",
        ]  # fmt: skip
        page.focus("#settings-open")
        keys.press("Enter")
        assert focused(page) == "system"
        keys.press("Escape")
        assert focused(page) == "settings-open"
        page.focus(".skip")
        keys.press("Enter")
        assert focused(page) == "input"


def test_names_roles_and_states_for_a_screen_reader(open_page: Open) -> None:
    with ScriptedServer(["Reply."]) as server:
        page = open_page(server)
        ask(page, "Question")
        ended(page)
        for role, name in (
            ("navigation", "Conversations"), ("main", None), ("log", "Messages"), ("textbox", "Message"),
            ("combobox", "Model"), ("article", "You"), ("article", "Reply"), ("button", "Send"), ("button", "Engine"),
        ):  # fmt: skip
            assert page.get_by_role(role, **({"name": name, "exact": True} if name else {})).count() == 1, (role, name)
        see(page.locator("#announcer[role=status]"), "Reply: Reply.")
        button = page.get_by_role("button", name="Engine", exact=True)
        assert button.get_attribute("aria-expanded") == "false"
        button.click()
        assert button.get_attribute("aria-expanded") == "true"
        page.get_by_role("complementary", name="Engine").wait_for()
        page.get_by_role("button", name="Close the view of the engine").click()
        has_focus(page, "engine-open")


CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
  const light = (rgb) => [.2126, .7152, .0722].reduce((sum, share, i) => sum + share * linear(rgb[i] / 255), 0);
  const behind = (node) => { for (; node; node = node.parentElement) {
    const c = parse(getComputedStyle(node).backgroundColor); if (c.length < 4 || c[3] === 1) return c; } };
  const low = [];
  for (const node of document.querySelectorAll("body *:not(script, style, noscript, option)")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (node.closest(".visually-hidden, .skip, :disabled")) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) low.push([node.tagName, node.className, node.textContent.slice(0, 30), ratio]);
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(open_page: Open, scheme: str) -> None:
    with ScriptedServer(["# T\n\n> q `c` [l](https://a.example)\n\n```js\nx\n```", ServerError("No.")]) as server:
        page = open_page(server, color_scheme=scheme)
        ask(page, "Question")
        ended(page)
        page.click("#engine-open")
        is_dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(25, 25, 24)"
        assert is_dark == (scheme == "dark")
        assert page.evaluate(CONTRAST) == []


def test_a_small_screen(open_page: Open) -> None:
    with ScriptedServer(["x " + "long" * 100 + "\n\n```\n" + "wide " * 100 + "\n```"]) as server:
        page = open_page(server, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
        ask(page, "Question")
        ended(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate("document.getElementById('thread').scrollWidth") <= 360
        assert not page.locator("#conversations").is_visible()
        page.click("#sidebar-open")
        page.locator("#conversations").wait_for(state="visible")
        has_focus(page, "new")
        page.keyboard.press("Escape")
        has_focus(page, "sidebar-open")
        page.locator("#conversations").wait_for(state="hidden")
        page.click("#engine-open")
        has_focus(page, "engine-close")
        page.keyboard.press("Escape")
        has_focus(page, "engine-open")
        assert page.locator("#engine").is_hidden()


def test_the_engine_is_shown_live(open_page: Open) -> None:
    gate = Gate()
    with ScriptedServer(["One", gate, " two."]) as server:
        page = open_page(server)
        page.click("#engine-open")
        see(page.locator("#engine-running"), "0")
        server.stats(num_running=3, num_waiting=2, kv_blocks_used=16, kv_blocks_total=64, num_generation_tokens=50)
        see(page.locator("#engine-running"), "3")
        see(page.locator("#engine-waiting"), "2")
        see(page.locator("#engine-kv"), "25 %")
        sync_api.expect(page.locator("#engine-output")).not_to_have_text("0.0", timeout=bound(10) * 1000)
        server.finish(num_output_tokens=7, seconds=2.0, first_token=0.5)
        see(page.locator("#engine-ended tr"), "500 ms2.0 s7")
        page.reload()
        page.wait_for_selector("#engine:not([hidden])")  # as it was left
        server.open(gate)


def test_below_a_proxys_prefix(open_page: Open) -> None:
    with ScriptedServer(["Reply."], root_path="/llm") as server:
        page = open_page(server)
        page.goto(server.url.rstrip("/"))
        page.wait_for_selector("#model:enabled")
        ask(page, "Question")
        see(ended(page), "Reply.")
