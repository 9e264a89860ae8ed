"""spec.podTemplate over our pod: merged by name as Kubernetes would, ours kept where it must."""

import copy

import pytest

from quire_operator.api import decode_spec
from quire_operator.errors import OverlayError
from quire_operator.fetch_environment import Network
from quire_operator.kinds import Manifest
from quire_operator.names import Key
from quire_operator.overlay import overlay
from quire_operator.pods import engine_template


@pytest.fixture
def template() -> Manifest:
    spec = decode_spec({"model": {"uri": "hf://org/model"}, "resources": {"memory": "2Gi"}})
    return engine_template(Key("ns", "chat"), spec, "0a1b2c3d", "engine:v1", Network())


def engine(template: Manifest) -> Manifest:
    return next(c for c in template["spec"]["containers"] if c["name"] == "engine")


def test_nothing_over_it_changes_nothing(template: Manifest) -> None:
    before = copy.deepcopy(template)
    assert overlay(template, {}) == before
    assert template == before


def test_named_lists_merge_and_others_are_replaced(template: Manifest) -> None:
    patch = {
        "spec": {
            "nodeSelector": {"gpu": "a"},
            "tolerations": [{"key": "mine"}],
            "volumes": [{"name": "extra", "emptyDir": {}}],
            "containers": [
                {"name": "engine", "env": [{"name": "A", "value": "1"}]},
                {"name": "sidecar", "image": "x"},
            ],
        }
    }
    merged = overlay(template, patch)
    assert [c["name"] for c in merged["spec"]["containers"]] == ["engine", "sidecar"]
    assert [v["name"] for v in merged["spec"]["volumes"]] == ["models", "tmp", "extra"]
    assert merged["spec"]["tolerations"] == [{"key": "mine"}]
    assert engine(merged)["env"] == [{"name": "A", "value": "1"}]
    assert engine(merged)["image"] == "engine:v1"


def test_labels_command_and_ports_are_protected(template: Manifest) -> None:
    patch = {
        "metadata": {
            "labels": {"serving.quire.dev/service": "other", "team": "a"},
            "annotations": {"note": "b"},
        },
        "spec": {
            "containers": [
                {
                    "name": "engine",
                    "command": ["sh"],
                    "args": ["-c", "true"],
                    "ports": [{"containerPort": 1}],
                }
            ]
        },
    }
    merged = overlay(template, patch)
    labels = merged["metadata"]["labels"]
    assert labels["serving.quire.dev/service"] == "chat"
    assert labels["team"] == "a"
    assert merged["metadata"]["annotations"] == template["metadata"]["annotations"] | {"note": "b"}
    assert "command" not in engine(merged)
    assert engine(merged)["args"] == engine(template)["args"]
    assert engine(merged)["ports"] == engine(template)["ports"]


def test_null_and_patch_delete_remove(template: Manifest) -> None:
    patch = {
        "spec": {
            "securityContext": None,
            "volumes": [{"name": "tmp", "$patch": "delete"}],
            "containers": [{"name": "engine", "resources": {"$patch": "replace", "limits": {}}}],
        }
    }
    merged = overlay(template, patch)
    assert "securityContext" not in merged["spec"]
    assert [v["name"] for v in merged["spec"]["volumes"]] == ["models"]
    assert engine(merged)["resources"] == {"limits": {}}


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ({"containers": []}, "podTemplate.containers is unknown"),
        ({"metadata": {"name": "x"}}, "metadata.name cannot be set"),
        ({"metadata": 5}, "podTemplate.metadata must be a map, got 5"),
        ({"metadata": [1]}, "podTemplate.metadata must be a map"),
        ({"spec": {"containers": {"a": 1}}}, "must not be a map"),
        ({"spec": {"containers": [{"image": "x"}]}}, "needs its 'name'"),
        ({"spec": {"securityContext": 5}}, "must be a map, got 5"),
        (
            {"spec": {"containers": [{"name": "engine", "$patch": "delete"}]}},
            "removes the container",
        ),
        ({"spec": None}, "removes the container"),
    ],
)
def test_what_is_no_pod_template_is_refused(
    template: Manifest, patch: Manifest, words: str
) -> None:
    with pytest.raises(OverlayError, match=words):
        overlay(template, patch)
