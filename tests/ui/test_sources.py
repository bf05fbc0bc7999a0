"""The page's sources, where Node.js and the tools of `make ui` are at hand: the build, its types, and its logic."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from octavo.server.ui import PAGE
from support.server_process import bound

SOURCES = Path(__file__).parents[2] / "ui"

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not (SOURCES / "node_modules" / "esbuild").is_dir(),
    reason="no Node.js, or `make ui` was not run here",
)


def node(*arguments: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(["node", *arguments], cwd=SOURCES, capture_output=True, text=True, timeout=bound(120))
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def test_the_page_is_what_its_sources_build(tmp_path: Path) -> None:
    made = tmp_path / "ui.html"
    node("build.mjs", str(made))
    assert made.read_bytes() == PAGE.read_bytes()


def test_types() -> None:
    node("node_modules/typescript/bin/tsc")


def test_markdown_events_conversations_and_metrics() -> None:
    assert "# fail 0" in node("test.mjs", "--test-reporter=tap").stdout
