"""The settings that a start tells can be pasted: a shell and the parser make the same configuration of them."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.base.command_line import command_line, shell_word
from octavo.base.config import ServeConfig, ServerConfig
from octavo.cli.flags import Flag, flags
from octavo.cli.serve import serve_config

TABLE = flags()
#: Settings that need others.
TOGETHER = {
    "ssl_certfile": ["--ssl-keyfile", "k"], "ssl_keyfile": ["--ssl-certfile", "c"],
    "ssl_ca_certs": ["--ssl-certfile", "c", "--ssl-keyfile", "k"],
    "ssl_ciphers": ["--ssl-certfile", "c", "--ssl-keyfile", "k"],
    "ssl_cert_reqs": ["--ssl-certfile", "c", "--ssl-keyfile", "k"],
    "enable_prompt_adapter": ["--max-prompt-adapter-token", "8"],
}  # fmt: skip


def given_as(flag: Flag) -> str:
    special = {"root_path": "/v", "max_num_batched_tokens": "4096", "cpu_memory_utilization": "0.25"}
    special |= {"gpu_memory_utilization": "0.25", "max_logprobs": "-1"}
    special |= {name: '{"top_k": "it\'s"}' for name, other in TABLE.items() if other.is_json}
    special["model_loader_extra_config"] = '{"pattern": "it\'s {rank} {part}"}'
    special["structured_outputs_config"] = '{"disable_any_whitespace": true}'
    special["pooler_config"] = '{"pooling_type": "mean"}'
    special["limit_mm_per_prompt"], special["media_io_kwargs"] = '{"image": 4}', '{"video": {"num_frames": 8}}'
    if flag.field in special:
        return special[flag.field]
    if flag.choices:
        return str(next(c for c in reversed(flag.choices) if c != flag.default))
    return {int: "77", float: "7.5", str: "a word's; $HOME"}[flag.kind]


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_setting_is_told_as_it_is_given(name: str) -> None:
    flag = TABLE[name]
    words = ["--no-" + flag.option[2:] if flag.default else flag.option]
    if flag.kind is not bool:
        words = [flag.option, given_as(flag)]
    config = serve_config(["some/model", *words, *TOGETHER.get(name, [])], {})
    told = shlex.split(command_line(config))
    assert told[:3] == ["octavo", "serve", "some/model"]
    if flag.field in ("api_key", "admin_api_key", "mcp_servers"):
        assert told[3:] == [flag.option, "***"]
    else:
        assert serve_config(told[2:], {}) == config


def test_only_what_was_set_is_told_and_no_secret() -> None:
    assert command_line(ServeConfig()) == "octavo serve smollm2"
    server = ServerConfig(port=9000, api_key=["secret", "other"], served_model_name=["a b", "c"])
    line = command_line(ServeConfig(server=server))
    assert line == ("octavo serve smollm2 --port 9000 --served-model-name 'a b' c --api-key '***' --api-key '***'")


@pytest.mark.parametrize("names", [[], ["-x"], ["[x"], ["[1]", "b"], ["a", "-b"], ["a,b"], ["\u2028"]])
def test_lists_of_odd_words_come_back(names: list[str]) -> None:
    config = ServeConfig(server=ServerConfig(allowed_methods=names))
    line = command_line(config).replace("$'\\u2028'", "'\u2028'")
    assert serve_config(shlex.split(line)[2:], {}) == ServeConfig(server=ServerConfig(allowed_methods=names))


@pytest.mark.parametrize("names", [["a.B"], ["a.B", "c.d"], ["-x", "--y"]])
def test_lists_of_one_word_at_a_time_come_back(names: list[str]) -> None:
    """Given as several words of one flag, the second would be the model."""
    config = ServeConfig(server=ServerConfig(middleware=names))
    assert serve_config(shlex.split(command_line(config))[2:], {}) == config


def test_a_template_of_several_lines_is_one_word_on_one_line() -> None:
    text = "{% if a %}\n\t'b' \\n\x07{% endif %}\u202e"
    word = shell_word(text)
    assert word.isprintable()
    run = subprocess.run(
        ["bash", "-c", f"printf %s {word}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert run.stdout.decode() == text


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Cn", "Co", "Zl", "Zp", "Zs"])))
def test_printable_words_are_quoted_for_any_shell(text: str) -> None:
    assert shlex.split(shell_word(text)) == [text]
