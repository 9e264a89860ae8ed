"""The control group that holds every pod of the cluster, and nothing else.

The kubelet is given this group as its root, so that what a killed cluster leaves running can be
told from everybody else's processes by one look into the group.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

GROUP = "quire"
_MOUNT = Path("/sys/fs/cgroup")
_REAP_SECONDS = 5.0


def is_version_2(mount: Path = _MOUNT) -> bool:
    return (mount / "cgroup.controllers").is_file()


def roots(mount: Path = _MOUNT) -> list[Path]:
    """Our group's folder: one in cgroup v2, one for each hierarchy in v1."""
    if is_version_2(mount):
        return [mount / GROUP]
    hierarchies = (path for path in mount.iterdir() if (path / "cgroup.procs").is_file())
    return sorted(path / GROUP for path in hierarchies if not path.is_symlink())


def create(mount: Path = _MOUNT) -> None:
    """Make the group in every hierarchy. A cpuset group takes no process before it has CPUs."""
    for root in roots(mount):
        root.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if not is_version_2(mount) and (root / setting).is_file():
                (root / setting).write_text((root.parent / setting).read_text())
    if is_version_2(mount):
        controllers = (mount / "cgroup.controllers").read_text().split()
        enable = " ".join(f"+{controller}" for controller in controllers)
        (mount / "cgroup.subtree_control").write_text(enable)
        (mount / GROUP / "cgroup.subtree_control").write_text(enable)


def destroy(mount: Path = _MOUNT) -> None:
    """End every process in the group, and remove the group. Safe to repeat."""
    present = [root for root in roots(mount) if root.is_dir()]
    deadline = time.monotonic() + _REAP_SECONDS
    while (pids := set(_processes(present))) and time.monotonic() < deadline:
        for pid in pids:
            _kill(pid)
        time.sleep(0.05)
    for root in present:
        for folder, _, _ in os.walk(root, topdown=False):
            _remove(Path(folder))


def _processes(groups: list[Path]) -> Iterator[int]:
    for group in groups:
        for folder, _, files in os.walk(group):
            if "cgroup.procs" in files:
                yield from map(int, _read(Path(folder) / "cgroup.procs").split())


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the group went while we walked
        return ""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _remove(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # a process that could not be ended keeps its group until the next `down`
        return
