"""Limits of control groups, on trees as containers, services and both versions of the kernel's interface show them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from octavo.base import host
from octavo.base.cgroup import Cgroups

GIB = 1 << 30
NO_LIMIT_V1 = 9223372036854771712


class Tree:
    """A machine of text files: `put("sys/a/cpu.max", ...)`, `mount(...)`, then `groups()`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mountinfo: list[str] = ["22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"]
        self._own: list[str] = []

    def put(self, name: str, value: object) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")

    def mount(self, kind: str, point: str, *, root: str = "/", controllers: str = "") -> None:
        where = self.path / point
        where.mkdir(parents=True, exist_ok=True)
        shown = str(where).replace(" ", "\\040")
        options = f"rw,{controllers}" if controllers else "rw,nsdelegate"
        self._mountinfo.append(f"30 22 0:26 {root} {shown} rw,nosuid shared:9 - {kind} {kind} {options}")

    def own(self, line: str) -> None:
        self._own.append(line)

    def groups(self) -> Cgroups:
        self.put("proc/mountinfo", "\n".join(self._mountinfo))
        self.put("proc/cgroup", "\n".join(self._own))
        return Cgroups(self.path / "proc", self.path / "customary")

    def cpus(self) -> float | None:
        limit = self.groups().cpu_limit()
        return None if limit is None else limit.cpus

    def room(self) -> int | None:
        room = self.groups().memory_room()
        return None if room is None else room.num_bytes


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


# ---------------------------------------------------------------- version 2
def test_a_services_limits_are_its_groups_own(tree: Tree) -> None:
    tree.mount("cgroup2", "sys")
    tree.own("0::/system.slice/octavo.service")
    tree.put("sys/system.slice/octavo.service/memory.max", 2 * GIB)
    tree.put("sys/system.slice/octavo.service/memory.current", GIB)
    tree.put("sys/system.slice/octavo.service/cpu.max", "150000 100000")
    assert tree.room() == GIB
    assert tree.cpus() == 1.5
    room = tree.groups().memory_room()
    assert room is not None and room.limit == 2 * GIB
    assert room.source.endswith("sys/system.slice/octavo.service/memory.max")


def test_the_smallest_limit_from_the_own_group_to_the_root_holds(tree: Tree) -> None:
    tree.mount("cgroup2", "sys")
    tree.own("0::/a/b/c")
    for group, cpu, limit in (
        ("a", "400000 100000", 8 * GIB),
        ("a/b", "50000 100000", 3 * GIB),
        ("a/b/c", "max 1", "max"),
    ):
        tree.put(f"sys/{group}/cpu.max", cpu)
        tree.put(f"sys/{group}/memory.max", limit)
        tree.put(f"sys/{group}/memory.current", GIB)
    assert (tree.cpus(), tree.room()) == (0.5, 2 * GIB)
    # A roomier limit may leave less, for others live under it too.
    tree.put("sys/a/memory.current", 7 * GIB + 1000)
    assert tree.room() == GIB - 1000


def test_groups_beside_ours_do_not_count(tree: Tree) -> None:
    tree.mount("cgroup2", "sys")
    tree.own("0::/a")
    for group in ("ab", "b"):
        tree.put(f"sys/{group}/cpu.max", "10000 100000")
        tree.put(f"sys/{group}/memory.max", 1)
        tree.put(f"sys/{group}/memory.current", 0)
    (tree.path / "sys/a").mkdir()
    assert (tree.cpus(), tree.room()) == (None, None)


def test_memory_high_is_a_limit(tree: Tree) -> None:
    tree.mount("cgroup2", "sys")
    tree.own("0::/a")
    tree.put("sys/a/memory.max", 4 * GIB)
    tree.put("sys/a/memory.high", 3 * GIB)
    tree.put("sys/a/memory.current", GIB)
    assert tree.room() == 2 * GIB


def test_pages_of_files_that_can_be_given_up_are_free(tree: Tree) -> None:
    """A model of 3 GiB that was read through the page cache must not count as memory that is gone."""
    tree.mount("cgroup2", "sys")
    tree.own("0::/a")
    tree.put("sys/a/memory.max", 4 * GIB)
    tree.put("sys/a/memory.current", 4 * GIB)
    tree.put("sys/a/memory.stat", f"anon {GIB}\nfile {3 * GIB}\nactive_file 0\ninactive_file {3 * GIB}")
    assert tree.room() == 3 * GIB


def test_usage_above_the_limit_leaves_nothing_and_cache_never_more_than_the_limit(tree: Tree) -> None:
    tree.mount("cgroup2", "sys")
    tree.own("0::/a")
    tree.put("sys/a/memory.max", GIB)
    tree.put("sys/a/memory.current", 2 * GIB)
    assert tree.room() == 0
    tree.put("sys/a/memory.stat", f"inactive_file {5 * GIB}")
    assert tree.room() == GIB


