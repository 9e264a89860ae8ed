from pathlib import Path

import pytest

from quire_cluster.cli import main


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own provider over an empty cache: nothing of a running cluster is seen or touched."""
    monkeypatch.setenv("QUIRE_CACHE", str(tmp_path))
    monkeypatch.setenv("QUIRE_CLUSTER", "netns")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


def test_an_error_is_one_sentence_and_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUIRE_CLUSTER", "k3s")
    assert main(["up"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("cluster: QUIRE_CLUSTER must be one of ")
    assert error.count("\n") == 1


def test_status_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 1
    assert "is down" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [["kubeconfig"], ["exec", "--", "true"], ["images"], ["addons"]])
def test_what_needs_a_cluster_says_how_to_get_one(
    verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(verb) == 1
    assert "run `make cluster-up` first" in capsys.readouterr().err


def test_a_small_volume_needs_a_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["small-volume", "full"]) == 1
    assert "needs SIZE_MIB" in capsys.readouterr().err
