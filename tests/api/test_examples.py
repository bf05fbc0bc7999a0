"""Every script in examples/ runs: on the fake model's server where the text does not matter, else on real weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.client_fakes import TOKENIZER
from support.server_process import ServerProcess, bound

EXAMPLES = Path(__file__).parents[2] / "examples"
#: What each needs, and a text that its output holds.
ON_FAKE = {
    "chat.py": "And of France?", "stream.py": "of reply)", "responses.py": "of output)", "complete.py": "(length)",
    "logprobs.py": "%", "adapters.py": "(model):",
}  # fmt: skip
#: With models that see: tests/api/test_media.py.
ON_SEEING = {"image.py", "images.py", "audio.py", "pdf.py"}
#: With a model that transcribes: tests/api/test_audio.py.
ON_HEARING = {"transcribe.py"}
#: With a model of embeddings: tests/api/test_embeddings.py.
ON_VECTORS = {"embeddings.py"}
ON_REAL = {
    "beam_search.py", "infill.py", "tools.py", "agent.py", "reasoning.py", "batch.py", "mcp_tools.py", "mcp_server.py",
}  # fmt: skip


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("model")
    TOKENIZER._backend.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text("{}")
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>", "chat_template": template}))
    with ServerProcess(directory, fake=True) as process:
        yield process.wait_ready()


def run(*command: str, server: ServerProcess | None = None) -> str:
    env = dict(os.environ)
    if server is not None:
        env["OPENAI_BASE_URL"] = f"{server.url}/v1"
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=bound(120), check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def script(name: str, server: ServerProcess) -> str:
    return run(sys.executable, str(EXAMPLES / name), server=server)


@pytest.mark.parametrize("name", ON_FAKE)
def test_examples_of_the_api(name: str, fake: ServerProcess) -> None:
    assert ON_FAKE[name] in script(name, fake)


def test_curl(fake: ServerProcess) -> None:
    out = run("sh", str(EXAMPLES / "curl.sh"), fake.url)
    assert '"object":"list"' in out and "chat.completion" in out and "data: [DONE]" in out and '"count":16' in out


def test_beam_search_and_batch(smollm2_gguf: Path) -> None:
    with ServerProcess(smollm2_gguf, "--max-model-len", "512", "--num-kv-blocks-override", "128") as process:
        lines = script("beam_search.py", process.wait_ready(180)).splitlines()
    assert len(lines) == 2 and float(lines[0].split()[0]) < 0
    out = run(sys.executable, str(EXAMPLES / "batch.py"), str(smollm2_gguf))
    assert out.count("A fact about the number") == 8


@pytest.fixture(scope="module")
def qwen(qwen_gguf: Path) -> Iterator[ServerProcess]:
    template = str(Path(__file__).parent / "result_as_text.jinja")
    flags = ("--chat-template", template, "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3")
    sizes = ("--max-model-len", "1024", "--num-kv-blocks-override", "128")
    servers = {"weather": {"command": sys.executable, "args": [str(EXAMPLES / "mcp_server.py")]}}
    flags += ("--mcp-servers", json.dumps(servers))
    with ServerProcess(qwen_gguf, "--enable-auto-tool-choice", *flags, *sizes) as process:
        yield process.wait_ready(180)


def test_infill(qwen: ServerProcess) -> None:
    assert "return [a + b]\n" in script("infill.py", qwen)


def test_tools(qwen: ServerProcess) -> None:
    assert script("tools.py", qwen) == "get_weather({'city': 'Oslo'})\nIt snows in Oslo, at -7 degrees.\n"


def test_tools_of_an_mcp_server(qwen: ServerProcess) -> None:
    called = 'get_weather({"city": "Oslo"}) -> It snows in Oslo, at -7 degrees.'
    answer = "It snows in Oslo, at -7 degrees."
    assert script("mcp_tools.py", qwen).splitlines() == [called, answer, "(called)", answer]


def test_an_agent_of_the_agents_sdk(qwen: ServerProcess) -> None:
    """A call, its result and the answer, and all of it again streamed."""
    pytest.importorskip("agents")
    assert script("agent.py", qwen) == "get_weather('Oslo')\nIt snows in Oslo, at -7 degrees.\n" * 2


def test_reasoning(qwen: ServerProcess) -> None:
    """The model was never taught to think: its budget ends it."""
    out = script("reasoning.py", qwen)
    thought, answer = out.removeprefix("\nreasoning: ").split("\ncontent: ")
    assert thought.strip() and answer.strip() and "<" not in thought
    assert 48 <= int(answer.rpartition("(")[2].split()[0]) <= 52


def test_the_table_of_examples_is_complete() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    scripts = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    assert scripts == {name for name in scripts if f"`{name}`" in listed}
    assert scripts == {*ON_FAKE, *ON_REAL, *ON_SEEING, *ON_HEARING, *ON_VECTORS, "curl.sh"}