def test_a_container_with_a_namespace_of_its_own_sees_its_group_as_the_root(tree: Tree) -> None:
    tree.mount("cgroup2", "sys")
    tree.own("0::/")
    tree.put("sys/cpu.max", "50000 100000")
    tree.put("sys/memory.max", GIB)
    tree.put("sys/memory.current", 0)
    assert (tree.cpus(), tree.room()) == (0.5, GIB)


def test_a_path_that_is_not_mounted_means_the_mount_point(tree: Tree) -> None:
    """A container without a namespace for groups: /proc/self/cgroup tells the host's path, the mount shows its end."""
    tree.mount("cgroup2", "sys", root="/kubepods/pod1/abc")
    tree.put("sys/cpu.max", "250000 100000")
    tree.own("0::/kubepods/pod1/abc")
    assert tree.cpus() == 2.5
    other = Tree(tree.path / "other")
    other.mount("cgroup2", "sys", root="/kubepods/pod1/abc")
    other.put("sys/cpu.max", "250000 100000")
    other.own("0::/somewhere/else")
    assert other.cpus() == 2.5


def test_a_group_below_the_mounted_one_is_found_below_the_mount_point(tree: Tree) -> None:
    tree.mount("cgroup2", "sys", root="/docker/abc")
    tree.own("0::/docker/abc/init")
    tree.put("sys/init/cpu.max", "100000 100000")
    tree.put("sys/cpu.max", "300000 100000")
    assert tree.cpus() == 1.0


def test_a_group_outside_of_the_namespace_is_no_path(tree: Tree) -> None:
    tree.mount("cgroup2", "sys", root="/..")
    tree.own("0::/../other")
    tree.put("sys/cpu.max", "200000 100000")
    assert tree.cpus() == 2.0


def test_without_a_mount_the_customary_place_is_read(tree: Tree) -> None:
    tree.own("0::/a")
    tree.put("customary/a/cpu.max", "50000 100000")
    tree.put("customary/memory.max", GIB)
    tree.put("customary/memory.current", 1)
    assert (tree.cpus(), tree.room()) == (0.5, GIB - 1)


# ---------------------------------------------------------------- version 1, and both
def test_version_1_at_every_level(tree: Tree) -> None:
    tree.mount("cgroup", "sys/cpu", controllers="cpu,cpuacct")
    tree.mount("cgroup", "sys/memory", controllers="memory")
    tree.own("4:memory:/docker/abc")
    tree.own("3:cpu,cpuacct:/docker/abc")
    tree.put("sys/cpu/cpu.cfs_quota_us", -1)
    tree.put("sys/cpu/cpu.cfs_period_us", 100000)
    tree.put("sys/cpu/docker/abc/cpu.cfs_quota_us", -1)
    tree.put("sys/cpu/docker/abc/cpu.cfs_period_us", 100000)
    tree.put("sys/memory/docker/abc/memory.limit_in_bytes", NO_LIMIT_V1)
    tree.put("sys/memory/docker/abc/memory.usage_in_bytes", GIB)
    assert tree.cpus() is None
    assert tree.room() == NO_LIMIT_V1 - GIB  # larger than any machine: no limit
    tree.put("sys/cpu/docker/cpu.cfs_quota_us", 75000)
    tree.put("sys/cpu/docker/cpu.cfs_period_us", 50000)
    tree.put("sys/memory/docker/memory.limit_in_bytes", 3 * GIB)
    tree.put("sys/memory/docker/memory.usage_in_bytes", 2 * GIB)
    tree.put("sys/memory/docker/memory.stat", f"inactive_file 7\ntotal_inactive_file {GIB}")
    assert (tree.cpus(), tree.room()) == (1.5, 2 * GIB)


def test_version_1_limits_memory_with_swap_and_tells_of_limits_that_are_not_shown(tree: Tree) -> None:
    tree.mount("cgroup", "sys/memory", root="/docker/abc", controllers="memory")
    tree.own("4:memory:/docker/abc")
    tree.put("sys/memory/memory.limit_in_bytes", 4 * GIB)
    tree.put("sys/memory/memory.usage_in_bytes", GIB)
    tree.put("sys/memory/memory.memsw.limit_in_bytes", 4 * GIB)
    tree.put("sys/memory/memory.memsw.usage_in_bytes", 2 * GIB)
    assert tree.room() == 2 * GIB
    tree.put("sys/memory/memory.stat", f"hierarchical_memory_limit {2 * GIB}\ntotal_inactive_file 0")
    assert tree.room() == GIB


