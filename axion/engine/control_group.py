"""What this process's control group (version 2) may have: a container's limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def memory_headroom(root: Path = _ROOT, own: Path = _OWN) -> int | None:
    """Bytes that the group, and each that it lies in, has left; None: there is no limit."""
    headrooms = []
    for folder in _folders(root, own):
        try:
            limit = int((folder / "memory.max").read_text())
            used = int((folder / "memory.current").read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # not there, or "max"
            continue
        # Files that were read, such as the weights, count as used until their place is needed.
        files = int(stat["active_file"]) + int(stat["inactive_file"])
        headrooms.append(limit - used + files)
    return min(headrooms, default=None)


def num_processors(root: Path = _ROOT, own: Path = _OWN) -> float | None:
    """Whose time the group, and each that it lies in, may take; None: there is no limit."""
    shares = []
    for folder in _folders(root, own):
        try:
            quota, period = (int(x) for x in (folder / "cpu.max").read_text().split())
        except (OSError, ValueError):  # as above
            continue
        shares.append(quota / period)
    return min(shares, default=None)


def _folders(root: Path, own: Path) -> Iterator[Path]:
    """Of the group and of all around it."""
    try:
        [name] = (line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, ValueError):  # no version-2 control group
        return
    group = root / name.strip("/")
    yield from (group, *group.parents)
