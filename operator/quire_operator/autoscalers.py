"""The autoscalers that others run for us: the HPA of mode hpa, the ScaledObject of mode keda. Pure.

Both write spec.replicas of the InferenceService through its /scale, never a Deployment. Facts about
KEDA are of v2.21 and named where they matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from quire_operator import api, children, names, prometheus_queries
from quire_operator.api import Scaling, Spec
from quire_operator.kinds import HPA, SCALED_OBJECT, Kind, Manifest
from quire_operator.names import Key
from quire_operator.served_metrics import Target, quantity, targets
from quire_operator.views import AutoscalerView

SERVICE_LABEL = "service"
"""Label of the external metrics that an HPA selects by: the InferenceService's name."""
STEP_SECONDS = 15
"""Period of the up policies: an HPA looks each 15 s, and a step is one look."""
STEP_DOWN_SECONDS = 60
POLL_SECONDS = 15
"""KEDA's pollingInterval. It only decides about zero; from zero the operator pushes."""
FAILURES = 3
"""Queries that fail in a row before KEDA's fallback."""
NEVER_ACTIVE = "1000000000"
"""activationThreshold of triggers whose number is not to keep a service from sleeping."""
PAUSED = "autoscaling.keda.sh/paused"
ACTIVATION = "quire_activation"
"""Metric of the trigger that only wakes and lets sleep; 1 while active, so that it wants 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the autoscaler may do now."""

    min_replicas: int
    may_shrink: bool = True
    """False while nobody can say what the minimum is (a schedule that does not parse)."""
    paused: bool = False
    """replicas is 0 by the user's wish. An HPA stops by itself at 0, KEDA would lift it."""


def wanted_kind(spec: Spec) -> Kind | None:
    """The kind of autoscaler that the mode asks for."""
    return {"hpa": HPA, "keda": SCALED_OBJECT}.get(spec.scaling.mode)


def others(key: Key, spec: Spec, found: Iterable[AutoscalerView]) -> list[AutoscalerView]:
    """The autoscalers of a service that its mode does not want: nobody else writes its replicas
    before they are gone, those on their way out included."""
    return [view for view in found if not _is_wanted(key, spec, view)]


def _is_wanted(key: Key, spec: Spec, view: AutoscalerView) -> bool:
    wanted = wanted_kind(spec)
    if view.kind == HPA.kind and view.meta.name == keda_hpa(key.name):
        return wanted is SCALED_OBJECT
    return wanted is not None and (view.kind, view.meta.name) == (wanted.kind, key.name)


def keda_hpa(name: str) -> str:
    """The HPA that KEDA makes for a ScaledObject of this name."""
    return f"keda-hpa-{name}"


def needs_scaler(scaling: Scaling) -> bool:
    """Whether KEDA has to ask the operator: for metrics without a Prometheus, and about zero."""
    return scaling.keda.prometheus_server is None or scaling.idle_seconds_to_zero is not None


def hpa(key: Key, uid: str, spec: Spec, limits: Limits) -> Manifest:
    """The HorizontalPodAutoscaler of mode hpa, over `external.metrics.k8s.io`."""
    manifest = _head(HPA, key, uid)
    manifest["spec"] = {
        "scaleTargetRef": _target_ref(key),
        "minReplicas": limits.min_replicas,
        "maxReplicas": spec.scaling.max_replicas,
        "metrics": [_external(key, target) for target in targets(spec)],
        "behavior": behavior(spec.scaling, limits),
    }
    return children.with_digest(manifest)