def test_both_versions_at_once(tree: Tree) -> None:
    """systemd's hybrid: version 1 for the controllers, version 2 beside them without any."""
    tree.mount("cgroup2", "sys/unified")
    tree.mount("cgroup", "sys/memory", controllers="memory")
    tree.mount("cgroup", "sys/cpu,cpuacct", controllers="cpu,cpuacct")
    for line in (
        "9:memory:/system.slice/x.service",
        "5:cpu,cpuacct:/",
        "1:name=systemd:/y",
        "0::/system.slice/x.service",
    ):
        tree.own(line)
    tree.put("sys/memory/system.slice/x.service/memory.limit_in_bytes", 2 * GIB)
    tree.put("sys/memory/system.slice/x.service/memory.usage_in_bytes", GIB)
    tree.put("sys/cpu,cpuacct/cpu.cfs_quota_us", 200000)
    tree.put("sys/cpu,cpuacct/cpu.cfs_period_us", 100000)
    (tree.path / "sys/unified/system.slice/x.service").mkdir(parents=True)
    assert (tree.cpus(), tree.room()) == (2.0, GIB)


@pytest.mark.parametrize(("text", "count"), [("0-3,8", 5), ("2", 1), ("0-1", 2), ("", None), ("x", None), ("3-", None)])
def test_sets_of_cpus_are_counted(tree: Tree, text: str, count: int | None) -> None:
    tree.mount("cgroup2", "sys")
    tree.own("0::/a")
    tree.put("sys/a/cpuset.cpus.effective", text)
    assert tree.cpus() == (1 if text == "3-" else count)


# ---------------------------------------------------------------- nonsense
@pytest.mark.parametrize("text", ["", "max", "-1 100000", "50000 0", "0 100000", "a b", "1 2 3", "50000"])
def test_what_cannot_be_read_is_no_limit(tree: Tree, text: str) -> None:
    tree.mount("cgroup2", "sys")
    tree.own("0::/")
    tree.put("sys/cpu.max", text)
    tree.put("sys/memory.max", "many")
    tree.put("sys/memory.current", "few")
    assert (tree.cpus(), tree.room()) == (None, None)


def test_no_groups_at_all_are_no_limit(tmp_path: Path) -> None:
    groups = Cgroups(tmp_path / "none", tmp_path / "none")
    assert groups.cpu_limit() is None and groups.memory_room() is None
    tree = Tree(tmp_path)
    tree.own("no colons here")
    tree.own("::")
    tree._mountinfo += ["", "1 2 3", "x - cgroup2", "1 2 0:1 / /nowhere rw - cgroup2 cgroup2 rw"]
    assert (tree.cpus(), tree.room()) == (None, None)


def test_mount_points_with_spaces(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "a place")
    tree.mount("cgroup2", "sys")
    tree.own("0::/")
    tree.put("sys/cpu.max", "100000 100000")
    assert tree.cpus() == 1.0


# ---------------------------------------------------------------- what follows for the process
@pytest.mark.parametrize(
    ("quota", "cpus"),
    [("1000 100000", 1), ("50000 100000", 1), ("150000 100000", 1), ("399999 100000", 3), ("max 1", 8)],
)
def test_a_quota_is_rounded_down_but_never_to_none(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, quota: str, cpus: int
) -> None:
    monkeypatch.setattr(host, "_allowed_cpus", lambda: list(range(8)))
    tree.mount("cgroup2", "sys")
    tree.own("0::/")
    tree.put("sys/cpu.max", quota)
    assert host.num_cpus(tree.groups()) == cpus


def test_hyper_threads_are_one_core_and_only_those_allowed_count(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu, siblings in {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}.items():
        tree.put(f"cpu/cpu{cpu}/topology/thread_siblings_list", siblings)
    monkeypatch.setattr(host, "_CPU_DIRECTORY", tree.path / "cpu")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 5}, raising=False)
    assert (host.num_cores(tree.groups()), host.num_cpus(tree.groups())) == (2, 4)
    monkeypatch.setattr(host, "_CPU_DIRECTORY", tree.path / "none")
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: None)
    assert host.num_cores(tree.groups()) == 4


def test_free_memory_is_the_machines_or_what_a_limit_leaves(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    class Machine:
        available = 8 * GIB

    def machine(*_: Any) -> Machine:
        return Machine()

    monkeypatch.setattr(psutil, "virtual_memory", machine)
    tree.mount("cgroup2", "sys")
    tree.own("0::/")
    tree.put("sys/memory.max", 100 * GIB)
    tree.put("sys/memory.current", 0)
    assert str(host.free_memory(tree.groups())) == "8.0 GiB free on this machine"
    tree.put("sys/memory.max", 2 * GIB)
    tree.put("sys/memory.current", GIB // 2)
    free = host.free_memory(tree.groups())
    assert free.num_bytes == 3 * GIB // 2
    assert str(free).startswith("1.5 GiB free below the limit of 2.0 GiB in ") and str(free).endswith("sys/memory.max")
