"""Steps by how a GPU ran them, in the log at most once a minute."""

from __future__ import annotations

import pytest

from octavo.core.graph_steps import GraphSteps


def test_the_log_says_once_a_minute_why_steps_were_launched_kernel_by_kernel(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    steps = GraphSteps(lambda: now)

    def count(*graphs: str) -> list[str]:
        caplog.clear()
        for graph in graphs:
            steps.count(graph)
        return [record.getMessage() for record in caplog.records]

    with caplog.at_level("INFO", "octavo.core"):
        assert count("prompt", "prompt", "size is new", "captured", "replayed", "") == []
        now = 61.0
        assert count("replayed", "") == []  # nothing that is worth a line
        assert count("prompt", "prompt") == [
            "4 of the last 7 steps were launched kernel by kernel: prompt 3, size is new 1"
        ]
        now = 120.0
        assert count("drafts") == []
        now = 121.0
        assert count("drafts") == ["3 of the last 3 steps were launched kernel by kernel: drafts 2, prompt 1"]
    assert steps.totals == {"prompt": 4, "size is new": 1, "captured": 1, "replayed": 2, "drafts": 2}
