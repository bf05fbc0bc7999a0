"""Embeddings, classes, scores and ranks, as servers and programs give them."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ollama
import openai
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from octavo import LLM
from octavo.base.errors import InvalidRequest
from support.server_process import ServerProcess, bound
from support.tiny_encoder import MAX_POSITIONS, make_bert, with_modules

FIRST, SECOND = "w10 w11 w12", "w40 w41 w42 w43 w44"
IDS = {FIRST: [0, 10, 11, 12, 2], SECOND: [0, 40, 41, 42, 43, 44, 2]}
LONG = " ".join(f"w{4 + i}" for i in range(60))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    path = tmp_path_factory.mktemp("embedder")
    model = make_bert(path)
    with_modules(path)
    return model, path


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    path = tmp_path_factory.mktemp("ranker")
    return make_bert(path, "ForSequenceClassification", num_labels=1), path


@pytest.fixture(scope="module")
def server(embedder: tuple[Any, Path]) -> Iterator[ServerProcess]:
    with ServerProcess(embedder[1], "--served-model-name", "e", "--hf-overrides", '{"is_matryoshka": true}') as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def llm(ranker: tuple[Any, Path]) -> Iterator[LLM]:
    with LLM(str(ranker[1])) as made:
        yield made


def vector(model: Any, ids: list[int], size: int = 32) -> np.ndarray:
    with torch.no_grad():
        row = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)[:size]
    found: np.ndarray = (row / row.norm()).numpy()
    return found


def logit(model: Any, first: list[int], second: list[int]) -> float:
    types = torch.tensor([[0] * len(first) + [1] * (len(second) - 1)])
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([first + second[1:]]), token_type_ids=types).logits[0, 0])


def test_openai_s_client_gets_the_model_s_vectors(server: ServerProcess, embedder: tuple[Any, Path]) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    for given in ([FIRST, SECOND], [IDS[FIRST], IDS[SECOND]]):
        for options in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):
            reply = client.embeddings.create(model="e", input=given, **options)  # type: ignore[call-overload]
            assert [each.index for each in reply.data] == [0, 1]
            for each, text in zip(reply.data, (FIRST, SECOND), strict=True):
                values = each.embedding
                if isinstance(values, str):
                    values = np.frombuffer(base64.b64decode(values), "<f4")
                assert np.abs(np.array(values) - vector(embedder[0], IDS[text])).max() < 1e-4
            assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (12, 12)
    for one in (FIRST, IDS[FIRST]):
        assert len(client.embeddings.create(model="e", input=one).data) == 1
    short = client.embeddings.create(model="e", input=FIRST, dimensions=8, user="me").data[0].embedding
    assert np.abs(np.array(short) - vector(embedder[0], IDS[FIRST], 8)).max() < 1e-4


def test_litellm_embedding_and_rerank(server: ServerProcess) -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import asks the internet for prices
    litellm = pytest.importorskip("litellm")
    for model, base in (
        ("openai/e", f"{server.url}/v1"),
        ("hosted_vllm/e", f"{server.url}/v1"),
        ("ollama/e", server.url),
    ):
        found = litellm.embedding(model=model, input=["w10", "w11 w12"], api_base=base, api_key="none")
        assert [len(each["embedding"]) for each in found.data] == [32, 32]
    for provider in ("hosted_vllm", "cohere", "jina_ai"):
        ranks = litellm.rerank(
            model=f"{provider}/e", query="w10", documents=["w40", "w10"], top_n=1, api_base=server.url, api_key="none"
        )
        assert [each["index"] for each in ranks.results] == [1]


def test_langchain_embeddings(server: ServerProcess) -> None:
    """It counts tokens by a vocabulary of OpenAI's unless told not to."""
    langchain_openai = pytest.importorskip("langchain_openai")
    made = langchain_openai.OpenAIEmbeddings(
        model="e", base_url=f"{server.url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    assert [len(each) for each in made.embed_documents(["w10", "w11 w12"])] == [32, 32]


def test_prompts_and_texts_that_are_cut(server: ServerProcess, embedder: tuple[Any, Path]) -> None:
    def first(**body: Any) -> np.ndarray:
        return np.array(server.request("POST", "/v1/embeddings", body).json["data"][0]["embedding"])

    found = first(input=FIRST, prompt_name="query")
    assert np.abs(found - vector(embedder[0], [0, 90, 91, 10, 11, 12, 2])).max() < 1e-4
    # What stands behind a text stays there.
    found = first(input=LONG, truncate_prompt_tokens=6)
    assert np.abs(found - vector(embedder[0], [0, 4, 5, 6, 7, 2])).max() < 1e-4
    full = [0, *range(4, 4 + MAX_POSITIONS - 2), 2]
    assert np.abs(first(input=LONG, truncate_prompt_tokens=-1) - vector(embedder[0], full)).max() < 1e-4


def test_many_texts_of_one_request(server: ServerProcess) -> None:
    """They are tokenized together; each has the vector that it has alone, and what is wrong with one its name."""
    texts = [" ".join(f"w{4 + (7 * number + i) % 80}" for i in range(1 + number % 9)) for number in range(200)]

    def embedded(given: Any) -> Any:
        return server.request("POST", "/v1/embeddings", {"input": given}).json["data"]

    found = embedded(texts)
    assert [each["index"] for each in found] == list(range(200))
    for place in (0, 63, 64, 65, 199):
        [alone] = embedded(texts[place])
        assert alone["embedding"] == found[place]["embedding"], place
    for bad, told in (("", "empty"), ("w10 \ud800", "surrogate"), (LONG, "At most 40")):
        reply = server.request("POST", "/v1/embeddings", {"input": [*texts[:70], bad, *texts[71:]]})
        assert (reply.status, reply.json["error"]["param"]) == (400, "input.70")
        assert told in reply.json["error"]["message"]


def test_errors_name_the_field(server: ServerProcess) -> None:
    cases: list[tuple[str, dict[str, Any], str, str]] = [
        ("/v1/embeddings", {"input": LONG}, "input", "truncate_prompt_tokens"),
        ("/v1/embeddings", {"input": ["w5", LONG]}, "input.1", "At most 40"),
        ("/v1/embeddings", {"input": ""}, "input", "empty"),
        ("/v1/embeddings", {"input": []}, "input", "empty"),
        ("/v1/embeddings", {"input": [[5, 96]]}, "input", "0..95"),
        ("/v1/embeddings", {}, "input", "Either"),
        ("/v1/embeddings", {"input": "w5", "dimensions": 33}, "dimensions", "32"),
        ("/v1/embeddings", {"input": "w5", "prompt_name": "quary"}, "prompt_name", "query"),
        ("/v1/embeddings", {"input": "w5", "truncate_prompt_tokens": 41}, "truncate_prompt_tokens", "40"),
        ("/classify", {"input": "w5"}, "model", "no classes"),
        ("/score", {"text_1": "w5"}, "text_2", "Both"),
        ("/score", {"text_1": ["w5", "w6"], "text_2": ["w5"]}, "text_1", "as many"),
        ("/rerank", {"query": "w5", "documents": ["w6"], "top_n": -1}, "top_n", "at least 0"),
        ("/v1/completions", {"prompt": "w5"}, "model", "/v1/embeddings"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "w5"}]}, "model", "embeddings"),
    ]
    for path, body, param, told in cases:
        reply = server.request("POST", path, body)
        error = reply.json["error"]
        assert (reply.status, error["param"]) == (400, param), (path, body, error)
        assert told in error["message"], (path, body, error)
    assert server.request("POST", "/v1/embeddings", {"input": "w5", "model": "other"}).status == 404


