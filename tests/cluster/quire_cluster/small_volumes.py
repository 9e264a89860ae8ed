"""Volumes whose size is enforced, for tests of full disks: a tmpfs of N MiB on the node.

The mount is made in containerd's mount namespace, not in the caller's: `exec` gives its commands a
mount namespace of their own, from which no mount would reach the node.
"""

import re
from pathlib import Path

from quire_cluster.errors import ClusterError
from quire_cluster.shell import run

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def mount(folder: Path, name: str, size_mib: int, node_pid: int) -> Path:
    """Make the volume, or give the existing one its new size (its files stay). Returns its path."""
    path = _path(folder, name)
    if size_mib < 1:
        raise ClusterError(f"a volume's size must be at least 1 MiB, got {size_mib}")
    enter = _node(node_pid)
    options = f"size={size_mib}m,mode=0777"
    if str(path) in mounted_below(folder, node_pid):
        run([*enter, "mount", "-o", f"remount,{options}", str(path)])
    else:
        path.mkdir(parents=True, exist_ok=True)
        run([*enter, "mount", "-t", "tmpfs", "-o", options, f"quire-{name}", str(path)])
    return path


def unmount(folder: Path, name: str, node_pid: int) -> None:
    """Remove the volume with its files. Safe to repeat."""
    path = _path(folder, name)
    enter = _node(node_pid)  # also for rmdir: where the mount is still seen, the folder is busy
    if str(path) in mounted_below(folder, node_pid):
        run([*enter, "umount", "-l", str(path)])
    if path.is_dir():
        run([*enter, "rmdir", str(path)])


def mounted_below(folder: Path, pid: int | str = "self") -> list[str]:
    """Mount points at and below a folder, the deepest first."""
    lines = Path(f"/proc/{pid}/mounts").read_text().splitlines()
    points = [line.split()[1].replace("\\040", " ") for line in lines]
    below = [point for point in points if Path(point).is_relative_to(folder)]
    return sorted(below, key=len, reverse=True)


def _path(folder: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ClusterError(
            f"a volume's name must be a DNS label of at most 63 characters, got {name!r}"
        )
    return folder / name


def _node(pid: int) -> list[str]:
    return ["nsenter", f"--mount=/proc/{pid}/ns/mnt"]
