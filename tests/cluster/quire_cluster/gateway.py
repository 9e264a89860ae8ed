"""The small test server of `gateway_stub.py` on the cluster, where the gateway will stand."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quire_cluster import gateway_stub, installation, kube

NAME = "quire-gateway-stub"
NAMESPACE = installation.NAMESPACE
_LABELS = {"app.kubernetes.io/name": NAME}
_START_SECONDS = 60


@contextmanager
def installed(*more: str) -> Iterator[None]:
    """The stub runs and the operator knows it; both undone on the way out. `more`: values of the
    chart's to have meanwhile.

    The chart must be installed: the stub lies in its namespace.
    """
    objects = {"apiVersion": "v1", "kind": "List", "items": manifests()}
    kube.apply(objects)
    try:
        wait_pods(1)
        with installation.values(f"gateway.serviceName={NAME}", *more):
            yield
    finally:
        for item in objects["items"]:
            kind, name = item["kind"], item["metadata"]["name"]
            namespace = item["metadata"].get("namespace")
            kube.kubectl("delete", kind, name, "--ignore-not-found", namespace=namespace)


def scale(replicas: int) -> None:
    """Returns once so many pods of it are ready, and no other is there."""
    kube.kubectl("scale", "deployment", NAME, f"--replicas={replicas}", namespace=NAMESPACE)
    wait_pods(replicas)


def wait_pods(count: int) -> None:
    def as_wanted() -> bool:
        found = kube.items("pods", NAMESPACE, f"app.kubernetes.io/name={NAME}")
        return len(found) == count == sum(_is_ready(pod) for pod in found)

    kube.wait_until(as_wanted, _START_SECONDS, f"{count} pods of {NAME}")


def addresses() -> set[str]:
    """Of its ready pods."""
    found = kube.items("pods", NAMESPACE, f"app.kubernetes.io/name={NAME}")
    return {pod["status"]["podIP"] for pod in found if _is_ready(pod)}


def _is_ready(pod: kube.Json) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def manifests() -> list[kube.Json]:
    """The script, its rights, its pod and the Service by which the operator finds it."""
    return [
        _object("v1", "ConfigMap", data={"stub.py": Path(gateway_stub.__file__).read_text()}),
        _object("v1", "ServiceAccount"),
        _object("rbac.authorization.k8s.io/v1", "ClusterRole", rules=_rules(), namespaced=False),
        _object(
            "rbac.authorization.k8s.io/v1",
            "ClusterRoleBinding",
            namespaced=False,
            roleRef={
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": NAME,
            },
            subjects=[{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}],
        ),
        _object("v1", "Service", spec={"selector": _LABELS, "ports": [_service_port()]}),
        _object("apps/v1", "Deployment", spec=_deployment()),
    ]


def _object(api_version: str, kind: str, *, namespaced: bool = True, **fields: object) -> kube.Json:
    scope = {"namespace": NAMESPACE} if namespaced else {}
    metadata = {"name": NAME, "labels": _LABELS, **scope}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields}


def _service_port() -> kube.Json:
    return {"name": "ready", "port": 80, "targetPort": gateway_stub.READY_PORT}


def _rules() -> list[kube.Json]:
    """What operator/README.md says that a gateway needs; it lists where it need not watch."""
    return [
        {
            "apiGroups": ["serving.quire.dev"],
            "resources": ["inferenceservices"],
            "verbs": ["list"],
        },
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "verbs": ["create", "patch"],
        },
    ]


def _deployment() -> kube.Json:
    probe = {"httpGet": {"path": "/ready", "port": gateway_stub.READY_PORT}, "periodSeconds": 1}
    container = {
        "name": "stub",
        "image": os.environ[installation.IMAGE],
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "/stub/stub.py"],
        "readinessProbe": probe,
        "volumeMounts": [{"name": "stub", "mountPath": "/stub"}],
    }
    pod = {
        "serviceAccountName": NAME,
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{"name": "stub", "configMap": {"name": NAME}}],
    }
    return {
        "replicas": 1,
        "selector": {"matchLabels": _LABELS},
        "template": {"metadata": {"labels": _LABELS}, "spec": pod},
    }
