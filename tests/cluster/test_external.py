from pathlib import Path

import pytest

from quire_cluster.errors import NotRunningError, PrerequisiteError
from quire_cluster.external import ExternalCluster
from quire_cluster.provider import Image
from quire_cluster.settings import Settings

IMAGE = Image("quire-x", "Dockerfile.x", ("Dockerfile.x",))


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl for which the cluster answers while its kubeconfig has content."""
    program = tmp_path / "programs/kubectl"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ -s "${1#--kubeconfig=}" ]\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return program


def _cluster(
    tmp_path: Path, *, content: str = "{}", registry: str | None = None
) -> ExternalCluster:
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(content)
    return ExternalCluster(
        Settings(cache=tmp_path / "cache", repo=tmp_path, kubeconfig=kubeconfig, registry=registry)
    )


def test_it_is_used_and_never_ended(kubectl: Path, tmp_path: Path) -> None:
    cluster = _cluster(tmp_path)
    assert cluster.status().ready
    cluster.down(purge=True)
    assert cluster.status().ready
    assert cluster.environment()["KUBECONFIG"] == str(tmp_path / "config")


def test_one_that_does_not_answer_is_named(kubectl: Path, tmp_path: Path) -> None:
    with pytest.raises(NotRunningError, match="does not answer /readyz; start it"):
        _cluster(tmp_path, content="").require_running()


def test_images_need_a_registry_and_a_builder(kubectl: Path, tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="set QUIRE_REGISTRY"):
        _cluster(tmp_path).publish(IMAGE)
    with pytest.raises(PrerequisiteError, match="need a Docker engine"):
        _cluster(tmp_path, registry="registry.test/quire").publish(IMAGE)