def test_scores_ranks_and_rows_of_an_embedder(server: ServerProcess, embedder: tuple[Any, Path]) -> None:
    one, other = (vector(embedder[0], IDS[text]) for text in (FIRST, SECOND))
    scores = server.request("POST", "/v1/score", {"text_1": FIRST, "text_2": [SECOND, FIRST]}).json["data"]
    assert [each["score"] for each in scores] == pytest.approx([float(one @ other), 1.0], abs=1e-6)
    body = {"query": FIRST, "documents": [SECOND, {"text": FIRST}], "top_n": 1}
    for path, shows in (("/rerank", True), ("/v1/rerank", True), ("/v2/rerank", False)):
        reply = server.request("POST", path, body).json
        [best] = reply["results"]
        assert (best["index"], "document" in best, "meta" in reply) == (1, shows, not shows)
        assert best["relevance_score"] == pytest.approx(1.0, abs=1e-6)
    rows = server.request("POST", "/pooling", {"input": FIRST, "task": "token_embed"}).json["data"][0]["data"]
    assert np.array(rows).shape == (5, 32)


def test_the_example(server: ServerProcess) -> None:
    script = Path(__file__).parents[2] / "examples" / "embeddings.py"
    environment = {**os.environ, "OPENAI_BASE_URL": f"{server.url}/v1"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=bound(60), check=False)
    assert done.returncode == 0 and "best: " in done.stdout, done.stderr


