from pathlib import Path

import pytest

from quire_cluster import small_volumes
from quire_cluster.errors import ClusterError


@pytest.mark.parametrize("name", ["../x", "A", "", "a.b", "-a", "a" * 64])
def test_a_name_that_is_no_label_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ClusterError, match="must be a DNS label"):
        small_volumes.mount(tmp_path, name, 8, node_pid=1)


def test_a_volume_has_a_size(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="at least 1 MiB, got 0"):
        small_volumes.mount(tmp_path, "full", 0, node_pid=1)


def test_mounts_are_listed_the_deepest_first() -> None:
    points = small_volumes.mounted_below(Path("/"))
    assert points[-1] == "/"
    assert "/proc" in points
    assert small_volumes.mounted_below(Path("/proc/no-such-folder")) == []
