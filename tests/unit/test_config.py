"""The laws of the configuration: every bad value is refused with the flag's name, every good one passes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import octavo
from octavo.base import config
from octavo.base.config import (
    CacheConfig,
    EngineConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    ServeConfig,
    ServerConfig,
    check,
)
from octavo.base.errors import InvalidConfig

PARTS = (ModelConfig, CacheConfig, SchedulerConfig, ParallelConfig, ServerConfig)


def test_the_defaults_are_valid() -> None:
    check(ServeConfig())


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        (ModelConfig, "max_model_len", 0),
        (ModelConfig, "dtype", "float64"),
        (ModelConfig, "load_format", "pickle"),
        (ModelConfig, "seed", -1),
        (CacheConfig, "block_size", 17),
        (CacheConfig, "kv_cache_dtype", "fp4"),
        (CacheConfig, "gpu_memory_utilization", 0.0),
        (CacheConfig, "gpu_memory_utilization", 1.01),
        (ParallelConfig, "cudagraph_capture_sizes", [4, 0]),
        (CacheConfig, "kv_cache_memory_bytes", 0),
        (CacheConfig, "cpu_memory_utilization", 0.0),
        (CacheConfig, "cpu_memory_utilization", 1.01),
        (CacheConfig, "cpu_memory_utilization", float("nan")),
        (SchedulerConfig, "max_num_seqs", 0),
        (SchedulerConfig, "max_num_queued_reqs", 0),
        (ParallelConfig, "num_threads", 0),
        (ParallelConfig, "device", "tpu"),
        (ParallelConfig, "engine_step_timeout", float("inf")),
        (ServerConfig, "port", -1),
        (ServerConfig, "port", 65536),
        (ServerConfig, "ssl_cert_reqs", 3),
        (ServerConfig, "uvicorn_log_level", "loud"),
        (ServerConfig, "shutdown_timeout", -0.5),
    ],
)
def test_a_value_out_of_range_names_its_flag(part: type, name: str, value: object) -> None:
    with pytest.raises(InvalidConfig, match=re.escape("--" + name.replace("_", "-"))):
        check(part(**{name: value}))


@pytest.mark.parametrize(
    "bad",
    [
        ServerConfig(uds="/run/octavo.sock", host="::1"),
        ServerConfig(ssl_keyfile="key.pem"),
        ServerConfig(ssl_certfile="cert.pem"),
        ServerConfig(ssl_cert_reqs=2),
        ServerConfig(api_key=["good", ""]),
        ServerConfig(served_model_name=[""]),
        ServerConfig(root_path="api"),
        EngineConfig(scheduler=SchedulerConfig(max_num_seqs=64, max_num_batched_tokens=63)),
        EngineConfig(
            model=ModelConfig(max_model_len=4096),
            scheduler=SchedulerConfig(enable_chunked_prefill=False, max_num_batched_tokens=2048),
        ),
    ],
)
def test_settings_that_contradict_are_refused(bad: object) -> None:
    with pytest.raises(InvalidConfig, match="--"):
        check(bad)


def test_bounds_hold_inclusively() -> None:
    check(ServerConfig(port=0))
    check(ServerConfig(port=65535))
    check(CacheConfig(cpu_memory_utilization=1.0))
    check(SchedulerConfig(max_num_seqs=1))


def test_every_field_has_help_and_a_name_of_its_own() -> None:
    names: list[str] = []
    # What two parts inherit, since both processes read it, is one field.
    for field in {id(field): field for part in PARTS for field in dataclasses.fields(part)}.values():
        assert field.metadata["help"].endswith("."), field.name
        names += [field.name, *field.metadata.get("aliases", ()), *field.metadata.get("inverse", ())]
    assert len(names) == len(set(names))


def test_every_field_is_read_somewhere() -> None:
    """A setting that is parsed and then ignored would be worse than one that does not exist."""
    root = Path(octavo.__file__).parent
    own = set(Path(config.__file__).parent.glob("*.py"))
    sources = [p for p in root.rglob("*.py") if p not in own and "cli" not in p.relative_to(root).parts]
    text = "\n".join(p.read_text(encoding="utf-8") for p in sources)
    unread = [
        field.name for part in PARTS for field in dataclasses.fields(part) if not re.search(rf"\.{field.name}\b", text)
    ]
    assert not unread
