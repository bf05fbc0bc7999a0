"""Ahead-of-time compilation of all kernels for sm_80 and sm_90: it works, nothing spills, everything fits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

#: Shared memory that one block may use: A100 163 KB, H100 227 KB.
MAX_SHARED_BYTES = {80: 166_912, 90: 232_448}


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_variants.py")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_kernel_spills_or_outgrows_shared_memory(compiled: list[dict[str, Any]]) -> None:
    assert compiled
    spilling = [c for c in compiled if c["spill_bytes"] > c["max_spill_bytes"]]
    assert not spilling
    assert not [c for c in compiled if c["shared_bytes"] > MAX_SHARED_BYTES[c["capability"]]]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_chained_kernels_wait_before_they_touch_memory(compiled: list[dict[str, Any]]) -> None:
    assert len([c for c in compiled if c["is_chained"]]) > 4
    assert not [c for c in compiled if c["dependent_launch"] != ("early" if c["is_chained"] else "")]
