"""Pictures from end to end, with a tiny random LLaVA: the client of OpenAI's documentation, and programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import BadRequestError, OpenAI

from octavo import LLM, SamplingParams
from octavo.base.errors import InvalidRequest
from support.media_fakes import data_url, encoded, image_part, pdf, picture, wav
from support.server_process import ServerProcess, bound

pytestmark = pytest.mark.slow

WORDS = ["<unk>", "<s>", "</s>", "<image>", *"abcdefghijklmnopqrstuvwxyzU:A\n ?", "▁"]
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}: {% for p in m.content if p.type == 'image' %}<image>\n{% endfor %}"
    "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endfor %}a:"
)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tokenizers
    import torch
    import transformers

    path = tmp_path_factory.mktemp("llava")
    text = {
        "model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": 16, "patch_size": 4,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_id=3)
    model = transformers.LlavaForConditionalGeneration(config).eval().float()
    for parameter in model.parameters():  # wide, so that a picture shows
        parameter.data = torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.15)
    model.save_pretrained(path)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.add_special_tokens(["<unk>", "<s>", "</s>", "<image>"])
    backend.decoder = tokenizers.decoders.Fuse()
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": TEMPLATE}))
    settings = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return path


RED, BLUE = picture(20, 30, (255, 0, 0)), picture(40, 20, (0, 0, 255))
FLAGS = ["--limit-mm-per-prompt", "image=3", "--num-threads", "1"]


@pytest.fixture(scope="module")
def server(llava: Path) -> Iterator[ServerProcess]:
    with ServerProcess(llava, *FLAGS) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def asked(client: OpenAI, *parts: Any) -> Any:
    messages: Any = [{"role": "user", "content": list(parts)}]
    model = client.models.list().data[0].id
    return client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0)


def test_the_reply_depends_on_the_picture_and_its_place(client: OpenAI) -> None:
    say = {"type": "text", "text": "what?"}
    red, again, blue = (asked(client, say, image_part(image)) for image in (RED, RED, BLUE))
    assert red.choices[0].message.content == again.choices[0].message.content != blue.choices[0].message.content
    assert red.usage.prompt_tokens == len("u: ") + 16 + len("\nwhat?a:")
    assert red.usage.prompt_tokens_details.model_dump()["image_tokens"] == 16
    both, turned = (asked(client, say, *map(image_part, pair)) for pair in ((RED, BLUE), (BLUE, RED)))
    assert both.choices[0].message.content != turned.choices[0].message.content
    assert both.usage.prompt_tokens == red.usage.prompt_tokens + 17


def test_the_newer_api_sees_the_same(client: OpenAI) -> None:
    content: Any = [
        {"type": "input_text", "text": "what?"},
        {"type": "input_image", "image_url": data_url(encoded(RED)), "detail": "auto"},
    ]
    model = client.models.list().data[0].id
    reply = client.responses.create(
        model=model, input=[{"role": "user", "content": content}], max_output_tokens=12, temperature=0, store=False
    )
    chat = asked(client, {"type": "text", "text": "what?"}, image_part(RED))
    assert reply.output_text == chat.choices[0].message.content


def test_too_many_pictures_are_refused_and_the_metrics_tell_of_the_others(
    client: OpenAI, server: ServerProcess
) -> None:
    with pytest.raises(BadRequestError, match=r"At most 3 image\(s\)"):
        asked(client, *[image_part(RED)] * 4)
    counts = server.metrics()
    assert counts["vllm:mm_cache_hits_total"] >= 2 and counts["octavo:media_refused_total"] == 1


def run_example(server: ServerProcess, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).parents[2] / "examples" / name), *words]
    env = os.environ | {"OPENAI_BASE_URL": f"{server.url}/v1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=bound(60), check=False)


def test_the_examples_run(server: ServerProcess, tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    for name, data in (("a.png", encoded(RED)), ("b.jpg", encoded(BLUE, "JPEG")), ("c.pdf", pdf("hello"))):
        (tmp_path / name).write_bytes(data)
    a, b, c = (str(tmp_path / name) for name in ("a.png", "b.jpg", "c.pdf"))
    for name, words, shown in (
        ("image.py", [], "16 of them for the picture)"),
        ("image.py", [b], "16 of them for the picture)"),
        ("images.py", [a, b], "And how do they differ?"),
        ("pdf.py", [c], ""),
    ):
        done = run_example(server, name, *words)
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout
    sound = tmp_path / "d.wav"
    sound.write_bytes(wav(np.zeros(100, "<i2")))
    assert "This model takes text and images, and no audio." in run_example(server, "audio.py", str(sound)).stderr


def test_programs_give_pictures_as_what_they_are(llava: Path, client: OpenAI) -> None:
    say = {"type": "text", "text": "what?"}
    expected = asked(client, say, image_part(RED)).choices[0].message.content
    params = SamplingParams(temperature=0, max_tokens=12)
    with LLM(str(llava), num_threads=1, limit_mm_per_prompt={"image": 2}) as llm:
        parts: list[Any] = [image_part(RED), {"type": "image_pil", "image_pil": RED}, {"type": "image", "image": RED}]
        for part in parts:
            [result] = llm.chat([{"role": "user", "content": [say, part]}], params, use_tqdm=False)
            assert result.outputs[0].text == expected
        text = "u: <image>\nwhat?a:"
        ids = llm.get_tokenizer().encode(text)
        prompts: list[Any] = [
            {"prompt": text, "multi_modal_data": {"image": RED}},
            {"prompt": text, "multi_modal_data": {"image": [np.asarray(RED)]}},
            {"prompt_token_ids": ids, "multi_modal_data": {"image": data_url(encoded(RED))}},
        ]
        for result in llm.generate(prompts, params, use_tqdm=False):
            assert result.outputs[0].text == expected
        for prompt, words in (
            ({"prompt": "a", "multi_modal_data": {"image": RED}}, "0 times"),
            ({"prompt": text, "multi_modal_data": {"image": "x"}}, "must start with"),
            ({"prompt": text, "multi_modal_data": {"picture": RED}}, "kinds"),
            ({"prompt": text, "multi_modal_data": {"image": np.zeros((2, 2))}}, "uint8"),
            ({"prompt": text, "multi_modal_data": {"image": [RED] * 3}}, "At most 2"),
            ({"prompt": text, "multi_modal_data": {"image": RED}, "mm_processor_kwargs": {"a": 1}}, "no option"),
        ):
            with pytest.raises(InvalidRequest, match=words):
                llm.generate(prompt, params, use_tqdm=False)
