from pathlib import Path

import pytest

from quire_cluster.choice import choose, provider_name
from quire_cluster.errors import PrerequisiteError
from quire_cluster.settings import Settings, read_settings


def _settings(tmp_path: Path, **environ: str) -> Settings:
    return read_settings({"QUIRE_CACHE": str(tmp_path), **environ})


def _never_asked() -> bool:
    raise AssertionError("whether Docker answers does not matter here")


def test_a_given_cluster_comes_first(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "config"
    kubeconfig.touch()
    settings = _settings(tmp_path, QUIRE_KUBECONFIG=str(kubeconfig))
    assert provider_name(settings, _never_asked) == "kubeconfig"


@pytest.mark.parametrize(("docker", "expected"), [(True, "kind"), (False, "netns")])
def test_docker_decides_otherwise(tmp_path: Path, docker: bool, expected: str) -> None:
    assert provider_name(_settings(tmp_path), lambda: docker) == expected


@pytest.mark.parametrize("name", ["kind", "netns", "kubeconfig"])
def test_a_named_provider_wins(tmp_path: Path, name: str) -> None:
    kubeconfig = tmp_path / "config"
    kubeconfig.touch()
    settings = _settings(tmp_path, QUIRE_CLUSTER=name, QUIRE_KUBECONFIG=str(kubeconfig))
    assert provider_name(settings, _never_asked) == name
    assert choose(settings).name == name


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"QUIRE_CLUSTER": "k3s"}, "QUIRE_CLUSTER must be one of netns, kind, kubeconfig"),
        ({"QUIRE_CLUSTER": "kubeconfig"}, "needs QUIRE_KUBECONFIG"),
        ({"QUIRE_KUBECONFIG": "/nowhere/config"}, "QUIRE_KUBECONFIG must name a file"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, environ: dict[str, str], message: str) -> None:
    with pytest.raises(PrerequisiteError, match=message):
        _settings(tmp_path, **environ)
