"""A model that sees what is on a picture: what the small one in `seeing` says of pictures that it has not seen."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from seeing import gguf_files
from seeing.compose import compose
from seeing.pictures import Content, any_content, draw
from support.media_fakes import data_url, encoded
from support.server_process import ServerProcess, bound

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(smollm2_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("seeing")
    compose(smollm2_hf, directory)
    with ServerProcess(directory, "--max-model-len", "512", "--limit-mm-per-prompt", "image=2") as server:
        yield server.wait_ready(180)


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def pictures(count: int, seed: int) -> list[tuple[Content, str]]:
    """Contents, and the pictures as data URLs. Training draws with other seeds."""
    rng = random.Random(seed)
    contents = [any_content(rng) for _ in range(count)]
    return [(content, data_url(encoded(draw(content, rng).resize((320, 320))))) for content in contents]


def asked(client: OpenAI, url: str, question: str, **options: Any) -> Any:
    """As OpenAI's documentation of its Vision API asks."""
    content: Any = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": url}}]
    messages: Any = [{"role": "user", "content": content}]
    model = client.models.list().data[0].id
    return client.chat.completions.create(model=model, messages=messages, max_tokens=24, temperature=0, **options)


def test_it_tells_what_is_on_pictures_that_it_has_not_seen(client: OpenAI) -> None:
    told = [(content, asked(client, url, "Describe the picture.")) for content, url in pictures(20, seed=2024)]
    texts = [(content, reply.choices[0].message.content) for content, reply in told]
    right = [
        all(word in text for word in (content.colour, content.shape, str(content.digit))) for content, text in texts
    ]
    assert sum(right) >= 17, texts
    assert all(reply.usage.prompt_tokens_details.model_dump()["image_tokens"] == 16 for _, reply in told)


def test_a_stream_says_the_same_and_a_second_question_pays_for_no_picture(
    client: OpenAI, server: ServerProcess
) -> None:
    ((content, url),) = pictures(1, seed=7)
    whole = asked(client, url, "Describe the picture.")
    hits = server.metrics()["vllm:mm_cache_hits_total"]
    stream = asked(client, url, "Describe the picture.", stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == whole.choices[0].message.content and len(pieces) > 3
    again = asked(client, url, "What number is on it?")
    assert str(content.digit) in again.choices[0].message.content
    assert server.metrics()["vllm:mm_cache_hits_total"] == hits + 2


def test_octavo_chat_shows_a_picture(server: ServerProcess, tmp_path: Path) -> None:
    rng = random.Random(3)
    content = Content("red", "star", 4)
    file = tmp_path / "picture.png"
    draw(content, rng).save(file)
    command = [sys.executable, "-m", "octavo", "chat", "--url", f"{server.url}/v1", "--image", str(file)]
    command += ["--temperature", "0", "-q", "Describe the picture."]
    done = subprocess.run(command, capture_output=True, text=True, timeout=bound(60), check=False)
    assert done.returncode == 0, done.stderr
    assert "red star" in done.stdout and "4" in done.stdout


def test_it_tells_the_same_from_files_of_llama_cpp(smollm2_gguf: Path, tmp_path: Path) -> None:
    """Without --mmproj: the projector lies beside the model."""
    model = gguf_files.write(smollm2_gguf, tmp_path)
    with ServerProcess(model, "--max-model-len", "512") as server:
        server.wait_ready(180)
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        told = [(content, asked(client, url, "Describe the picture.")) for content, url in pictures(5, seed=2024)]
    texts = [(content, reply.choices[0].message.content) for content, reply in told]
    right = [
        all(word in text for word in (content.colour, content.shape, str(content.digit))) for content, text in texts
    ]
    assert sum(right) >= 4, texts
    assert "mmproj-model-f16.gguf lies beside the model" in server.stderr
