"""/metrics is a sound exposition, and what dashboards and alerts ask for is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from octavo.base.config import CacheConfig
from octavo.server.metrics import Metrics
from support.server_fakes import engine_info

DEPLOY = Path(__file__).parents[2] / "deploy"
#: What only Prometheus itself makes.
OF_PROMETHEUS = {"up"}


def exposition() -> str:
    metrics = Metrics("tiny", 2048)
    metrics.tell_cache(engine_info(), CacheConfig())
    metrics.on_http_request("GET", "/health", 200, 0.01)
    return metrics.render()[0].decode()


def expressions() -> list[str]:
    """All that is asked of Prometheus."""
    board = json.loads((DEPLOY / "grafana" / "octavo.json").read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    found += [v["query"]["query"] for v in board["templating"]["list"] if isinstance(v["query"], dict)]
    rules = yaml.safe_load((DEPLOY / "prometheus" / "octavo-alerts.yml").read_text())
    found += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    return found


def names_in(expression: str) -> set[str]:
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(by|on)\s*\([^)]*\)', " ", expression)
    words = re.findall(r"[A-Za-z_][A-Za-z0-9_:]*(?!\s*\()\b", bare)
    return {word for word in words if ":" in word or "_" in word or word == "up"} - {
        "histogram_quantile",
        "label_values",
    }


def samples(text: str) -> set[str]:
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def test_e97_every_metric_that_dashboards_and_alerts_name_is_there() -> None:
    there = samples(exposition()) | OF_PROMETHEUS
    asked = [(name, text) for text in expressions() for name in names_in(text)]
    assert len({name for name, _ in asked}) > 20
    assert [(name, text) for name, text in asked if name not in there and name not in ("model_name", "instance")] == []


def test_e97_labels_that_are_asked_for_are_there() -> None:
    families = list(text_string_to_metric_families(exposition()))
    labels = {label for family in families for sample in family.samples for label in sample.labels}
    asked = {label for text in expressions() for label in re.findall(r'(\w+)\s*(?:=~|=|!=|!~)\s*"', text)}
    asked |= {label for text in expressions() for group in re.findall(r"\bby\s*\(([^)]*)\)", text)
              for label in re.findall(r"\w+", group)}  # fmt: skip
    assert asked - labels - {"job", "instance"} == set()


def test_alerts_and_scrape_fit_each_other() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert config["rule_files"] == ["octavo-alerts.yml"]
    rules = yaml.safe_load((DEPLOY / "prometheus" / "octavo-alerts.yml").read_text())["groups"][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)


def test_e97_the_exposition_follows_the_rules_of_its_format() -> None:
    text = exposition()
    told: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := re.match(r"# (HELP|TYPE) (\S+) (.+)", line):
            told.setdefault(match[2], []).append(match[1])
        else:
            assert re.fullmatch(r"[a-z0-9_:]+(\{([a-z_]+=\"[^\"\n]*\",?)+\})? \S+", line), line
    assert all(kinds == ["HELP", "TYPE"] for kinds in told.values())
    for family in text_string_to_metric_families(text):
        names = {sample.name.removeprefix(family.name) for sample in family.samples}
        if family.type == "counter":
            assert names <= {"_total"}, family.name  # none: what only a GPU counts
        elif family.type == "histogram":
            assert names <= {"_bucket", "_sum", "_count"}, family.name
            _check_buckets(family)
        else:
            assert family.type == "gauge" and names == {""} and not family.name.endswith("_total"), family.name
        assert family.documentation.endswith(".") or family.name.startswith("process_")
        if "time" in family.name or "latency" in family.name:
            assert "seconds" in family.name, f"{family.name} has no unit"


def _check_buckets(family: Any) -> None:
    series: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    counts = {}
    for sample in family.samples:
        key = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
        if sample.name.endswith("_bucket"):
            series.setdefault(key, []).append((float(sample.labels["le"]), sample.value))
        elif sample.name.endswith("_count"):
            counts[key] = sample.value
    for key, buckets in series.items():
        assert buckets == sorted(buckets) and buckets[-1] == (float("inf"), counts[key]), family.name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Prometheus")
def test_promtool_finds_nothing_else() -> None:
    run = subprocess.run(
        ["promtool", "check", "metrics"], input=exposition(), capture_output=True, text=True, check=False
    )
    # vLLM's names have colons, and one histogram that ends as counters do.
    known = ("should not contain ':'", 'iteration_tokens_total non-counter metrics should not have "_total" suffix')
    assert [line for line in run.stderr.splitlines() if not any(text in line for text in known)] == []
    rules = str(DEPLOY / "prometheus" / "octavo-alerts.yml")
    subprocess.run(["promtool", "check", "rules", rules], check=True)


def test_the_settings_of_the_cache_are_labels() -> None:
    [line] = [line for line in exposition().splitlines() if line.startswith("vllm:cache_config_info{")]
    assert 'block_size="16"' in line and 'num_gpu_blocks="64"' in line and line.endswith(" 1.0")
