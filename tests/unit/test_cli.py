"""The laws of the command line: a setting is honoured or refused by name, and never read and ignored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import octavo
from octavo.base.config import ServeConfig
from octavo.base.errors import InvalidConfig
from octavo.cli import main
from octavo.cli.environment import VARIABLES
from octavo.cli.flags import Flag, flags
from octavo.cli.serve import MOST_USED, serve_config
from octavo.cli.vllm import ROWS
from octavo.text.grammars.grammar import limits_of

TABLE = flags()
SPELLINGS = sorted(o for f in TABLE.values() for o in (*f.options, *f.off_options))


def parse(*words: str, **environ: str) -> ServeConfig:
    return serve_config(words, environ)


def refused(*words: str, **environ: str) -> str:
    with pytest.raises(InvalidConfig) as caught:
        parse(*words, **environ)
    return caught.value.message


def value(config: ServeConfig, flag: Flag) -> object:
    for part in (config.server, *vars(config.engine).values()):
        if hasattr(part, flag.field):
            return getattr(part, flag.field)
    raise AssertionError(flag.field)


def sample(flag: Flag) -> str:
    """A valid value that is not the default."""
    special = {
        "root_path": "/v",
        "max_num_batched_tokens": "4096",
        "cpu_memory_utilization": "0.25",
        "gpu_memory_utilization": "0.25",
        "public_paths": "/metrics",
    }
    special |= {flag.field: '{"top_k": 5}' for flag in TABLE.values() if flag.is_json}
    special["model_loader_extra_config"] = '{"pattern": "r{rank}p{part}"}'
    special["structured_outputs_config"] = '{"disable_any_whitespace": true}'
    special["pooler_config"] = '{"pooling_type": "mean"}'
    special["limit_mm_per_prompt"], special["media_io_kwargs"] = '{"image": 4}', '{"video": {"num_frames": 8}}'
    if flag.field in special:
        return special[flag.field]
    if flag.choices:
        return str(next(c for c in reversed(flag.choices) if c != flag.default))
    return {int: "77", float: "7.5", str: "word", bool: "true"}[flag.kind]


def companions(flag: Flag) -> list[str]:
    """Other flags that this one needs to make sense."""
    tls = ["--ssl-certfile", "c.pem", "--ssl-keyfile", "k.pem"]
    needs = {"ssl_certfile": tls[2:], "ssl_keyfile": tls[:2], "ssl_cert_reqs": tls, "ssl_ca_certs": tls}
    needs |= {"ssl_ciphers": tls, "enable_prompt_adapter": ["--max-prompt-adapter-token", "8"]}
    return needs.get(flag.field, [])


# ---------------------------------------------------------------- words
def test_no_arguments_mean_the_demo_model() -> None:
    assert parse() == ServeConfig()
    assert parse().engine.model.model == "smollm2"


def test_the_model_is_positional() -> None:
    assert parse("org/repo", "--port", "1").engine.model.model == "org/repo"
    assert parse("--port", "1", "org/repo").engine.model.model == "org/repo"
    assert "other" in refused("one", "other")


@pytest.mark.parametrize(
    "words", [["--model", "org/repo"], ["--model=org/repo"], ["--port", "1", "--model", "org/repo"]]
)
def test_the_model_may_be_a_flag(words: list[str]) -> None:
    assert parse(*words).engine.model.model == "org/repo"
    assert parse("org/repo", *words).engine.model.model == "org/repo"
    assert "given twice" in refused("other", *words)
    assert refused("--model") == "--model needs a value"


@pytest.mark.parametrize("flag", [f for f in TABLE.values() if f.kind is not bool], ids=lambda f: f.field)
def test_every_flag_with_a_value_takes_all_spellings(flag: Flag) -> None:
    text = sample(flag)
    expected = [flag.from_text(text)] if flag.is_list else flag.from_text(text)
    assert expected != flag.default
    for option in flag.options:
        for words in ([option, text], [f"{option}={text}"], ["--" + option[2:].replace("-", "_"), text]):
            assert value(parse("m", *companions(flag), *words), flag) == expected


@pytest.mark.parametrize("flag", [f for f in TABLE.values() if f.kind is bool], ids=lambda f: f.field)
def test_every_switch_takes_all_spellings(flag: Flag) -> None:
    more = companions(flag)
    for on, options in ((True, flag.options), (False, flag.off_options)):
        for option in options:
            assert value(parse(option, "m", *more), flag) is on
            assert value(parse(option.replace("-", "_").replace("__", "--", 1), "m", *more), flag) is on
            assert value(parse(f"{option}=true", "m", *more), flag) is on
            assert value(parse(f"{option}=False", "m", *more), flag) is not on
            config = parse(option, "false", "m", *more)
            assert value(config, flag) is not on
            assert config.engine.model.model == "m"


def test_lists_repeat_and_take_several_words_and_json() -> None:
    server = parse(
        "m", "--served-model-name", "a", "b", "--served-model-name=c", "--api-key", "k", "--api-key=l"
    ).server
    assert server.served_model_name == ["a", "b", "c"]
    assert server.api_key == ["k", "l"]
    assert parse("--allowed-origins", '["http://a", "http://b"]').server.allowed_origins == ["http://a", "http://b"]
    assert "JSON" in refused("--allowed-origins", '["http://a"')


def test_a_list_never_swallows_the_model_silently() -> None:
    assert parse("--api-key", "k", "m").engine.model.model == "m"
    assert "MODEL first" in refused("--served-model-name", "a", "./model")


def test_numbers_may_have_units() -> None:
    assert parse("--max-model-len", "8k").engine.model.max_model_len == 8000
    assert parse("--max-model-len", "8Ki").engine.model.max_model_len == 8192
    assert parse("--max-model-len", "8K").engine.model.max_model_len == 8192
    assert parse("--max-model-len", "25.6k").engine.model.max_model_len == 25_600
    assert "--max-model-len" in refused("--max-model-len", "1.0")
    assert "--max-model-len" in refused("--max-model-len", "0.0001k")
    assert parse("--max-model-len", str(10**39 + 1)).engine.model.max_model_len == 10**39 + 1
    assert "--max-model-len must be a whole number" in refused("--max-model-len", "9" * 5000)
    assert parse("--kv-cache-memory-bytes", "2GiB").engine.cache.kv_cache_memory_bytes == 2 << 30
    assert "--kv-cache-memory-bytes" in refused("--kv-cache-memory-bytes", "2 apples")


# ---------------------------------------------------------------- mistakes
def misspelt(option: str) -> list[str]:
    """The option with one letter changed, left out, and doubled, in the middle of its last word."""
    at = len(option) - 2
    return [
        option[:at] + "z" + option[at + 1 :],
        option[:at] + option[at + 1 :],
        option[:at] + option[at] + option[at:],
    ]


@pytest.mark.parametrize("option", SPELLINGS)
def test_w30_a_misspelt_flag_is_refused_with_the_right_one(option: str) -> None:
    for wrong in misspelt(option):
        if wrong in SPELLINGS or wrong in {row.option for row in ROWS}:
            continue
        message = refused("m", wrong, "1")
        assert message.startswith(f"unknown flag {wrong}; did you mean --"), message
        assert option in message or wrong.startswith("--no-"), message
        assert "\n" not in message


@pytest.mark.parametrize("flag", [f for f in TABLE.values() if f.kind in (int, float)], ids=lambda f: f.field)
def test_w30_a_number_that_is_none_is_refused(flag: Flag) -> None:
    for text in ("abc", "", "1.5.2", "0x10", "NaN"):
        assert flag.option in refused("m", *companions(flag), f"{flag.option}={text}")


def test_missing_values_and_strangers_are_refused() -> None:
    assert refused("--port") == "--port needs a value"
    assert refused("--served-model-name") == "--served-model-name needs a value"
    assert "-z" in refused("-z")
    assert "must be true or false" in refused("--enable-prefix-caching=maybe")


def test_w30_contradictions_are_refused() -> None:
    assert "--port" in refused("--port", "1", "--port", "2")
    assert parse("--port", "1", "--port", "1").server.port == 1
    assert "--enable-prefix-caching" in refused("--enable-prefix-caching", "--no-enable-prefix-caching")
    assert "--disable-log-requests" in refused("--disable-log-requests", "--enable-log-requests")
    assert "--uds" in refused("--uds", "s", "--host", "h")


@given(st.lists(st.text(max_size=12), max_size=4))
def test_no_words_at_all_make_it_crash(words: list[str]) -> None:
    try:
        parse(*words)
    except InvalidConfig as e:
        assert e.message
    except SystemExit as e:
        assert e.code == 0  # --help


# ---------------------------------------------------------------- config file
def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_d9_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path / "c.yaml", "model: from/file\nport: 9000\nmax_num_seqs: 8\nserved-model-name: [x, y]\n")
    config = parse("--config", file, "--port=9001", "--served-model-name", "z")
    assert config.engine.model.model == "from/file"
    assert (config.server.port, config.engine.scheduler.max_num_seqs) == (9001, 8)
    assert config.server.served_model_name == ["z"]
    assert parse("cli/model", f"--config={file}").engine.model.model == "cli/model"


def test_d9_the_file_takes_booleans_lists_units_and_opposites(tmp_path: Path) -> None:
    text = "enable-prefix-caching: false\nno-enable-chunked-prefill: true\nenable_log_requests: yes\n"
    text += "api-key: one\nallowed-origins: ['*']\nkv-cache-memory-bytes: 1G\nshutdown-timeout: 3\nhost: null\n"
    config = parse("--config", write(tmp_path / "c.yml", text))
    assert config.engine.cache.enable_prefix_caching is False
    assert config.engine.scheduler.enable_chunked_prefill is False
    assert config.server.disable_log_requests is False
    assert config.server.api_key == ["one"]
    assert config.server.allowed_origins == ["*"]
    assert config.engine.cache.kv_cache_memory_bytes == 1 << 30
    assert config.server.shutdown_timeout == 3.0
    assert config.server.host is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prot: 1", "did you mean port?"),
        ("port: yes", "--port must be a whole number"),
        ("port: 1.5", "--port must be a whole number"),
        ("port:", "--port has no value"),
        ("port: 99999", "--port must be at least 0"),
        ("port: 1\nport: 2", "given twice"),
        ("enable-prefix-caching: true\nno-enable-prefix-caching: true", "sets the same flag as"),
        ("enable-prefix-caching: maybe", "--enable-prefix-caching must be true or false"),
        ("dtype: flot32", "did you mean float32?"),
        ("served-model-name: [[a]]", "--served-model-name"),
        ("tensor-parallel-size: 2", "--tensor-parallel-size 2"),
        ("model: 3", "model must be text"),
        ("config: other.yaml", "unknown key config"),
        ("1: 2", "not the name of a flag"),
        ("- port", "map"),
        ("port: [", "not valid YAML"),
        ("a: !!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    message = refused("--config", write(tmp_path / "c.yaml", text))
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize("key", [option[2:] for option in SPELLINGS])
def test_a_misspelt_key_is_refused_with_the_right_one(tmp_path: Path, key: str) -> None:
    wrong = key[:-2] + key[-1]
    assert f"unknown key {wrong}; did you mean " in refused("--config", write(tmp_path / "c.yaml", f"{wrong}: 1"))


def test_t23_a_json_setting_is_a_map_in_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "c.yaml", "model: m\ndefault-chat-template-kwargs: {enable_thinking: no, a: [1]}\n")
    assert parse("--config", file).server.default_chat_template_kwargs == '{"enable_thinking": false, "a": [1]}'
    for text in ("[1]", "{a: 2026-01-01}", "{a: .nan}", "'{'"):
        file = write(tmp_path / "c.yaml", f"model: m\ndefault-chat-template-kwargs: {text}\n")
        assert "--default-chat-template-kwargs" in refused("--config", file)


def test_one_config_file_that_exists_and_is_yaml(tmp_path: Path) -> None:
    file = write(tmp_path / "c.yaml", "")
    assert parse("--config", file) == parse()
    assert "once" in refused("--config", file, "--config", file)
    assert "needs a value" in refused("--config")
    assert ".yaml" in refused("--config", "c.json")
    assert "No such file" in refused("--config", str(tmp_path / "missing.yaml"))


# ---------------------------------------------------------------- environment
def test_d18_the_api_key_comes_from_the_environment_last(tmp_path: Path) -> None:
    assert parse(OCTAVO_API_KEY="o", VLLM_API_KEY="v").server.api_key == ["o"]
    assert parse(VLLM_API_KEY="v").server.api_key == ["v"]
    assert parse(VLLM_API_KEY="").server.api_key == []
    assert parse("--api-key", "c", VLLM_API_KEY="v", OCTAVO_API_KEY="o").server.api_key == ["c"]
    file = write(tmp_path / "c.yaml", "api-key: f")
    assert parse("--config", file, OCTAVO_API_KEY="o").server.api_key == ["f"]


def test_a_misspelt_variable_of_ours_is_refused() -> None:
    for name in VARIABLES:
        wrong = name[:-1]
        assert refused(**{wrong: "1"}) == f"unknown environment variable {wrong}; did you mean {name}?"
    parse(OCTAVOX="1")


def test_what_kubernetes_sets_for_a_service_named_octavo_is_no_setting() -> None:
    """It sets them in every container of the namespace, whatever runs there."""
    for name, value in {
        "OCTAVO_SERVICE_HOST": "10.0.0.1",
        "OCTAVO_SERVICE_PORT": "80",
        "OCTAVO_SERVICE_PORT_HTTP": "80",
        "OCTAVO_PORT": "tcp://10.0.0.1:80",
        "OCTAVO_PORT_80_TCP": "tcp://10.0.0.1:80",
        "OCTAVO_PORT_80_TCP_ADDR": "10.0.0.1",
        "OCTAVO_LLM_SERVICE_HOST": "10.0.0.1",
    }.items():
        assert parse(**{name: value}) == ServeConfig()
    assert "OCTAVO_PORT" in refused(OCTAVO_PORT="8000")


def test_every_variable_of_ours_in_the_sources_is_documented() -> None:
    import re

    root = Path(octavo.__file__).parent
    used = {
        name
        for path in root.rglob("*.py")
        for name in re.findall(r"""environ[^"'\n]{0,8}["'](OCTAVO_\w+)["']""", path.read_text(encoding="utf-8"))
    }
    assert used <= set(VARIABLES)


# ---------------------------------------------------------------- the command
def test_main_prints_one_line_and_gives_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--pot", "1"]) == 2
    assert capsys.readouterr().err == "octavo serve: error: unknown flag --pot; did you mean --port?\n"
    assert main(["sreve"]) == 2
    assert capsys.readouterr().err == "octavo: error: unknown command sreve; did you mean serve?\n"
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert main(["--version"]) == main(["-v"]) == main(["-V"]) == 0
    assert capsys.readouterr().out.endswith(f"octavo {octavo.__version__}\n")


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for flag in TABLE.values():
        assert ("--[no-]" + flag.option[2:] if flag.kind is bool else flag.option) in text
    assert all(f"  {name} " in text for name in VARIABLES)
    assert max(map(len, text.splitlines())) <= 112


def test_the_help_begins_with_ten_settings_and_names_none_twice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    first = text.split("\nmost used:\n")[1].split("\n\n")[0]
    named = [line.split()[0] for line in first.splitlines() if line.startswith("  --")]
    assert len(named) == len(MOST_USED) == 10 and "--max-model-len" in named
    assert text.index("most used:") < text.index("\nmodel:")
    for flag in TABLE.values():
        shown = "--[no-]" + flag.option[2:] if flag.kind is bool else flag.option
        # A flag's own line: further in, a sentence may begin with its name.
        assert sum(line.startswith("  ") and line[2:].split(" ")[0] == shown for line in text.splitlines()) <= 1
    assert main(["--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) < 20


def test_a_wrong_flag_ends_before_anything_heavy_is_imported() -> None:
    code = (
        "import sys, json; from octavo.cli import main; code = main(['serve', '--pot', '1']);"
        "print(json.dumps([code, [m for m in ('torch', 'numpy', 'fastapi', 'uvicorn', 'tokenizers', 'yaml',"
        " 'huggingface_hub') if m in sys.modules]]))"
    )
    environ = {k: v for k, v in os.environ.items() if not k.startswith("OCTAVO_")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert json.loads(run.stdout) == [2, []]


# ---------------------------------------------------------------- the model's configuration
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"rope_theta": 5}', {"rope_theta": 5}),
        ("rope_theta=5e5,rope_scaling.rope_type=yarn,rope_scaling.factor=4",
         {"rope_theta": 5e5, "rope_scaling": {"rope_type": "yarn", "factor": 4}}),
        ('architectures=["A","B"],tie_word_embeddings=true,name=a,b', {
            "architectures": ["A", "B"], "tie_word_embeddings": True, "name": "a,b"}),
    ],
)  # fmt: skip
def test_values_of_the_configuration_may_be_pairs(text: str, expected: dict[str, Any]) -> None:
    given = parse("m", "--hf-overrides", text).engine.model.hf_overrides
    assert given is not None and json.loads(given) == expected


def test_what_is_neither_an_object_nor_pairs_is_refused() -> None:
    for value in ("[1]", "rope_theta", "=5", "", "5"):
        assert "--hf-overrides" in refused("m", "--hf-overrides", value)
    assert "--hf-overrides: a is a value" in refused("m", "--hf-overrides", "a=1,a.b=2")
    assert "--rope-theta must be greater than 0" in refused("m", "--rope-theta", "0")


# ---------------------------------------------------------------- structured outputs
@pytest.mark.parametrize(
    "words",
    [
        ["--disable-additional-properties"],
        ["--guided-decoding-disable-additional-properties"],
        ["--structured-outputs-config.disable_additional_properties", "true"],
        ["--structured-outputs-config", '{"disable_additional_properties": true, "backend": "xgrammar"}'],
    ],
    ids=lambda words: words[0],
)
def test_objects_are_closed_in_all_spellings(words: list[str]) -> None:
    limits = limits_of(parse("m", *words).server, ())
    assert limits.disable_additional_properties and not limits.disable_any_whitespace
    assert not limits_of(parse("m").server, ()).disable_additional_properties


def test_what_the_settings_of_structured_outputs_cannot_say_is_refused() -> None:
    for value, why in (
        ('{"disable_aditional_properties": true}', "disable_additional_properties"),
        ('{"disable_any_whitespace": 1}', "must be true or false"),
        ('{"backend": "banana"}', "backend must be"),
        ('{"enable_in_reasoning": true}', "enable_in_reasoning must be false"),
    ):
        assert why in refused("m", "--structured-outputs-config", value)
