import json

import pytest

from quire_cluster import keda
from quire_cluster.errors import PrerequisiteError


def _deployment(name: str) -> dict[str, object]:
    container = {"image": "ghcr.io/x", "args": ["--leader-elect"], "readinessProbe": {"a": 1}}
    spec = {"template": {"spec": {"containers": [container]}}}
    return {"kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def test_kedas_own_objects_run_from_our_image() -> None:
    operator, adapter = _deployment("keda-operator"), _deployment("keda-metrics-apiserver")
    role = {"kind": "ClusterRole", "metadata": {"name": "keda-operator"}}
    before = json.dumps(operator)
    items = keda.adapted([operator, adapter, role], "quire.test/keda:v1")["items"]
    assert items[2] == role
    [first, second] = [item["spec"]["template"]["spec"]["containers"][0] for item in items[:2]]
    assert first["image"] == second["image"] == "quire.test/keda:v1"
    assert first["imagePullPolicy"] == "Never"  # there is no registry that has it
    assert first["args"] == ["--leader-elect", "--enable-webhook-patching=false"]
    assert second["args"] == ["--leader-elect"]
    assert first["readinessProbe"] == {"a": 1, "initialDelaySeconds": 1, "periodSeconds": 1}
    assert json.dumps(operator) == before


def test_without_addons_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUIRE_KEDA_MANIFESTS", raising=False)
    with pytest.raises(PrerequisiteError, match="make addons"), keda.running():
        pass
