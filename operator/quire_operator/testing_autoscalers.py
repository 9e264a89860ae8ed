"""The HPA controller and KEDA, as far as they concern us, over `testing.FakeCluster`."""

from __future__ import annotations

from quire_operator.autoscalers import PAUSED, keda_hpa
from quire_operator.kinds import HPA, SCALED_OBJECT, SERVICE_KIND, Kind, Manifest
from quire_operator.names import Key
from quire_operator.testing import FakeCluster

FINALIZER = "finalizer.keda.sh"


def writers(cluster: FakeCluster, key: Key) -> set[str]:
    """Who could write a service's replicas now: HPAs that lead to it, and KEDA itself."""
    found = set()
    for kind in (HPA, SCALED_OBJECT):
        for body in cluster.all(kind):
            target = body["spec"]["scaleTargetRef"]
            if target["kind"] == SERVICE_KIND.kind and target["name"] == key.name:
                owner = "KEDA" if is_kedas(body) else body["kind"]
                found.add(f"{owner}/{key.name}")
    return found


def is_kedas(body: Manifest) -> bool:
    """A ScaledObject, or an HPA that KEDA made for one."""
    owners = body["metadata"].get("ownerReferences") or ()
    return body["kind"] == SCALED_OBJECT.kind or any(
        owner["kind"] == SCALED_OBJECT.kind for owner in owners
    )


def run_hpas(cluster: FakeCluster) -> None:
    """The HPA controller: all is well, unless replicas is 0."""
    for body in cluster.all(HPA):
        target = Key(body["metadata"]["namespace"], body["spec"]["scaleTargetRef"]["name"])
        service = next(
            (s for s in cluster.all(SERVICE_KIND) if s["metadata"]["name"] == target.name), None
        )
        if service is None:
            continue
        replicas = service["spec"]["replicas"]
        active = {"type": "ScalingActive", "status": "True", "reason": "ValidMetricFound"}
        if replicas == 0:
            active |= {"status": "False", "reason": "ScalingDisabled"}
        set_conditions(cluster, HPA, body["metadata"]["name"], active, desired=replicas)


def run_keda(cluster: FakeCluster, *, ready: bool = True) -> None:
    """KEDA's operator: its finalizer, its HPA, its conditions; it lets go what is deleted."""
    for body in cluster.all(SCALED_OBJECT):
        metadata = body["metadata"]
        at = Key(metadata["namespace"], metadata["name"])
        if metadata.get("deletionTimestamp"):
            cluster.remove(SCALED_OBJECT, at)
            continue
        metadata["finalizers"] = [FINALIZER]
        cluster.put(body, "keda")
        if metadata.get("annotations", {}).get(PAUSED) == "true":
            cluster.remove(HPA, Key(at.namespace, keda_hpa(at.name)))
        else:
            cluster.put(_hpa_of(body), "keda")
        set_conditions(
            cluster,
            SCALED_OBJECT,
            at.name,
            {"type": "Ready", "status": str(ready), "reason": "ScaledObjectReady", "message": "m"},
        )


def _hpa_of(body: Manifest) -> Manifest:
    metadata = body["metadata"]
    owner = {"kind": SCALED_OBJECT.kind, "name": metadata["name"], "uid": metadata["uid"]}
    head = {
        "namespace": metadata["namespace"],
        "name": keda_hpa(metadata["name"]),
        "labels": metadata["labels"],  # KEDA copies them
        "ownerReferences": [owner],
    }
    spec = {"scaleTargetRef": body["spec"]["scaleTargetRef"]}
    return {"apiVersion": HPA.api_version, "kind": HPA.kind, "metadata": head, "spec": spec}


def set_conditions(
    cluster: FakeCluster, kind: Kind, name: str, *conditions: Manifest, desired: int | None = None
) -> None:
    """What a controller says of an object of namespace default."""
    status: Manifest = {"conditions": list(conditions)}
    if desired is not None:
        status["desiredReplicas"] = desired
    cluster.set_status(kind, Key("default", name), status)
