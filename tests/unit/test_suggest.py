"""What is suggested for a name that does not exist, and what is not."""

from __future__ import annotations

import pytest

from octavo.base.suggest import nearest, suggest
from octavo.cli.environment import VARIABLES
from octavo.cli.flags import flags

FLAGS = [option for flag in flags().values() for option in flag.options]
DEVICES = ["auto", "cpu", "cuda"]
DTYPES = ["auto", "float32", "float", "bfloat16", "float16", "half"]
FORMATS = ["openai", "hermes", "llama3_json", "mistral", "pythonic", "deepseek_v3", "qwen3_coder"]
FIELDS = ["model", "temperature", "top_p", "top_k", "max_tokens", "min_tokens", "n", "stop", "stream", "seed"]
ROUTES = ["/v1/chat/completions", "/v1/completions", "/v1/models", "/tokenize", "/detokenize", "/health", "/metrics"]

NEAR = [
    ("--pot", FLAGS, "--port"),
    ("--prot", FLAGS, "--port"),
    ("--max-modle-len", FLAGS, "--max-model-len"),
    ("--max_model_length", FLAGS, "--max-model-len"),
    ("--maxmodellen", FLAGS, "--max-model-len"),
    ("--threads", FLAGS, "--num-threads"),
    ("--gpu-memory", FLAGS, "--gpu-memory-utilization"),
    ("--timeout-keepalive", FLAGS, "--timeout-keep-alive"),
    ("flot32", DTYPES, "float32"),
    ("bf16", DTYPES, "bfloat16"),
    ("Float16", DTYPES, "float16"),
    ("cup", DEVICES, "cpu"),
    ("cdua", DEVICES, "cuda"),
    ("hermez", FORMATS, "hermes"),
    ("opnai", FORMATS, "openai"),
    ("deepseek", FORMATS, "deepseek_v3"),
    ("temprature", FIELDS, "temperature"),
    ("maxTokens", FIELDS, "max_tokens"),
    ("top_q", FIELDS, "top_p"),
    ("sreve", ["serve", "chat", "bench"], "serve"),
    ("OCTAVO_APIKEY", VARIABLES, "OCTAVO_API_KEY"),
    ("/v1/chat/completion", ROUTES, "/v1/chat/completions"),
    ("/v1/chats/completions", ROUTES, "/v1/chat/completions"),
    ("Tiny", ["tiny", "alias"], "tiny"),
    ("smolm2", ["smollm2"], "smollm2"),
]
FAR = [
    ("nope", FORMATS),
    ("tpu", DEVICES),
    ("gpu", DEVICES),
    ("mps", DEVICES),
    ("fp8", DTYPES),
    ("int8", ["int4", "fp8"]),
    ("float64", DTYPES),
    ("llama3", ["llama2"]),
    ("gpt-4o", ["smollm2", "tiny"]),
    ("--foo", FLAGS),
    ("x", FIELDS),
    ("m", FIELDS),
    ("user", FIELDS),
    ("OCTAVO_FOO", VARIABLES),
    ("OCTAVO_HOST", VARIABLES),
    ("/v1/rerank", ROUTES),
    ("/session", ROUTES),
    ("", FIELDS),
    ("---", FLAGS),
    ("x" * 100_000, FIELDS),
]


@pytest.mark.parametrize(("word", "names", "expected"), NEAR, ids=lambda value: str(value)[:24])
def test_a_slip_or_a_part_of_a_name_finds_it(word: str, names: list[str], expected: str) -> None:
    assert suggest(word, names) == expected
    assert nearest(word, names) == f"; did you mean {expected}?"


@pytest.mark.parametrize(("word", "names"), FAR, ids=lambda value: str(value)[:24])
def test_what_is_near_in_letters_only_finds_nothing(word: str, names: list[str]) -> None:
    assert suggest(word, names) is None
    assert nearest(word, names) == ""


def test_of_equally_near_names_the_first_is_told() -> None:
    assert suggest("top_x", ["top_k", "top_p"]) == "top_k"
    assert suggest("abcd", []) is None