def test_ollama_s_client(server: ServerProcess, embedder: tuple[Any, Path]) -> None:
    client = ollama.Client(server.url)
    reply = client.embed("e", [FIRST, LONG])
    assert np.abs(np.array(reply.embeddings[0]) - vector(embedder[0], IDS[FIRST])).max() < 1e-4
    assert np.abs(np.array(client.embeddings("e", FIRST).embedding) - np.array(reply.embeddings[0])).max() == 0
    assert client.show("e").capabilities == ["embedding"]
    with pytest.raises(ollama.ResponseError, match="At most 40"):
        client.embed("e", LONG, truncate=False)


def test_a_reader_of_pairs_for_programs(llm: LLM, ranker: tuple[Any, Path]) -> None:
    scored = llm.score(FIRST, [SECOND, FIRST])
    for found, text in zip(scored, (SECOND, FIRST), strict=True):
        expected = torch.sigmoid(torch.tensor(logit(ranker[0], IDS[FIRST], IDS[text]))).item()
        assert found.outputs.score == pytest.approx(expected, abs=1e-4)  # type: ignore[union-attr]
    [classes] = llm.classify(FIRST)
    assert classes.outputs.label == "LABEL_0" and 0 < classes.outputs.probs[0] < 1  # type: ignore[union-attr]
    assert classes.num_tokens == 5
    with pytest.raises(InvalidRequest, match="no embeddings"):
        llm.embed(FIRST)
    with pytest.raises(InvalidRequest, match="generates no text"):
        llm.generate(FIRST, use_tqdm=False)


def test_a_reranker_that_judges_by_two_tokens(tmp_path: Path) -> None:
    """Both texts stand in the template that it was trained with, unless they bring their own."""
    options = {
        "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16,
        "num_key_value_heads": 1, "intermediate_size": 48, "max_position_embeddings": 1000,
    }  # fmt: skip
    torch.manual_seed(2)
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    words = {"yes": 0, "no": 1, **{char: 2 + at for at, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    asked = (
        "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n<Query>: a {document}"
    )

    def expected(text: str | list[int]) -> float:
        ids = tokenizer.encode(text).ids if isinstance(text, str) else text
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        return float(torch.sigmoid(logits[0] - logits[1]))

    with LLM(str(tmp_path), hf_overrides={"is_original_qwen3_reranker": True}, max_model_len=1000) as llm:
        [first, second] = llm.score("a {document}", ["b c", "{query}"])
        assert first.outputs.score == pytest.approx(expected(f"{prefix}{asked}\n<Document>: b c{suffix}"), abs=1e-4)
        assert second.outputs.score == pytest.approx(
            expected(f"{prefix}{asked}\n<Document>: {{query}}{suffix}"), abs=1e-4
        )
        # Of a pair that is cut the template's end stays.
        ids = tokenizer.encode(f"{prefix}{asked}\n<Document>: b c{suffix}").ids
        behind = tokenizer.encode(suffix).ids
        [found] = llm.score("a {document}", "b c", truncate_prompt_tokens=len(ids) - 3)
        assert found.outputs.score == pytest.approx(expected([*ids[: -len(behind) - 3], *behind]), abs=1e-4)
        own = f"{prefix}<Instruct>: x\n<Query>: a\n"
        [found] = llm.score(own, f"<Document>: b{suffix}")
        assert found.outputs.score == pytest.approx(expected(f"{own}<Document>: b{suffix}"), abs=1e-4)
