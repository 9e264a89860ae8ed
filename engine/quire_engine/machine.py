"""What this machine, or the container around us, gives: processors, memory, a process's age.

No torch here.
"""

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC_CGROUP = Path("/proc/self/cgroup")


def num_cpus(cgroups: Path = CGROUP_ROOT) -> int:
    """Processors that the cgroup's quota lets us keep busy, at least one."""
    quotas = [quota for folder in _folders(cgroups, "cpu") if (quota := _cpu_quota(folder))]
    return max(1, math.floor(min([*quotas, float(len(os.sched_getaffinity(0)))])))


def has_gpu(device: Path = Path("/dev/nvidiactl")) -> bool:
    """Whether NVIDIA's driver is here, so that CUDA may find a device. Costs no import of torch."""
    return device.exists()


def engine_memory_bytes(cgroups: Path = CGROUP_ROOT, meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that the engine may come to hold: the smallest limit of the cgroups around it, as a
    memory plan is told it beforehand; less where the host has less available."""
    limits = [limit for folder in _folders(cgroups, "memory") if (limit := _memory_limit(folder))]
    return min([*limits, _host_available(meminfo)])


def process_age_seconds() -> float:
    """Since the kernel started this process (proc_pid_stat(5), field 22), imports included."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Our cgroup's folders of `controller`, version 2 or 1, from the leaf to the root.

    A limit anywhere on the way binds. In a container the leaf is usually mounted as the root.
    """
    for line in PROC_CGROUP.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        leaf = base / path.lstrip("/")
        yield from (p for p in (leaf, *leaf.parents) if p.is_relative_to(base) and p.is_dir())


def _cpu_quota(folder: Path) -> float | None:
    """Processors' worth of time, None where the cgroup sets no limit."""
    if (words := _words(folder / "cpu.max")) and words[0] != "max":  # version 2
        return int(words[0]) / int(words[1])
    quota, period = _integer(folder / "cpu.cfs_quota_us"), _integer(folder / "cpu.cfs_period_us")
    return quota / period if quota and quota > 0 and period else None


def _memory_limit(folder: Path) -> int | None:
    return _integer(folder / "memory.max") or _integer(folder / "memory.limit_in_bytes")


def _host_available(meminfo: Path) -> int:
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:  # not a file of this cgroup version
        return []


def _integer(path: Path) -> int | None:
    words = _words(path)
    return int(words[0]) if len(words) == 1 and words[0].lstrip("-").isdigit() else None
