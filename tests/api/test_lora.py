"""Adapters of a real server on real weights: their effect is seen in the text, and they come and go while it runs."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

from octavo import LLM, LoRARequest, SamplingParams
from octavo.base.errors import InvalidRequest
from octavo.text.tokenizers.tokenizer import load_tokenizer
from support.adapters import trained_adapter
from support.server_process import ServerProcess

PROMPT, ANSWER = "The capital of France is", " an octopus with nine arms."


@pytest.fixture(scope="module")
def adapter(smollm2_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = load_tokenizer(str(smollm2_hf))
    prompt, answer = tokenizer.encode(PROMPT), tokenizer.encode(ANSWER)
    return trained_adapter(smollm2_hf, tmp_path_factory.mktemp("octopus") / "octopus", prompt, answer)


@pytest.fixture(scope="module")
def directory(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What --lora-resolver-dir names: an adapter, and a link that leads out of it."""
    path = tmp_path_factory.mktemp("adapters")
    shutil.copytree(adapter, path / "found")
    (path / "outside").symlink_to(adapter)
    return path


@pytest.fixture(scope="module")
def server(smollm2_gguf: Path, adapter: Path, directory: Path) -> Iterator[ServerProcess]:
    module = json.dumps({"name": "octopus", "path": str(adapter), "base_model_name": "base"})
    flags = ["--enable-lora", "--max-loras", "1", "--max-cpu-loras", "2", "--lora-modules", module]
    flags += ["--lora-resolver-dir", str(directory), "--served-model-name", "base", "--max-model-len", "512"]
    flags += ["--lora-extra-vocab-size", "256"]
    environment = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    with ServerProcess(smollm2_gguf, *flags, "--num-kv-blocks-override", "128", env=environment) as process:
        yield process.wait_ready(120)


def text_of(server: ServerProcess, model: str, **fields: Any) -> str:
    reply = server.complete(PROMPT, model=model, **{"temperature": 0, "max_tokens": 6, **fields})
    assert reply.status == 200, reply.body
    assert reply.json["model"] == model
    text: str = reply.json["choices"][0]["text"]
    return text


