"""What a report of a fault says: versions and limits, no secret, and all of it without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import octavo
from octavo.base import host
from octavo.cli import installation as module
from octavo.cli.installation import as_text, installation, variables

_PROBE = """
import json, sys
from octavo.cli import main
code = main(["collect-env", "--json"])
assert code == 0 and not {"torch", "octavo.worker"} & set(sys.modules)
"""


def test_k8_the_report_is_json_that_is_made_without_torch() -> None:
    run = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert list(report) == ["octavo", "python", "system", "cpu", "memory", "gpu", "packages", "variables"]
    assert report["octavo"]["version"] == octavo.__version__
    assert report["cpu"]["usable"] == host.num_cpus()
    assert report["packages"]["numpy"].split(".")[0].isdecimal()


def test_k8_secrets_are_hidden_and_what_has_nothing_to_do_with_octavo_is_left_out() -> None:
    environ = {
        "OCTAVO_API_KEY": "s1", "HF_TOKEN": "s2", "VLLM_API_KEY": "s3", "OPENAI_API_KEY": "s4", "HF_PASSPHRASE": "s5",
        "https_proxy": "http://me:s6@proxy:80/", "HF_ENDPOINT": "https://s7@hub?sig=s8", "MY_PASSWORD": "s9",
        "CUDA_VISIBLE_DEVICES": "0",
        "OCTAVO_ISA": "avx2", "HOME": "/home/me", "HF_AUTH": "",
    }  # fmt: skip
    found = variables(environ)
    assert not any(f"s{i}" in value for i in range(1, 10) for value in found.values())
    assert found["OCTAVO_ISA"] == "avx2" and found["CUDA_VISIBLE_DEVICES"] == "0"
    assert found["https_proxy"] == "http://***@proxy:80/" and found["HF_AUTH"] == ""
    assert not {"HOME", "MY_PASSWORD"} & set(found)


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        ("echo 'NVIDIA X, GPU-1, 570.1, 9.0, 143771 MiB, 4 MiB, Disabled'", "name NVIDIA X, uuid GPU-1"),
        ("echo 'no devices were found' >&2; exit 6", "failed with code 6: no devices were found"),
    ],
)
def test_the_driver_is_asked_for_gpus(script: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda name: str(program))
    assert shown in as_text(installation({}))


def test_a_machine_that_tells_nothing_is_reported_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_read", lambda path: "")
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    report = installation({})
    assert (report["gpu"]["driver"], report["gpu"]["devices"]) == ("none", [])
    assert "not known" in as_text(report)
