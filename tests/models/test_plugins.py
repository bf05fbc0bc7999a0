"""Families from other distributions, and the page that lists octavo's own."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models.family_cases import PROMPTS, make_model
from models.running import load, prompt_logits
from octavo.base.errors import CheckpointError
from octavo.models import registry
from octavo.models.page import renewed
from octavo.ops.table import bind

MODULE = """
from octavo.models.families import llama
from octavo.models.registry import Family

FAMILY = Family("octavo_test", llama.spec)
OTHER = llama.spec
"""
ENTRY_POINTS = """[octavo.models]
OctavoTestForCausalLM = octavo_test_family:FAMILY
NoFamilyForCausalLM = octavo_test_family:OTHER
BrokenForCausalLM = octavo_test_missing:FAMILY
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution as an installer leaves it."""
    info = tmp_path / "site" / "octavo_test-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: octavo-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "site" / "octavo_test_family.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "site")
    before = dict(registry.FAMILIES)
    registry.add_families.cache_clear()
    yield
    registry.FAMILIES.clear()
    registry.FAMILIES.update(before)
    registry.add_families.cache_clear()
    sys.modules.pop("octavo_test_family", None)


def test_an_installed_distribution_adds_a_family(
    tmp_path: Path, installed: None, caplog: pytest.LogCaptureFixture
) -> None:
    make_model(tmp_path / "model", "Llama", {})
    ops = bind("cpu")
    expected = prompt_logits(load(tmp_path / "model", ops), ops, PROMPTS)
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "OctavoTestForCausalLM"))
    registry.add_families.cache_clear()
    with caplog.at_level(logging.WARNING, "octavo.models"):
        ours = prompt_logits(load(tmp_path / "model", ops, model_impl="octavo"), ops, PROMPTS)
    assert torch.equal(torch.stack(ours), torch.stack(expected))
    assert (
        "BrokenForCausalLM (octavo_test_missing:FAMILY of octavo-test) cannot be loaded: ModuleNotFound" in caplog.text
    )
    assert (
        "NoFamilyForCausalLM (octavo_test_family:OTHER of octavo-test) is no octavo.models.registry.Fam" in caplog.text
    )
    with pytest.raises(CheckpointError, match="NoFamilyForCausalLM"):
        registry.find_family({"architectures": ["NoFamilyForCausalLM"]}, "a")


def test_the_page_lists_the_families_that_there_are() -> None:
    """`make tables` writes it."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert page == renewed(page)
    for name, family in registry.FAMILIES.items():
        assert not family.spec.__module__.startswith("octavo.") or f"`{name}`" in page
