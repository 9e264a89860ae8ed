"""kind and docker as two small programs that behave: they keep what they were told in files."""

from pathlib import Path

import pytest

from quire_cluster.build import Binaries
from quire_cluster.errors import ClusterError, NotRunningError, PrerequisiteError
from quire_cluster.kind import KindCluster
from quire_cluster.provider import Image
from quire_cluster.settings import Settings
from quire_cluster.versions import CLIENT_TOOLS

KIND = """#!/bin/sh
cd "$(dirname "$0")"
case "$1 $2" in
"get clusters") cat clusters 2>/dev/null || true ;;
"create cluster") echo quire > clusters ;;
"delete cluster") rm -f clusters ;;
"load docker-image") echo "$5" >> loaded ;;
esac
"""
DOCKER = """#!/bin/sh
cd "$(dirname "$0")"
case "$1 $2" in
"image inspect") grep -qx "$3" built ;;
build*) while [ "$1" != --tag ]; do shift; done; echo "$2" >> built ;;
esac
"""
KUBECTL = """#!/bin/sh
cat "$(dirname "$0")/clusters" >/dev/null
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, text in {"kind": KIND, "docker": DOCKER, "kubectl": KUBECTL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def cluster(tmp_path: Path) -> KindCluster:
    cache = tmp_path / "cache"
    for tool in CLIENT_TOOLS:  # as if built
        Binaries(cache).folder(tool).mkdir(parents=True)
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "Dockerfile.x").write_text("FROM scratch\n")
    return KindCluster(Settings(cache=cache, repo=repo, hub_address="198.51.100.7:8090"))


IMAGE = Image("quire-x", "Dockerfile.x", ("Dockerfile.x",))


def test_up_and_down_are_safe_to_repeat(programs: Path, cluster: KindCluster) -> None:
    assert not cluster.status().ready
    cluster.up()
    cluster.up()
    assert cluster.status().ready
    cluster.down(purge=False)
    cluster.down(purge=True)
    assert not cluster.status().ready


def test_an_image_is_built_once_and_loaded(programs: Path, cluster: KindCluster) -> None:
    cluster.up()
    reference = cluster.publish(IMAGE)
    assert cluster.publish(IMAGE) == reference
    assert (programs / "built").read_text().split() == [reference]
    assert reference in (programs / "loaded").read_text().split()


def test_no_image_without_a_cluster(programs: Path, cluster: KindCluster) -> None:
    with pytest.raises(NotRunningError, match="make cluster-up"):
        cluster.publish(IMAGE)


def test_docker_without_kind_names_both_ways_out(programs: Path, cluster: KindCluster) -> None:
    (programs / "kind").unlink()
    with pytest.raises(PrerequisiteError, match="install kind, or set QUIRE_CLUSTER=netns"):
        cluster.up()


def test_commands_run_as_they_are(programs: Path, cluster: KindCluster) -> None:
    assert cluster.wrap(["kubectl", "get", "pods"]) == ["kubectl", "get", "pods"]
    assert cluster.environment()["QUIRE_HUB_ADDRESS"] == "198.51.100.7:8090"
    assert "QUIRE_CLUSTER_NETWORK" not in cluster.environment()


def test_no_enforced_sizes(cluster: KindCluster) -> None:
    with pytest.raises(ClusterError, match="QUIRE_CLUSTER=netns"):
        cluster.small_volume("full", 8, "1Gi")
