"""The kinds of objects that we read and write, and what a manifest is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from quire_operator import api

Manifest: TypeAlias = dict[str, Any]
"""A Kubernetes object as JSON. Built in `children.py` and `pods.py`, sent by `apply.py`, read in
`projections.py`; nothing else looks inside."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One resource of the API server."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, subresource: str = "") -> str:
        """The URL path; without namespace, that of the cluster-wide list."""
        root = "/api/v1" if self.api_version == "v1" else f"/apis/{self.api_version}"
        parts = [root]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/".join(parts)


SERVICE_KIND = Kind(api.API_VERSION, api.KIND, api.PLURAL)
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
SERVICE = Kind("v1", "Service", "services")
BUDGET = Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
CLAIM = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
JOB = Kind("batch/v1", "Job", "jobs")
POD = Kind("v1", "Pod", "pods")
EVENT = Kind("v1", "Event", "events")
LEASE = Kind("coordination.k8s.io/v1", "Lease", "leases")
SLICE = Kind("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
HPA = Kind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
SCALED_OBJECT = Kind("keda.sh/v1alpha1", "ScaledObject", "scaledobjects")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
NODE = Kind("v1", "Node", "nodes")

CHILDREN = (DEPLOYMENT, SERVICE, BUDGET, CLAIM, JOB, POD, SLICE, LEASE, HPA)
"""Watched by our label. Leases are the activations that others write, not the leader's own."""

POLLED = (SCALED_OBJECT,)
"""Ours too, of a kind that the API server may not know: listed now and then (`scaled_objects.py`),
as a watch of what is not there ends kopf."""

BY_NAME = {kind.kind: kind for kind in (SERVICE_KIND, *CHILDREN, *POLLED, EVENT, CONFIG_MAP, NODE)}


def kind_of(manifest: Manifest) -> Kind:
    return BY_NAME[manifest["kind"]]
