"""Completion in the shells: what is offered is what the parsers take. The shells themselves run the scripts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from octavo.cli import COMMANDS, main
from octavo.cli.completion import SHELLS, commands
from octavo.cli.flags import flags

ALL = {command.name: command for command in commands()}

_BASH_DRIVER = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_octavo
((${#COMPREPLY[@]} == 0)) || printf '%s\\n' "${COMPREPLY[@]}"
"""

#: Words of the line, the last of them being written -> what is offered for it.
LINES: list[tuple[list[str], list[str]]] = [
    (["se"], ["serve"]),
    (["bench", ""], ["kernels", "latency", "serve", "throughput"]),
    (["bench", "thr"], ["throughput"]),
    (["completion", ""], ["bash", "fish", "zsh"]),
    (["serve", "--kv-cache-d"], ["--kv-cache-dtype"]),
    (["serve", "--device", ""], ["auto", "cpu", "cuda"]),
    (["serve", "-q", "int"], ["int4", "int8"]),
    (["serve", "smo"], ["smollm2"]),
    (["bench", "throughput", "smo"], ["smollm2"]),
    (["bench", "throughput", "--device", "c"], ["cpu", "cuda"]),
    (["bench", "kernels", "--weight-type", "int"], ["int4", "int5", "int6", "int8"]),
    (["chat", "--tem"], ["--temperature"]),
    (["serve", "--no-enforce"], ["--no-enforce-eager"]),
    (["chat", "--enforce"], []),
]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("completion")
    written = {}
    for name, shell in SHELLS.items():
        written[name] = directory / name
        written[name].write_text(shell.script(commands()))
    return written


def test_every_command_and_every_flag_is_offered() -> None:
    assert list(ALL) == list(COMMANDS)
    names = {option.name for option in ALL["serve"].options}
    for flag in flags().values():
        assert flag.option in names
        assert flag.kind is not bool or "--no-" + flag.option[2:] in names


@pytest.mark.parametrize("shell", list(SHELLS))
def test_the_shell_reads_its_script(shell: str, scripts: dict[str, Path]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    run = subprocess.run([shell, "-n", str(scripts[shell])], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(("words", "offered"), LINES)
def test_bash_offers_what_the_parsers_take(words: list[str], offered: list[str], scripts: dict[str, Path]) -> None:
    command = ["bash", "-c", _BASH_DRIVER, "bash", str(scripts["bash"]), "octavo", *words]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    assert sorted(run.stdout.split()) == offered


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_a_value_behind_an_equals_sign(scripts: dict[str, Path]) -> None:
    for words, offered in ((["--device", "=", "cu"], ["cuda"]), (["--device", "="], ["auto", "cpu", "cuda"])):
        command = ["bash", "-c", _BASH_DRIVER, "bash", str(scripts["bash"]), "octavo", "serve", *words]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == offered


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
@pytest.mark.parametrize(("words", "offered"), LINES)
def test_fish_offers_what_the_parsers_take(
    words: list[str], offered: list[str], scripts: dict[str, Path], tmp_path: Path
) -> None:
    line = " ".join(["octavo", *words])
    command = ["fish", "--no-config", "-c", f"source {scripts['fish']}; complete -C '{line}'"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert sorted(text.split("\t")[0] for text in run.stdout.splitlines()) == offered


def test_a_shell_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    assert "complete -o default -F _octavo octavo" in capsys.readouterr().out
    assert main(["completion", "--help"]) == 0
    assert "~/.bashrc" in capsys.readouterr().out
    for words in ([], ["bash", "zsh"], ["tcsh"]):
        assert main(["completion", *words]) == 2
        assert "name one shell: bash, zsh, fish" in capsys.readouterr().err
    assert main(["completion", "zhs"]) == 2
    assert "did you mean zsh?" in capsys.readouterr().err
