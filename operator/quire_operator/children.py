"""The objects around the pods: Deployment, Service and its way to the gateway, disruption budget,
claim, fetch Job. Pure."""

from __future__ import annotations

import msgspec

from quire_operator import api, names, pods, values
from quire_operator.api import Spec
from quire_operator.fetch_environment import Network
from quire_operator.kinds import (
    BUDGET,
    CLAIM,
    DEPLOYMENT,
    JOB,
    LEASE,
    SERVICE,
    SLICE,
    Kind,
    Manifest,
)
from quire_operator.memory_plan import Request
from quire_operator.names import Key
from quire_operator.values import micro_timestamp
from quire_operator.views import ChildView, Gateway
from quire_operator.writer import Hold


def owner(key: Key, uid: str, *, controller: bool = True) -> Manifest:
    """The reference by which garbage collection removes a child with its service."""
    reference = {"apiVersion": api.API_VERSION, "kind": api.KIND, "name": key.name, "uid": uid}
    return reference | ({"controller": True} if controller else {})


def _head(kind: Kind, namespace: str, name: str) -> Manifest:
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {"name": name, "namespace": namespace},
    }


def _child(kind: Kind, key: Key, uid: str, name: str) -> Manifest:
    manifest = _head(kind, key.namespace, name)
    manifest["metadata"] |= {"labels": names.labels(key.name), "ownerReferences": [owner(key, uid)]}
    return manifest


def with_digest(manifest: Manifest) -> Manifest:
    """The manifest with the hash of itself as annotation."""
    text = msgspec.json.encode(manifest, order="sorted").decode()
    metadata = manifest["metadata"]
    annotations = metadata.get("annotations", {}) | {
        names.ANNOTATION_DIGEST: names.digest(text, 16)
    }
    return manifest | {"metadata": metadata | {"annotations": annotations}}


def holds(live: ChildView, manifest: Manifest) -> bool:
    """Whether a live child is what the manifest asks for: applied from it, and unchanged since."""
    applied = live.meta.annotations.get(names.ANNOTATION_DIGEST)
    wanted = manifest["metadata"]["annotations"][names.ANNOTATION_DIGEST]
    return applied == wanted and values.holds(msgspec.json.decode(live.body), manifest)


def service(key: Key, uid: str) -> Manifest:
    """One stable address over all revisions; only ready pods are its endpoints."""
    manifest = _child(SERVICE, key, uid, key.name)
    port = {
        "name": names.PORT_NAME,
        "port": names.SERVICE_PORT,
        "protocol": "TCP",
        "targetPort": names.ENGINE_PORT,
    }
    manifest["spec"] = {"selector": names.selector_labels(key.name), "ports": [port]}
    return with_digest(manifest)


def gateway_slice(key: Key, uid: str, port: int, gateway: Gateway) -> Manifest:
    """Endpoints of the service's own address that lead to the gateway. kube-proxy merges all slices
    that bear the Service's name, by the name of the port."""
    manifest = _child(SLICE, key, uid, names.gateway_slice(key.name))
    manifest["metadata"]["labels"] |= {
        names.SLICE_SERVICE: key.name,
        names.SLICE_MANAGED_BY: names.SLICE_MANAGER,
    }
    manifest["addressType"] = gateway.family
    manifest["ports"] = [{"name": names.PORT_NAME, "port": port, "protocol": "TCP"}]
    manifest["endpoints"] = [
        {"addresses": [address], "conditions": {"ready": True}} for address in gateway.addresses
    ]
    return with_digest(manifest)


def budget(key: Key, uid: str) -> Manifest:
    """At most one pod leaves at a time; AlwaysAllow: a pod that is not ready blocks no drain."""
    manifest = _child(BUDGET, key, uid, key.name)
    manifest["spec"] = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": names.selector_labels(key.name)},
    }
    return with_digest(manifest)


def deployment(
    key: Key,
    uid: str,
    spec: Spec,
    revision: str,
    image: str,
    network: Network,
    commit: str | None = None,
    *,
    plan_key: str,
) -> Manifest:
    """The Deployment of one revision, created once. Raises OverlayError."""
    manifest = _child(DEPLOYMENT, key, uid, names.deployment(key.name, revision))
    manifest["metadata"]["labels"][names.LABEL_REVISION] = revision
    manifest["metadata"]["annotations"] = {
        names.ANNOTATION_SPEC: pods.spec_digest(spec),
        names.ANNOTATION_PLAN: plan_key,
    }
    selector = {**names.selector_labels(key.name), names.LABEL_REVISION: revision}
    manifest["spec"] = {
        "replicas": spec.replicas,
        "revisionHistoryLimit": 0,
        # Told in status by our own deadline; Kubernetes' only sets a condition that nobody reads.
        "selector": {"matchLabels": selector},
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
        },
        "template": pods.engine_template(key, spec, revision, image, network, commit),
    }
    return manifest