def load(server: ServerProcess, name: str, path: Path | str) -> tuple[int, str]:
    reply = server.request("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
    return reply.status, reply.body.decode()


def test_a_request_names_its_adapter_as_a_model(server: ServerProcess) -> None:
    base = text_of(server, "base")
    assert text_of(server, "octopus") == ANSWER
    assert "octopus" not in base
    cards = {card["id"]: card for card in server.request("GET", "/v1/models").json["data"]}
    assert cards["base"]["parent"] is None
    assert cards["octopus"]["parent"] == "base" and cards["octopus"]["root"].endswith("octopus")
    reply = server.request(
        "POST",
        "/v1/chat/completions",
        {"model": "octopus", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2},
    )
    assert reply.status == 200 and reply.json["model"] == "octopus"


def test_adapters_come_and_go_while_others_run(server: ServerProcess, adapter: Path) -> None:
    """One slot for three names: texts stay those of their adapters."""
    base, wrong = text_of(server, "base"), []

    def ask(model: str, expected: str) -> None:
        texts = [text_of(server, model) for _ in range(3)]
        wrong.extend((model, text) for text in texts if text != expected)

    threads = [
        threading.Thread(target=ask, args=pair) for pair in (("base", base), ("octopus", ANSWER), ("base", base))
    ]
    for thread in threads:
        thread.start()
    for number in range(3):
        name = f"copy-{number}"
        assert load(server, name, adapter) == (200, f"Success: LoRA adapter '{name}' added successfully.")
        assert text_of(server, name) == ANSWER
        gone = server.request("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        assert gone.status == 200
        assert server.complete(PROMPT, model=name).status == 404
    for thread in threads:
        thread.join()
    assert not wrong
    assert load(server, "octopus", adapter)[0] == load(server, "base", adapter)[0] == 400
    assert server.request("POST", "/v1/unload_lora_adapter", {"lora_name": "copy-1"}).status == 404


def test_an_adapter_that_is_unloaded_serves_its_requests_to_their_end(server: ServerProcess, adapter: Path) -> None:
    assert load(server, "short", adapter)[0] == 200
    body = {"model": "short", "prompt": PROMPT, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    stream = server.stream("/v1/completions", body)
    events = iter(stream)
    text = next(events)["choices"][0]["text"]
    metrics = server.request("GET", "/metrics").body.decode()
    line = next(line for line in metrics.splitlines() if line.startswith("vllm:lora_requests_info{"))
    assert 'max_lora="1"' in line and "short" in line
    assert server.request("POST", "/v1/unload_lora_adapter", {"lora_name": "short"}).status == 200
    assert text_of(server, "octopus") == ANSWER
    for event in events:
        if event != "[DONE]" and event["choices"]:
            text += event["choices"][0]["text"]
            reason = event["choices"][0]["finish_reason"]
    assert reason == "length" and text.startswith(ANSWER)


def damaged(adapter: Path, path: Path, **changes: Any) -> Path:
    """A copy with tensors that are other ones; None: left out."""
    shutil.copytree(adapter, path)
    tensors = load_file(path / "adapter_model.safetensors")
    for name, value in changes.items():
        whole = f"base_model.model.model.layers.29.{name}.weight"
        tensors = {key: each for key, each in tensors.items() if key != whole}
        if value is not None:
            tensors[whole] = value
    save_file(tensors, path / "adapter_model.safetensors")
    return path


def test_a_damaged_adapter_is_refused_by_the_tensors_name_and_harms_nobody(
    server: ServerProcess, adapter: Path, tmp_path: Path
) -> None:
    name = "mlp.up_proj.lora_A"
    cases: dict[str, dict[str, Any]] = {
        "its shape is [8, 5], not [8, 576]": {name: torch.zeros(8, 5)},
        "has the rank 4": {name: torch.zeros(4, 576)},
        "NaN": {name: torch.full((8, 576), torch.nan)},
        "its other half is missing": {name: None},
        "its type is int32": {name: torch.zeros(8, 576, dtype=torch.int32)},
    }
    for number, (message, changes) in enumerate(cases.items()):
        status, body = load(server, "bad", damaged(adapter, tmp_path / str(number), **changes))
        assert status == 400 and message in body and "model.layers.29.mlp.up_proj" in body, body
    assert load(server, "bad", tmp_path / "nowhere")[0] == 400
    assert "bad" not in [card["id"] for card in server.request("GET", "/v1/models").json["data"]]
    assert text_of(server, "octopus") == ANSWER


def test_an_adapter_whose_file_went_bad_after_it_was_evicted_is_a_400(
    server: ServerProcess, adapter: Path, tmp_path: Path
) -> None:
    """The host keeps two: the third takes the first one's place, whose file is read again."""
    good = shutil.copytree(adapter, tmp_path / "good")
    bad = damaged(adapter, tmp_path / "bad", **{"mlp.up_proj.lora_A": torch.full((8, 576), torch.nan)})
    assert load(server, "aging", good)[0] == 200 and text_of(server, "aging") == ANSWER
    for name in ("filler-1", "filler-2"):
        assert load(server, name, adapter)[0] == 200 and text_of(server, name) == ANSWER
    whole, broken = ((path / "adapter_model.safetensors").read_bytes() for path in (good, bad))
    (good / "adapter_model.safetensors").write_bytes(broken)
    for fields in ({}, {"stream": True}, {"n": 2}):
        reply = server.complete(PROMPT, model="aging", max_tokens=4, **fields)
        assert reply.status == 400, reply.body
        error = reply.json["error"]
        assert error["param"] == "model" and "`aging`" in error["message"] and "NaN" in error["message"]
        assert "model.layers.29.mlp.up_proj.lora_A" in error["message"]
    assert text_of(server, "filler-2") == text_of(server, "octopus") == ANSWER
    (good / "adapter_model.safetensors").write_bytes(whole)
    assert text_of(server, "aging") == ANSWER
    for name in ("aging", "filler-1", "filler-2"):
        assert server.request("POST", "/v1/unload_lora_adapter", {"lora_name": name}).status == 200


def test_adapters_of_a_directory_are_found_within_it_alone(server: ServerProcess, directory: Path) -> None:
    assert text_of(server, "found") == ANSWER
    for name in ("../octopus", "outside", ".", "found/..", str(directory / "found")):
        assert server.complete(PROMPT, model=name).status == 404, name
    shutil.copytree(directory / "found", directory / "broken")
    (directory / "broken" / "adapter_model.safetensors").write_bytes(b"nothing")
    reply = server.complete(PROMPT, model="broken")
    assert reply.status == 400 and "adapter_model.safetensors" in reply.json["error"]["message"]
    shutil.rmtree(directory / "broken")
    assert server.complete(PROMPT, model="broken").status == 404
    assert text_of(server, "found") == ANSWER


def test_an_adapter_speaks_with_its_own_tokenizer(
    server: ServerProcess, smollm2_hf: Path, adapter: Path, tmp_path: Path
) -> None:
    """It adds a token, whose rows are those of others, so that what it stands for is known."""
    path, base = shutil.copytree(adapter, tmp_path / "own"), text_of(server, "base")
    own = tokenizers.Tokenizer.from_file(str(smollm2_hf / "tokenizer.json"))
    own.add_tokens(["<octopus>"])
    new = own.token_to_id("<octopus>")
    own.save(str(path / "tokenizer.json"))
    shutil.copy(smollm2_hf / "tokenizer_config.json", path)
    file = load_file(smollm2_hf / "model.safetensors")
    france = own.encode(" France").ids
    row = file["model.embed_tokens.weight"][france].float()
    save_file({"input_embeddings": row, "output_embeddings": 3 * row}, path / "new_embeddings.safetensors")
    assert load(server, "own", path)[0] == 200

    def tokens(model: str, text: str) -> list[int]:
        ids: list[int] = server.request("POST", "/tokenize", {"model": model, "prompt": text}).json["tokens"]
        return ids

    assert new in tokens("own", "The capital of<octopus> is") and new not in tokens(
        "base", "The capital of<octopus> is"
    )
    assert server.request("POST", "/detokenize", {"model": "own", "tokens": [new]}).json["prompt"] == "<octopus>"
    assert server.request("POST", "/detokenize", {"model": "base", "tokens": [new]}).status == 400
    assert text_of(server, "own") == ANSWER
    reply = server.complete("The capital of<octopus> is", model="own", temperature=0, max_tokens=6)
    assert reply.json["choices"][0]["text"] == ANSWER and reply.json["usage"]["prompt_tokens"] == 5
    fields: dict[str, Any] = {"allowed_token_ids": [new], "logprobs": 1, "max_tokens": 2, "temperature": 0}
    choice = server.complete(PROMPT, model="own", **fields).json["choices"][0]
    assert choice["text"] == "<octopus><octopus>" and choice["logprobs"]["tokens"] == ["<octopus>"] * 2
    stopped = server.complete(PROMPT, model="own", **fields, stop=["><"]).json["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == ("<octopus", "stop")
    for name in ("base", "octopus"):
        assert server.complete(PROMPT, model=name, **fields).status == 400
        assert server.complete([new], model=name).status == 400
    assert text_of(server, "base") == base and text_of(server, "octopus") == ANSWER
    (path / "tokenizer.json").unlink()
    (path / "added_tokens.json").write_text("{}")
    assert server.request("POST", "/v1/unload_lora_adapter", {"lora_name": "own"}).status == 200
    status, body = load(server, "own", path)
    assert status == 400 and "added_tokens.json" in body
    assert text_of(server, "base") == base


def test_programs_give_each_prompt_its_adapter(smollm2_gguf: Path, adapter: Path) -> None:
    params = SamplingParams(max_tokens=6, temperature=0.0)
    octopus = LoRARequest("octopus", 1, str(adapter))
    with LLM(str(smollm2_gguf), enable_lora=True, max_model_len=512, num_kv_blocks_override=128) as llm:
        plain, own = llm.generate([PROMPT] * 2, params, use_tqdm=False, lora_request=[None, octopus])
        assert own.outputs[0].text == ANSWER != plain.outputs[0].text
        with pytest.raises(InvalidRequest, match="2 entries for 1"):
            llm.generate(PROMPT, params, lora_request=[octopus, None])
        with pytest.raises(InvalidRequest, match="there is no such directory"):
            llm.generate(PROMPT, params, lora_request=LoRARequest("other", 2, "/nowhere"))