def scaled_object(key: Key, uid: str, spec: Spec, limits: Limits, scaler: str | None) -> Manifest:
    """The ScaledObject of mode keda. `scaler`: host:port of the operator's external scaler.

    Idle is told by the operator, which counts the seconds: KEDA looks each 15 s and would count
    from what it happened to see. So its own cooldown is 0, and the two do not add up. With
    idleReplicaCount the HPA keeps the service's minimum and only KEDA itself goes to 0.
    """
    scaling = spec.scaling
    sleeps = scaling.idle_seconds_to_zero is not None and limits.may_shrink
    manifest = _head(SCALED_OBJECT, key, uid)
    if limits.paused:
        manifest["metadata"]["annotations"] = {PAUSED: "true"}
    manifest["spec"] = {
        "scaleTargetRef": _target_ref(key),
        "pollingInterval": POLL_SECONDS,
        "minReplicaCount": limits.min_replicas,
        "maxReplicaCount": scaling.max_replicas,
        "fallback": {
            "failureThreshold": FAILURES,
            "replicas": limits.min_replicas,
            "behavior": "currentReplicasIfHigher",
        },
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior(scaling, limits)}},
        "triggers": _triggers(key, spec, scaler, sleeps=sleeps),
    }
    if sleeps:
        manifest["spec"] |= {"idleReplicaCount": 0, "cooldownPeriod": 0, "initialCooldownPeriod": 0}
    return children.with_digest(manifest)


def behavior(scaling: Scaling, limits: Limits) -> Manifest:
    """At most doubling a step, at most maxStep; down one (or maxStep) a minute after the window."""
    up = [{"type": "Percent", "value": 100, "periodSeconds": STEP_SECONDS}]
    if scaling.scale_up.max_step is not None:
        step = scaling.scale_up.max_step
        up.append({"type": "Pods", "value": step, "periodSeconds": STEP_SECONDS})
    step = scaling.scale_down.max_step or 1
    down = [{"type": "Pods", "value": step, "periodSeconds": STEP_DOWN_SECONDS}]
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": scaling.up_seconds,
            "selectPolicy": "Min",
            "policies": up,
        },
        "scaleDown": {
            "stabilizationWindowSeconds": scaling.down_seconds,
            "selectPolicy": "Min" if limits.may_shrink else "Disabled",
            "policies": down,
        },
    }


def _head(kind: Kind, key: Key, uid: str) -> Manifest:
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {
            "name": key.name,
            "namespace": key.namespace,
            "labels": names.labels(key.name),
            "ownerReferences": [children.owner(key, uid)],
        },
    }


def _target_ref(key: Key) -> Manifest:
    return {"apiVersion": api.API_VERSION, "kind": api.KIND, "name": key.name}


def _external(key: Key, target: Target) -> Manifest:
    field = "averageValue" if target.type == "AverageValue" else "value"
    selector = {"matchLabels": {SERVICE_LABEL: key.name}}
    return {
        "type": "External",
        "external": {
            "metric": {"name": target.metric, "selector": selector},
            "target": {"type": target.type, field: quantity(target.value)},
        },
    }


def _triggers(key: Key, spec: Spec, scaler: str | None, *, sleeps: bool) -> list[Manifest]:
    server = spec.scaling.keda.prometheus_server
    if server is None:
        return _pushed(scaler, targets(spec))
    found = [_queried(key, server, target, sleeps=sleeps) for target in targets(spec)]
    if sleeps:
        found.append(_push(scaler, "AverageValue", {ACTIVATION: "1"}))
    return found


def _pushed(scaler: str | None, wanted: tuple[Target, ...]) -> list[Manifest]:
    """Two triggers, as a trigger has one metricType. Their targets travel in the metadata: a change
    is a new generation of the ScaledObject, on which KEDA asks for the specs again."""
    found = []
    for kind in ("AverageValue", "Value"):
        metrics = {t.metric: _figure(t.value) for t in wanted if t.type == kind}
        if metrics:
            found.append(_push(scaler, kind, metrics))
    return found


def _push(scaler: str | None, kind: str, metrics: dict[str, str]) -> Manifest:
    return {
        "type": "external-push",
        "metricType": kind,
        "metadata": {"scalerAddress": scaler or "", **metrics},
    }


def _queried(key: Key, server: str, target: Target, *, sleeps: bool) -> Manifest:
    """ignoreNullValues false: no value is a failure and holds; KEDA's default takes it for 0."""
    metadata = {
        "serverAddress": server.rstrip("/"),
        "query": prometheus_queries.query(key, target.metric),
        "threshold": _figure(target.value),
        "ignoreNullValues": "false",
    }
    if sleeps:
        metadata["activationThreshold"] = NEVER_ACTIVE
    return {"type": "prometheus", "metricType": target.type, "metadata": metadata}


def _figure(number: float) -> str:
    """Of a target: `api.Targets` bounds them to six digits."""
    return f"{number:.6g}"
