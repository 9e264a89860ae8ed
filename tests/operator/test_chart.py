"""The chart as a whole: its values have an effect, its rights are few, its definition is ours."""

import json
import re
from collections.abc import Iterator

import pytest
import yaml

from quire_cluster.chart import CHART, Helm, Object, Renderer
from quire_cluster.installation import ROOT
from quire_operator import crd

DEFINITION = CHART / "files" / crd.FILE_NAME
VERBS = {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}

# The first run on a machine builds Helm, which takes two minutes.
pytestmark = pytest.mark.timeout(900)


# ---- the chart as a whole -----------------------------------------------------------------------


def test_lint_is_clean(helm: Helm) -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_definition_is_the_repos() -> None:
    source = ROOT / "crds" / crd.FILE_NAME
    assert DEFINITION.read_text() == source.read_text(), f"run: cp {source} {DEFINITION}"


# Kubernetes' own types, whose fields the schema leaves to the API server.
KUBERNETES = {"resources", "podSecurityContext", "securityContext"}
PARENTS_KEY = "enabled"  # a chart that has this one as a dependency sets it


def paths(values: Object, prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, dict) and key not in KUBERNETES:
            yield from paths(value, f"{prefix}{key}.")


def schema_paths(schema: Object, prefix: str = "") -> Iterator[str]:
    for key, part in schema.get("properties", {}).items():
        yield prefix + key
        if key not in KUBERNETES:
            yield from schema_paths(part, f"{prefix}{key}.")


def test_values_and_schema_have_the_same_keys() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(paths(values)) == set(schema_paths(schema)) - {PARENTS_KEY}


def test_no_value_is_without_effect() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    for path in paths(values):
        assert re.search(rf"\.{path.rpartition('.')[2]}\b", templates), path


# ---- rights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["a", "b"]}])
def test_rights_are_few_and_named(render: Renderer, values: Object) -> None:
    for role, rule in render(values).rules():
        where = role["metadata"]["name"]
        assert set(rule["verbs"]) <= VERBS, where
        assert not any("*" in entry for part in rule.values() for entry in part), where
        assert not {"secrets", "configmaps", "serviceaccounts"} & set(rule["resources"])
        assert "nodes" not in rule["resources"] or rule["verbs"] == ["list"]
        assert not any(resource.startswith("pods/") for resource in rule["resources"])
        assert "rbac.authorization.k8s.io" not in rule["apiGroups"]


def test_the_operator_never_changes_what_users_write(render: Renderer) -> None:
    """spec belongs to the user: the operator writes status and /scale, and creates no service."""
    rendered = render({"rbac": {"aggregateToUserRoles": False}})
    operator = rendered.one("ClusterRole")
    rights = {
        resource: set(rule["verbs"]) for rule in operator["rules"] for resource in rule["resources"]
    }
    assert rights["inferenceservices"] == {"get", "list", "watch"}
    assert rights["inferenceservices/status"] == rights["inferenceservices/scale"] == {"patch"}
    assert rights["pods"] == {"get", "list", "watch", "delete"}


def test_leases_are_held_for_fetches_and_never_deleted(render: Renderer) -> None:
    """A claim's writer has one; the operator's own is written in its own namespace."""
    rendered = render({"rbac": {"aggregateToUserRoles": False}})
    rules = {
        tuple(rule["resources"]): set(rule["verbs"])
        for rule in rendered.one("ClusterRole")["rules"]
    }
    assert rules[("leases",)] == {"get", "list", "watch", "create", "patch"}
    (role,) = rendered.of("Role")
    assert {tuple(rule["resources"]) for rule in role["rules"]} == {("leases",)}


def test_the_gateway_is_looked_for_where_it_is(render: Renderer) -> None:
    rendered = render({"gateway": {"serviceName": "gate"}, "watchNamespaces": ["a"]})
    own = next(r for r in rendered.of("Role") if r["metadata"]["namespace"] == "quire-system")
    rule = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list"]}
    assert rule in own["rules"]


def test_named_namespaces_get_a_role_each_and_nothing_beyond(render: Renderer) -> None:
    rendered = render({"watchNamespaces": ["a", "b"], "rbac": {"aggregateToUserRoles": False}})
    assert not rendered.of("ClusterRole") + rendered.of("ClusterRoleBinding")
    roles = {(r["metadata"]["namespace"], r["metadata"]["name"]) for r in rendered.of("Role")}
    name = "quire-system-quire"
    assert roles == {("a", name), ("b", name), ("quire-system", "quire-leader")}
    everywhere = [
        rule for rule in render().of("ClusterRole")[0]["rules"] if rule["resources"] != ["nodes"]
    ]
    assert all(
        r["rules"] == everywhere for r in rendered.of("Role") if r["metadata"]["name"] == name
    )


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["a"]}])
def test_every_binding_binds_a_role_of_ours_to_the_operator(
    render: Renderer, values: Object
) -> None:
    rendered = render({**values, "serviceAccount": {"name": "someone"}})
    roles = {
        (r["kind"], r["metadata"].get("namespace"), r["metadata"]["name"])
        for r in [*rendered.of("Role"), *rendered.of("ClusterRole")]
    }
    bindings = [*rendered.of("RoleBinding"), *rendered.of("ClusterRoleBinding")]
    assert bindings
    subject = {"kind": "ServiceAccount", "name": "someone", "namespace": "quire-system"}
    for binding in bindings:
        role = binding["roleRef"]
        assert (role["kind"], binding["metadata"].get("namespace"), role["name"]) in roles
        assert binding["subjects"] == [subject]
    assert rendered.pod["serviceAccountName"] == "someone"


def test_rights_and_accounts_can_be_somebody_elses(render: Renderer) -> None:
    rendered = render({"rbac": {"create": False}, "serviceAccount": {"create": False}})
    assert not [found for found in rendered.objects if "Role" in found["kind"]]
    assert not rendered.of("ServiceAccount")
    assert rendered.pod["serviceAccountName"] == "default"


# ---- the definition -----------------------------------------------------------------------------


def test_the_definition_arrives_unchanged_but_for_its_labels(render: Renderer) -> None:
    rendered = render().one("CustomResourceDefinition")
    source = yaml.safe_load(DEFINITION.read_text())
    assert rendered["spec"] == source["spec"]
    assert rendered["metadata"]["name"] == source["metadata"]["name"]
    assert rendered["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert rendered["metadata"]["labels"]["app.kubernetes.io/part-of"] == "quire"


def test_the_definition_can_go_with_the_release_or_be_left_out(render: Renderer) -> None:
    gone = render({"crds": {"keep": False}}).one("CustomResourceDefinition")
    assert "annotations" not in gone["metadata"]
    assert not render({"crds": {"install": False}}).of("CustomResourceDefinition")
