"""Prompt adapters of a real server on real weights. Rows are those of tokens, so that it is known what they say."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from octavo import LLM, LoRARequest, PromptAdapterRequest, SamplingParams
from octavo.base.errors import InvalidRequest
from octavo.text.tokenizers.tokenizer import load_tokenizer
from support.adapters import write_adapter, write_prompt_adapter
from support.server_process import ServerProcess

BEFORE, PROMPT = "Paris is the capital of France. Rome is the capital of Italy.", " Madrid is the capital of"
OTHER = "Question: what comes after one, two, three? Answer: four."


@pytest.fixture(scope="module")
def ids(smollm2_hf: Path) -> dict[str, list[int]]:
    tokenizer = load_tokenizer(str(smollm2_hf))
    return {text: tokenizer.encode(text) for text in (BEFORE, PROMPT, OTHER)}


@pytest.fixture(scope="module")
def paths(smollm2_hf: Path, ids: dict[str, list[int]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    table = load_file(smollm2_hf / "model.safetensors")["model.embed_tokens.weight"].float()
    root = tmp_path_factory.mktemp("prompts")
    found = {name: write_prompt_adapter(root / name, table[ids[text]]) for name, text in NAMES.items()}
    found["narrow"] = write_prompt_adapter(root / "narrow", table[:4, :64])
    found["long"] = write_prompt_adapter(root / "long", table[:33])
    found["prefix"] = write_prompt_adapter(root / "prefix", table[:4], peft_type="PREFIX_TUNING")
    return found | {"lora": write_adapter(root / "lora", {"x.lora_A.weight": torch.ones(8, 2)}, 8)}


NAMES = {"capitals": BEFORE, "numbers": OTHER}


@pytest.fixture(scope="module")
def server(smollm2_hf: Path, paths: dict[str, Path]) -> Iterator[ServerProcess]:
    flags = ["--enable-prompt-adapter", "--max-prompt-adapters", "1", "--max-prompt-adapter-token", "32"]
    flags += ["--prompt-adapters", f"capitals={paths['capitals']}", "--served-model-name", "base"]
    flags += ["--allow-runtime-lora-updating", "--max-model-len", "256", "--num-kv-blocks-override", "64"]
    with ServerProcess(smollm2_hf, *flags) as process:
        yield process.wait_ready(120)


def complete(server: ServerProcess, model: str, prompt: str | list[int] = PROMPT, **fields: Any) -> Any:
    reply = server.complete(prompt, model=model, **{"temperature": 0, "max_tokens": 8, **fields})
    assert reply.status == 200, reply.body
    return reply.json


def text_of(server: ServerProcess, model: str, prompt: str | list[int] = PROMPT) -> str:
    text: str = complete(server, model, prompt)["choices"][0]["text"]
    return text


def load(server: ServerProcess, name: str, path: Path) -> tuple[int, str]:
    reply = server.request("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
    return reply.status, reply.body.decode()


def test_a_prompt_stands_behind_the_rows_of_its_adapter(server: ServerProcess, ids: dict[str, list[int]]) -> None:
    whole = complete(server, "base", ids[BEFORE] + ids[PROMPT], logprobs=3)
    own = complete(server, "capitals", PROMPT, logprobs=3)
    assert own["choices"][0]["text"] == whole["choices"][0]["text"] != text_of(server, "base")
    assert own["choices"][0]["logprobs"]["token_logprobs"] == whole["choices"][0]["logprobs"]["token_logprobs"]
    assert own["usage"] == whole["usage"] and own["model"] == "capitals"
    cards = {card["id"]: card for card in server.request("GET", "/v1/models").json["data"]}
    assert cards["capitals"]["parent"] == "base" and cards["capitals"]["root"].endswith("capitals")


def test_what_the_rows_say_is_no_part_of_the_text(server: ServerProcess, ids: dict[str, list[int]]) -> None:
    """Of a prompt that is shown, its own tokens alone; they are scored behind the rows."""
    scored = {"echo": True, "logprobs": 1, "max_tokens": 2}
    own = complete(server, "capitals", PROMPT, **scored)["choices"][0]
    whole = complete(server, "base", ids[BEFORE] + ids[PROMPT], **scored)["choices"][0]
    assert own["text"].startswith(PROMPT)
    scores = own["logprobs"]["token_logprobs"]
    assert scores[0] is None and scores[1:] == whole["logprobs"]["token_logprobs"][len(ids[BEFORE]) + 1 :]
    for fields in ({"temperature": 1, "seed": 3, "n": 3}, {"use_beam_search": True, "best_of": 3, "n": 2}):
        choices = [
            [choice["text"] for choice in complete(server, model, prompt, **fields)["choices"]]
            for model, prompt in (("capitals", PROMPT), ("base", ids[BEFORE] + ids[PROMPT]))
        ]
        assert choices[0] == choices[1]


def test_the_context_has_room_for_the_rows(server: ServerProcess, ids: dict[str, list[int]]) -> None:
    prompt = [5] * (256 - len(ids[BEFORE]) - 4)
    assert complete(server, "capitals", prompt, max_tokens=4, ignore_eos=True)["usage"]["total_tokens"] == 256
    reply = server.complete(prompt, model="capitals", max_tokens=5)
    assert reply.status == 400 and "the prompt has 252, which leaves 4" in reply.json["error"]["message"]
    cut = complete(server, "capitals", [5] * 300, truncate_prompt_tokens=-1, max_tokens=3)
    assert cut["usage"]["total_tokens"] == 256


def test_adapters_come_and_go_while_others_run(
    server: ServerProcess, paths: dict[str, Path], ids: dict[str, list[int]]
) -> None:
    """One place for two names."""
    expected = {"base": text_of(server, "base"), "capitals": text_of(server, "capitals")}
    expected["numbers"] = text_of(server, "base", ids[OTHER] + ids[PROMPT])
    assert load(server, "numbers", paths["numbers"]) == (200, "Success: prompt adapter 'numbers' added successfully.")
    wrong: list[str] = []

    def ask(model: str) -> None:
        wrong.extend(model for _ in range(3) if text_of(server, model) != expected[model])

    threads = [threading.Thread(target=ask, args=(name,)) for name in (*expected, *expected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert load(server, "numbers", paths["numbers"])[0] == 400
    gone = server.request("POST", "/v1/unload_lora_adapter", {"lora_name": "numbers"})
    assert gone.body == b"Success: prompt adapter 'numbers' removed successfully."
    assert server.complete(PROMPT, model="numbers").status == 404


def test_what_does_not_fit_is_refused_by_its_name(server: ServerProcess, paths: dict[str, Path]) -> None:
    cases = {
        "narrow": "tensor 'prompt_embeddings': its shape is [4, 64], not [4, 576]",
        "long": "num_virtual_tokens is 33, and --max-prompt-adapter-token is 32",
        "prefix": "peft_type is 'PREFIX_TUNING'", "lora": "a LoRA adapter, which needs --enable-lora",
    }  # fmt: skip
    for name, message in cases.items():
        status, body = load(server, "bad", paths[name])
        assert status == 400 and message in body and "`bad`" in body, body
    assert [card["id"] for card in server.request("GET", "/v1/models").json["data"]] == ["base", "capitals"]


def test_an_adapter_that_became_another_after_it_was_evicted_is_a_400(
    server: ServerProcess, paths: dict[str, Path], tmp_path: Path
) -> None:
    rows = load_file(paths["numbers"] / "adapter_model.safetensors")["prompt_embeddings"]
    path = write_prompt_adapter(tmp_path / "aging", rows[:6])
    assert load(server, "aging", path)[0] == 200
    first = text_of(server, "aging")
    text_of(server, "capitals")  # takes its place
    write_prompt_adapter(path, rows[:5])
    reply = server.complete(PROMPT, model="aging")
    assert reply.status == 400 and "has 5 virtual tokens, and had 6" in reply.json["error"]["message"], reply.body
    assert "`aging`" in reply.json["error"]["message"]
    text_of(server, "capitals")
    write_prompt_adapter(path, rows[:6])
    assert text_of(server, "aging") == first
    assert server.request("POST", "/v1/unload_lora_adapter", {"lora_name": "aging"}).status == 200


def test_programs_give_each_prompt_its_adapter(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    base = transformers.LlamaForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    before, prompt = [9, 8, 7, 6], [3, 4, 5]
    path = write_prompt_adapter(tmp_path / "rows", base.model.embed_tokens.weight.detach()[before])
    lora = write_adapter(tmp_path / "lora", {"x.lora_A.weight": torch.ones(8, 2)}, 8)
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    rows = PromptAdapterRequest("rows", 1, str(path), 4)
    options: dict[str, Any] = {
        "num_kv_blocks_override": 16,
        "max_prompt_adapter_token": 8,
        "dtype": "float32",
        "enable_sleep_mode": True,
    }
    with LLM(str(tmp_path / "base"), enable_prompt_adapter=True, skip_tokenizer_init=True, **options) as llm:
        found = llm.generate(
            [prompt, prompt, before + prompt], params, use_tqdm=False, prompt_adapter_request=[None, rows, None]
        )
        plain, own, whole = (each.outputs[0].token_ids for each in found)
        assert own == whole != plain and found[1].prompt_token_ids == prompt
        llm.sleep()
        llm.wake_up()
        (again,) = llm.generate([prompt], params, use_tqdm=False, prompt_adapter_request=rows)
        assert again.outputs[0].token_ids == own
        wrong = PromptAdapterRequest("rows", 1, str(path), 3)
        other, missing = PromptAdapterRequest("x", 2, str(lora)), LoRARequest("y", 2, "/nowhere")
        cases: list[tuple[dict[str, Any], str]] = [
            ({"prompt_adapter_request": wrong}, "`prompt_adapter_num_virtual_tokens` is 3"),
            ({"prompt_adapter_request": [rows, None]}, "2 entries for 1"),
            ({"prompt_adapter_request": other}, "is not a prompt adapter: its peft_type is LORA"),
            ({"lora_request": missing}, "enable_lora=True"),
            ({"lora_request": missing, "prompt_adapter_request": rows}, "runs with one adapter"),
        ]
        for asked, message in cases:
            with pytest.raises(InvalidRequest, match=message):
                llm.generate([prompt], params, use_tqdm=False, **asked)