def claim(key: Key, uid: str, spec: Spec, size: str) -> Manifest:
    """The shared claim with its first owner; the others join under managers of their own."""
    model = spec.model
    manifest = _head(CLAIM, key.namespace, names.shared_claim(model.uri, model.revision))
    manifest["metadata"] |= {
        "labels": {names.MANAGED_BY: names.MANAGED_BY_VALUE, names.COMPONENT: "cache"},
        "annotations": {names.ANNOTATION_URI: f"{model.uri}@{model.revision or ''}".rstrip("@")},
        "ownerReferences": [owner(key, uid, controller=False)],
    }
    manifest["spec"] = {
        "accessModes": [spec.cache.access_mode],
        "resources": {"requests": {"storage": size}},
    }
    if spec.cache.storage_class_name is not None:
        manifest["spec"]["storageClassName"] = spec.cache.storage_class_name
    return manifest


def claim_owner(key: Key, uid: str, claim_name: str, claim_uid: str) -> Manifest:
    """What one more service applies to a claim that it shares; the uid prevents a creation."""
    manifest = _head(CLAIM, key.namespace, claim_name)
    manifest["metadata"] |= {
        "uid": claim_uid,
        "ownerReferences": [owner(key, uid, controller=False)],
    }
    return manifest


def writer_lease(namespace: str, hold: Hold) -> Manifest:
    """The Lease of the one fetch that may write a claim, as it is after taking or renewing it."""
    before, claim = hold.lease, hold.claim.meta
    same = before is not None and before.holder == hold.holder
    manifest = _head(LEASE, namespace, names.writer_lease(claim.name))
    manifest["metadata"] |= {
        "labels": {names.MANAGED_BY: names.MANAGED_BY_VALUE, names.COMPONENT: "writer"},
        "ownerReferences": [
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": claim.name}
            | {"uid": claim.uid}
        ],
    }
    now = micro_timestamp(hold.now)
    manifest["spec"] = {
        "holderIdentity": hold.holder,
        "leaseDurationSeconds": hold.duration_seconds,
        "renewTime": now,
        "leaseTransitions": (before.transitions if before else 0) + (0 if same else 1),
    } | ({} if same else {"acquireTime": now})
    return manifest


def fetch_job(
    key: Key,
    uid: str,
    spec: Spec,
    attempt: int,
    image: str,
    network: Network,
    *,
    asked: str,
    repair: bool,
    keep: bool,
    commit: str | None,
) -> Manifest:
    """One numbered attempt. It never retries by itself: we count attempts and their reasons."""
    mount = pods.mount_of(spec)
    stem = names.fetch_stem(mount.claim or "", pods.content_of(spec))
    manifest = _child(JOB, key, uid, names.fetch_job(stem, attempt))
    labels = {names.LABEL_CLAIM: stem, names.COMPONENT: names.FETCH_CONTAINER}
    manifest["metadata"]["labels"] |= labels
    manifest["metadata"]["annotations"] = {
        names.ANNOTATION_ATTEMPT: str(attempt),
        names.ANNOTATION_ASKED: asked,
    }
    manifest["spec"] = {
        "backoffLimit": 0,
        "template": pods.fetch_template(
            key, spec, stem, image, network, repair=repair, keep=keep, commit=commit
        ),
    }
    return manifest


def plan_job(
    key: Key,
    uid: str,
    spec: Spec,
    attempt: int,
    image: str,
    network: Network,
    *,
    request: Request,
    asked: str,
    mounted: bool,
) -> Manifest:
    """One numbered attempt to have the memory plan made."""
    manifest = _child(JOB, key, uid, names.plan_job(key.name, request.key, attempt))
    manifest["metadata"]["labels"][names.COMPONENT] = names.PLAN_CONTAINER
    manifest["metadata"]["annotations"] = {
        names.ANNOTATION_ATTEMPT: str(attempt),
        names.ANNOTATION_ASKED: asked,
        names.ANNOTATION_PLAN: request.key,
    }
    memory = request.memory.num_bytes
    manifest["spec"] = {
        "backoffLimit": 0,
        "template": pods.plan_template(key, spec, image, network, memory, mounted=mounted),
    }
    return manifest


def replicas(key: Key, name: str, uid: str, count: int) -> Manifest:
    """What the field manager of replicas applies to a Deployment."""
    manifest = _head(DEPLOYMENT, key.namespace, name)
    manifest["metadata"]["uid"] = uid
    manifest["spec"] = {"replicas": count}
    return manifest
