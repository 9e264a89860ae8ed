"""What the cluster and a gateway write beside our objects, for `testing.FakeCluster`."""

from __future__ import annotations

from datetime import UTC, datetime

from quire_operator import names
from quire_operator.kinds import EVENT, LEASE, SLICE, Manifest
from quire_operator.names import Key
from quire_operator.values import timestamp


def selector_slice(service: Manifest, pods: list[Manifest]) -> Manifest:
    """A Service's EndpointSlice as the cluster's controller makes it, with the Service's labels."""
    metadata, spec = service["metadata"], service["spec"]
    head = {
        "namespace": metadata["namespace"],
        "name": f"{metadata['name']}-x7k2p",
        "labels": {
            **(metadata.get("labels") or {}),
            names.SLICE_SERVICE: metadata["name"],
            names.SLICE_MANAGED_BY: "endpointslice-controller.k8s.io",
        },
        "ownerReferences": [
            {"kind": "Service", "name": metadata["name"], "uid": metadata["uid"]},
        ],
    }
    return {
        "apiVersion": SLICE.api_version,
        "kind": SLICE.kind,
        "metadata": head,
        "addressType": "IPv4",
        "ports": [{"name": port["name"], "port": port["targetPort"]} for port in spec["ports"]],
        "endpoints": [_endpoint(pod) for pod in pods if _is_selected(pod, service)],
    }


def _is_selected(pod: Manifest, service: Manifest) -> bool:
    labels: dict[str, str] = pod["metadata"].get("labels") or {}
    wanted: dict[str, str] = service["spec"]["selector"]
    same = bool(pod["metadata"]["namespace"] == service["metadata"]["namespace"])
    return same and wanted.items() <= labels.items()


def _endpoint(pod: Manifest) -> Manifest:
    status = pod["status"]
    conditions = status.get("conditions") or []
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return {"addresses": [status.get("podIP", "")], "conditions": {"ready": ready}}


def activation_lease(key: Key, seconds: int, renewed: float) -> Manifest:
    """The Lease that a gateway writes while it holds requests. `renewed`: epoch seconds."""
    return {
        "apiVersion": LEASE.api_version,
        "kind": LEASE.kind,
        "metadata": {
            "namespace": key.namespace,
            "name": names.activation(key.name),
            "labels": names.labels(key.name),
        },
        "spec": {
            "holderIdentity": "gateway-0",
            "leaseDurationSeconds": seconds,
            "renewTime": datetime.fromtimestamp(renewed, UTC).isoformat(),
        },
    }


def event_on(
    body: Manifest, reason: str, message: str, at: float, *, kind: str = "Warning"
) -> Manifest:
    """An Event on an object, as the kubelet or a controller writes it. `at`: epoch seconds."""
    metadata = body["metadata"]
    name = f"{metadata['name']}.{reason.lower()}.{at:.0f}"
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"namespace": metadata["namespace"], "name": name},
        "involvedObject": {
            "kind": body["kind"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
        "type": kind,
        "reason": reason,
        "message": message,
        "lastTimestamp": timestamp(at),
    }
