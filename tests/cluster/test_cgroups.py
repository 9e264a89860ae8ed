"""Fakes of the two layouts of /sys/fs/cgroup; the files of a real one appear with its folders."""

from pathlib import Path

from quire_cluster import cgroups


def _version_1(mount: Path) -> None:
    for name in ("cpu", "cpuset", "memory"):
        (mount / name).mkdir()
        (mount / name / "cgroup.procs").touch()
    (mount / "cpu,cpuacct").symlink_to(mount / "cpu")


def test_version_1_has_a_group_in_each_hierarchy(tmp_path: Path) -> None:
    _version_1(tmp_path)
    cgroups.create(tmp_path)
    found = sorted(str(root.relative_to(tmp_path)) for root in cgroups.roots(tmp_path))
    assert found == ["cpu/quire", "cpuset/quire", "memory/quire"]
    assert all(root.is_dir() for root in cgroups.roots(tmp_path))


def test_version_2_has_one(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    cgroups.create(tmp_path)
    assert cgroups.roots(tmp_path) == [tmp_path / "quire"]
    assert (tmp_path / "quire/cgroup.subtree_control").read_text() == "+cpu +memory"


def test_destroying_takes_nested_groups_and_is_safe_twice(tmp_path: Path) -> None:
    _version_1(tmp_path)
    cgroups.create(tmp_path)
    (tmp_path / "memory/quire/kubepods/pod1").mkdir(parents=True)
    cgroups.destroy(tmp_path)
    cgroups.destroy(tmp_path)
    assert not any(root.exists() for root in cgroups.roots(tmp_path))
    assert (tmp_path / "memory").is_dir()
