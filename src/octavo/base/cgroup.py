"""Limits that control groups set on this process: containers, services, jobs. Versions 1, 2, and both at once.

A process is in one group of each hierarchy, and each group from there up to the root may set a limit: the smallest
holds. `/proc/self/cgroup` names the process's group, `/proc/self/mountinfo` where a hierarchy is to be seen:

    0::/system.slice/octavo.service                               id:controllers:path; version 2 has no controllers
    31 23 0:28 ROOT MOUNT_POINT rw - cgroup2 cgroup2 rw           group ROOT/x is the directory MOUNT_POINT/x

A container often sees its own group as the root, or reads a path that lies outside of what is mounted: then the mount
point is as near as one can get. What cannot be read sets no limit; nothing here raises.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_PROC = Path("/proc/self")
_CUSTOMARY = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class CPULimit:
    """What this process may use of the CPUs; `source` is the file that says so."""

    cpus: float
    source: str


@dataclass(frozen=True)
class MemoryRoom:
    """Bytes that can still be allocated below one limit."""

    num_bytes: int
    limit: int
    source: str


@dataclass(frozen=True)
class _Mount:
    """A place where a hierarchy is to be seen. `root` is the group that its mount point shows."""

    is_v2: bool
    controllers: frozenset[str]  # version 1 only
    root: PurePosixPath
    point: Path


class Cgroups:
    """The groups of this process, read once. `proc` and `customary` are other places for tests."""

    def __init__(self, proc: Path = _PROC, customary: Path = _CUSTOMARY) -> None:
        self._paths = _own_paths(_text(proc / "cgroup"))
        self._mounts = _mounts(_text(proc / "mountinfo"))
        self._customary = customary

    def cpu_limit(self) -> CPULimit | None:
        """The smallest quota (CPU time for time) or set of CPUs, or None without a limit."""
        found = [_v2_quota(group) for group in self._groups("")]
        found += [_v1_quota(group) for group in self._groups("cpu")]
        for group in self._groups(""):
            found.append(_cpu_set(group / "cpuset.cpus.effective"))
        for group in self._groups("cpuset"):
            found.append(_cpu_set(group / "cpuset.cpus"))
        return min((limit for limit in found if limit is not None), key=lambda limit: limit.cpus, default=None)

    def memory_room(self) -> MemoryRoom | None:
        """What is left below the tightest limit, or None without one."""
        rooms = [room for group in self._groups("") for room in _v2_rooms(group)]
        rooms += [room for group in self._groups("memory") for room in _v1_rooms(group)]
        return min(rooms, key=lambda room: room.num_bytes, default=None)

    def _groups(self, controller: str) -> list[Path]:
        """Directories of the process's group and of those above it, own first. "" means version 2."""
        path = self._paths.get(controller)
        if path is None:
            return []
        mounts = [m for m in self._mounts if (m.is_v2 if not controller else controller in m.controllers)]
        mounts = [mount for mount in mounts if mount.point.is_dir()]
        if not mounts:
            # Some sandboxes show files of a hierarchy where it usually is, and no mount.
            point = self._customary / controller
            mounts = [_Mount(not controller, frozenset({controller}), PurePosixPath("/"), point)]
        inside = [mount for mount in mounts if path.is_relative_to(mount.root)]
        groups: list[Path] = []
        for mount in inside or mounts:
            below = path.relative_to(mount.root) if inside else PurePosixPath()
            own = mount.point / below
            groups += [own, *(parent for parent in own.parents if parent.is_relative_to(mount.point))]
        return list(dict.fromkeys(groups))


# ---------------------------------------------------------------- /proc
def _own_paths(text: str) -> dict[str, PurePosixPath]:
    """Controller -> path of the process's group; "" for version 2."""
    paths: dict[str, PurePosixPath] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        # A group outside of the namespace's root reads /../x: it is not to be seen, but what holds it may be.
        shown = PurePosixPath("/") if ".." in path.split("/") else PurePosixPath(path or "/")
        for controller in controllers.split(","):
            paths.setdefault(controller, shown)
    return paths


def _mounts(text: str) -> list[_Mount]:
    mounts = []
    for line in text.splitlines():
        mount, _, source = line.partition(" - ")
        fields, kind = mount.split(" "), source.split(" ")
        if len(fields) < 6 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        root = "/" if ".." in fields[3].split("/") else _unescaped(fields[3])
        controllers = frozenset(kind[2].split(",")) if kind[0] == "cgroup" else frozenset[str]()
        mounts.append(_Mount(kind[0] == "cgroup2", controllers, PurePosixPath(root), Path(_unescaped(fields[4]))))
    return mounts


def _unescaped(text: str) -> str:
    """Spaces and backslashes stand in mountinfo as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


# ---------------------------------------------------------------- CPUs
def _v2_quota(group: Path) -> CPULimit | None:
    words = _text(group / "cpu.max").split()  # "50000 100000" or "max 100000": microseconds in a period
    return _quota(words[0], words[1], group / "cpu.max") if len(words) == 2 else None


def _v1_quota(group: Path) -> CPULimit | None:
    file = group / "cpu.cfs_quota_us"  # -1: no limit
    return _quota(_text(file).strip(), _text(group / "cpu.cfs_period_us").strip(), file)


def _quota(quota: str, period: str, file: Path) -> CPULimit | None:
    if not quota.isdigit() or not period.isdigit() or int(period) == 0 or int(quota) == 0:
        return None
    return CPULimit(int(quota) / int(period), str(file))


def _cpu_set(file: Path) -> CPULimit | None:
    """The size of a set such as 0-3,8."""
    count = 0
    for part in _text(file).strip().split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            return None
        count += int(last or first) - int(first) + 1
    return CPULimit(count, str(file)) if count > 0 else None


# ---------------------------------------------------------------- memory
def _v2_rooms(group: Path) -> list[MemoryRoom]:
    # At memory.high nobody is killed, but the group is slowed down until it has given memory back.
    cache = _stat(group, "inactive_file")
    return _rooms(group, ("memory.max", "memory.high"), "memory.current", cache)


def _v1_rooms(group: Path) -> list[MemoryRoom]:
    cache = _stat(group, "total_inactive_file")
    rooms = _rooms(group, ("memory.limit_in_bytes",), "memory.usage_in_bytes", cache)
    rooms += _rooms(group, ("memory.memsw.limit_in_bytes",), "memory.memsw.usage_in_bytes", cache)
    # The smallest limit above, also of groups that this mount does not show; their other members stay unknown.
    above, used = _stat(group, "hierarchical_memory_limit"), _number(group / "memory.usage_in_bytes")
    if above and used is not None:
        rooms.append(_room(above, used, cache, group / "memory.stat"))
    return rooms


def _rooms(group: Path, limits: tuple[str, ...], usage: str, cache: int) -> list[MemoryRoom]:
    used = _number(group / usage)
    if used is None:
        return []
    found = [(group / name, _number(group / name)) for name in limits]
    return [_room(limit, used, cache, file) for file, limit in found if limit is not None]


def _room(limit: int, used: int, cache: int, file: Path) -> MemoryRoom:
    """Room below a limit. Pages of files that nobody has looked at lately are given up when memory is short: without
    them, a model that was just read would count against itself. kubelet's working set is the same difference."""
    return MemoryRoom(max(0, limit - max(0, used - cache)), limit, str(file))


def _stat(group: Path, name: str) -> int:
    for line in _text(group / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


def _number(file: Path) -> int | None:
    """The number in a file; None where there is none, or the word max."""
    text = _text(file).strip()
    return int(text) if text.isdigit() else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
