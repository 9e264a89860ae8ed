import os
import subprocess
import sys
import time

import pytest

from quire_engine import machine

GIB = 1 << 30


@pytest.fixture
def meminfo(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal: 99 kB\nMemAvailable: {8 * GIB // 1024} kB\n")
    return path


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """Writes files of our own cgroup; gives the root of the hierarchy."""

    def cgroup(line, folder, **files):
        monkeypatch.setattr(machine, "PROC_CGROUP", tmp_path / "proc")
        (tmp_path / "proc").write_text(line + "\n")
        (tmp_path / "cg" / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / "cg" / folder / name.replace("__", ".")).write_text(text)
        return tmp_path / "cg"

    return cgroup


def test_a_quota_of_version_2_rounds_down(cgroup, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert machine.num_cpus(cgroup("0::/pod", "pod", cpu__max="250000 100000")) == 2
    assert machine.num_cpus(cgroup("0::/pod", "pod", cpu__max="50000 100000")) == 1
    assert machine.num_cpus(cgroup("0::/pod", "pod", cpu__max="max 100000")) == 16


def test_a_quota_of_version_1(cgroup, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    files = {"cpu.cfs_quota_us": "400000\n", "cpu.cfs_period_us": "100000\n"}
    assert machine.num_cpus(cgroup("4:cpu,cpuacct:/pod", "cpu,cpuacct/pod", **files)) == 4
    files["cpu.cfs_quota_us"] = "-1\n"
    assert machine.num_cpus(cgroup("4:cpu,cpuacct:/pod", "cpu,cpuacct/pod", **files)) == 16


def test_a_limit_further_up_binds_too(cgroup, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    cgroup("0::/pod/engine", "pod/engine", cpu__max="max 100000")
    assert machine.num_cpus(cgroup("0::/pod/engine", "pod", cpu__max="300000 100000")) == 3


def test_the_smallest_limit_on_the_way_is_what_the_engine_may_hold(cgroup, meminfo):
    cgroup("0::/pod/engine", "pod/engine", memory__max=str(4 * GIB))
    root = cgroup("0::/pod/engine", "pod", memory__max=str(3 * GIB), memory__current=str(GIB))
    assert machine.engine_memory_bytes(root, meminfo) == 3 * GIB


def test_without_a_limit_the_host_decides(cgroup, meminfo):
    root = cgroup("0::/pod", "pod", memory__max="max")
    assert machine.engine_memory_bytes(root, meminfo) == 8 * GIB
    huge = cgroup("0::/pod", "pod", memory__max=str(2**62))
    assert machine.engine_memory_bytes(huge, meminfo) == 8 * GIB


def test_this_machine_gives_something():
    assert 1 <= machine.num_cpus() <= (os.cpu_count() or 1)
    assert machine.engine_memory_bytes() > 1 << 20


def test_a_driver_is_looked_for_without_torch(tmp_path):
    assert not machine.has_gpu(tmp_path / "nvidiactl")
    (tmp_path / "nvidiactl").touch()
    assert machine.has_gpu(tmp_path / "nvidiactl")


def test_a_process_is_as_old_as_its_start():
    code = (
        "import time; begun = time.monotonic(); from quire_engine import machine\n"
        "age = machine.process_age_seconds(); print(begun, time.monotonic() - age)"
    )
    before = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    begun, started = map(float, out.split())
    assert before - 0.02 <= started <= begun + 0.02  # the kernel counts in hundredths
