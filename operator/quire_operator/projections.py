"""Turns an object's JSON, as the API server sends it, into one of the dataclasses of `views.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from quire_operator import api, names
from quire_operator.kinds import (
    BUDGET,
    CLAIM,
    DEPLOYMENT,
    HPA,
    JOB,
    LEASE,
    POD,
    SCALED_OBJECT,
    SERVICE,
    SERVICE_KIND,
    SLICE,
    Kind,
    Manifest,
)
from quire_operator.views import (
    AutoscalerView,
    ChildView,
    ClaimView,
    ConditionView,
    ContainerView,
    DeploymentView,
    EndpointsView,
    Exit,
    Gateway,
    JobView,
    LeaseView,
    Meta,
    PodView,
    ServiceView,
    View,
)


def epoch(text: str | None) -> float | None:
    """Seconds since 1970 of an RFC 3339 time."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else None


def _meta(body: Manifest) -> Meta:
    meta = body["metadata"]
    annotations = meta.get("annotations") or {}
    return Meta(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        resource_version=meta.get("resourceVersion", ""),
        created=epoch(meta.get("creationTimestamp")) or 0.0,
        deleting=bool(meta.get("deletionTimestamp")),
        owners=tuple(owner["uid"] for owner in meta.get("ownerReferences") or ()),
        service=_labels(body).get(names.LABEL_SERVICE),
        annotations={k: v for k, v in annotations.items() if k.startswith(f"{api.GROUP}/")},
    )


def _labels(body: Manifest) -> Mapping[str, str]:
    return body["metadata"].get("labels") or {}


def _body(body: Manifest) -> bytes:
    kept = {k: v for k, v in body.items() if k != "status"}
    kept["metadata"] = {k: v for k, v in body["metadata"].items() if k != "managedFields"}
    return msgspec.json.encode(kept)


def _service(body: Manifest) -> ServiceView:
    spec, error = None, None
    try:
        spec = api.decode_spec(body.get("spec") or {})
    except msgspec.ValidationError as e:
        error = str(e)
    return ServiceView(
        meta=_meta(body),
        generation=body["metadata"].get("generation", 0),
        spec=spec,
        error=error,
        status=api.decode_status(body.get("status") or {}),
        replicas_writer=_writer(body, "replicas"),
    )


def _writer(body: Manifest, field: str) -> str | None:
    """The manager of a field of spec, by managedFields; of several the one that wrote last."""
    entries = [
        (str(entry.get("time") or ""), str(entry.get("manager") or ""))
        for entry in body["metadata"].get("managedFields") or ()
        if f"f:{field}" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    ]
    return max(entries)[1] if entries else None


def _child(body: Manifest) -> ChildView:
    return ChildView(meta=_meta(body), body=_body(body))


def _autoscaler(body: Manifest) -> AutoscalerView:
    status = body.get("status") or {}
    told = [
        ConditionView(
            type=str(condition.get("type", "")),
            status=str(condition.get("status", "Unknown")),
            reason=str(condition.get("reason", "")),
            message=str(condition.get("message", "")),
        )
        for condition in status.get("conditions") or ()
    ]
    return AutoscalerView(
        meta=_meta(body),
        body=_body(body),
        kind=body["kind"],
        conditions=tuple(told),
        desired=status.get("desiredReplicas"),
        deleted=epoch(body["metadata"].get("deletionTimestamp")),
    )


def _claim(body: Manifest) -> ClaimView:
    spec, status = body.get("spec") or {}, body.get("status") or {}
    requests = (spec.get("resources") or {}).get("requests") or {}
    return ClaimView(
        meta=_meta(body),
        managed=_labels(body).get(names.MANAGED_BY) == names.MANAGED_BY_VALUE,
        phase=status.get("phase", "Pending"),
        size=str(requests.get("storage", "")),
        capacity=str((status.get("capacity") or {}).get("storage", "")),
        storage_class=str(spec.get("storageClassName") or ""),
    )


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    found = [c for c in status.get("conditions") or () if c.get("type") == kind]
    return found[0] if found else {}


def _deployment(body: Manifest) -> DeploymentView:
    spec, status = body.get("spec") or {}, body.get("status") or {}
    failure = _condition(status, "ReplicaFailure")
    containers = spec["template"]["spec"]["containers"]
    images = [c.get("image", "") for c in containers if c["name"] == names.ENGINE_CONTAINER]
    current = status.get("observedGeneration", 0) >= body["metadata"].get("generation", 0)
    return DeploymentView(
        meta=_meta(body),
        revision=_labels(body).get(names.LABEL_REVISION, ""),
        replicas=spec.get("replicas", 1),
        ready=status.get("readyReplicas", 0) if current else 0,
        image=images[0] if images else "",
        failure=failure.get("message") if failure.get("status") == "True" else None,
        unavailable_since=_since(status, "Available", "False"),
    )


def _since(status: Mapping[str, Any], kind: str, value: str) -> float | None:
    """Since when a condition has had this value, if it has."""
    found = _condition(status, kind)
    return epoch(found.get("lastTransitionTime")) if found.get("status") == value else None


def _job(body: Manifest) -> JobView:
    status = body.get("status") or {}
    failed = _failed(status)
    complete = _condition(status, "Complete")
    meta = _meta(body)
    attempt = meta.annotations.get(names.ANNOTATION_ATTEMPT, "0")
    ended = complete.get("lastTransitionTime") or failed.get("lastTransitionTime")
    return JobView(
        meta=meta,
        claim=_labels(body).get(names.LABEL_CLAIM, ""),
        attempt=int(attempt) if attempt.isdecimal() else 0,
        asked=meta.annotations.get(names.ANNOTATION_ASKED, ""),
        succeeded=complete.get("status") == "True",
        failed=failed.get("status") == "True",
        finished=epoch(ended),
        failure=failed.get("message"),
        plan=meta.annotations.get(names.ANNOTATION_PLAN),
    )


def _failed(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """Since 1.31 a Job that has failed says Failed only when its pods have ended, which on a lost
    node is never; FailureTarget says the same at once."""
    failed = _condition(status, "Failed")
    return failed or _condition(status, "FailureTarget")


def _exit(state: Mapping[str, Any]) -> Exit | None:
    ended = state.get("terminated")
    if not ended:
        return None
    return Exit(
        code=ended.get("exitCode", 0),
        reason=ended.get("reason", ""),
        message=ended.get("message", ""),
        finished=epoch(ended.get("finishedAt")) or 0.0,
    )


def _container(spec: Mapping[str, Any], statuses: list[Mapping[str, Any]]) -> ContainerView:
    found = [s for s in statuses if s["name"] == spec["name"]]
    status: Mapping[str, Any] = found[0] if found else {}
    state = status.get("state") or {}
    waiting = state.get("waiting") or {}
    limit = ((spec.get("resources") or {}).get("limits") or {}).get("memory")
    return ContainerView(
        name=spec["name"],
        waiting=waiting.get("reason"),
        waiting_message=waiting.get("message", ""),
        running="running" in state,
        exited=_exit(state),
        last_exit=_exit(status.get("lastState") or {}),
        restarts=status.get("restartCount", 0),
        memory_limit=str(limit) if limit is not None else None,
        started=bool(status.get("started")),
    )


def _named(
    spec: Mapping[str, Any], status: Mapping[str, Any], wanted: str, *, init: bool
) -> ContainerView | None:
    field = ("initContainers", "initContainerStatuses")
    key, status_key = field if init else ("containers", "containerStatuses")
    for container in spec.get(key) or ():
        if container["name"] == wanted:
            return _container(container, status.get(status_key) or [])
    return None


def _others(spec: Mapping[str, Any], status: Mapping[str, Any]) -> tuple[ContainerView, ...]:
    """Containers that are none of ours."""
    ours = (names.FETCH_CONTAINER, names.PLAN_CONTAINER, names.ENGINE_CONTAINER)
    kinds = (("initContainers", "initContainerStatuses"), ("containers", "containerStatuses"))
    return tuple(
        _container(container, status.get(statuses) or [])
        for key, statuses in kinds
        for container in spec.get(key) or ()
        if container["name"] not in ours
    )


def _ended_at(status: Mapping[str, Any]) -> float | None:
    """When a pod was put out (condition DisruptionTarget), or its last container ended; one that
    the kubelet did not take has only its start."""
    put_out = _condition(status, "DisruptionTarget").get("lastTransitionTime")
    if put_out:
        return epoch(put_out)
    ends = [_exit(s.get("state") or {}) for s in status.get("containerStatuses") or ()]
    finished = [end.finished for end in ends if end is not None]
    return max(finished, default=epoch(status.get("startTime")))


def _pod(body: Manifest) -> PodView:
    spec, status = body.get("spec") or {}, body.get("status") or {}
    labels = _labels(body)
    scheduled, ready = _condition(status, "PodScheduled"), _condition(status, "Ready")
    stuck = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    job = labels.get("batch.kubernetes.io/job-name")
    # A Job's component is its container's name.
    of_job = labels.get(names.COMPONENT, names.FETCH_CONTAINER)
    main = of_job if job else names.ENGINE_CONTAINER
    is_ready = ready.get("status") == "True"
    return PodView(
        meta=_meta(body),
        revision=labels.get(names.LABEL_REVISION),
        job=job,
        claim=labels.get(names.LABEL_CLAIM),
        ip=status.get("podIP"),
        phase=status.get("phase", "Pending"),
        phase_reason=status.get("reason", ""),
        phase_message=status.get("message", ""),
        unschedulable=scheduled.get("message", "") if stuck else None,
        node=spec.get("nodeName") or None,
        ready=is_ready,
        ready_since=epoch(ready.get("lastTransitionTime")) if is_ready else None,
        started=epoch(status.get("startTime")),
        init=_named(spec, status, names.FETCH_CONTAINER, init=True),
        main=_named(spec, status, main, init=False),
        others=_others(spec, status),
        ended_at=_ended_at(status),
    )


def _slice(body: Manifest) -> ChildView | EndpointsView:
    if _labels(body).get(names.SLICE_MANAGED_BY) == names.SLICE_MANAGER:
        return _child(body)
    return EndpointsView(
        meta=_meta(body),
        address=_labels(body).get(names.SLICE_SERVICE, ""),
        ready=bool(_ready_addresses(body)),
    )


def _ready_addresses(body: Manifest) -> list[str]:
    """Of an EndpointSlice. An endpoint that does not say whether it is ready counts as ready."""
    return [
        endpoint["addresses"][0]
        for endpoint in body.get("endpoints") or ()
        if (endpoint.get("conditions") or {}).get("ready") is not False
    ]


def gateway_of(slices: list[Manifest]) -> Gateway:
    """What a Service's EndpointSlices say of the pods behind it; of two families IPv4."""
    for family in ("IPv4", "IPv6"):
        of_family = [body for body in slices if body.get("addressType") == family]
        found = {address for body in of_family for address in _ready_addresses(body)}
        if found:
            return Gateway(tuple(sorted(found)), family)
    return Gateway()


def _lease(body: Manifest) -> LeaseView:
    spec = body.get("spec") or {}
    return LeaseView(
        meta=_meta(body),
        holder=spec.get("holderIdentity") or "",
        renewed=epoch(spec.get("renewTime")),
        duration_seconds=float(spec.get("leaseDurationSeconds") or 0),
        acquired=epoch(spec.get("acquireTime")),
        transitions=int(spec.get("leaseTransitions") or 0),
    )


_PROJECTIONS: dict[Kind, Callable[[Manifest], View]] = {
    SERVICE_KIND: _service,
    SERVICE: _child,
    BUDGET: _child,
    CLAIM: _claim,
    DEPLOYMENT: _deployment,
    JOB: _job,
    POD: _pod,
    HPA: _autoscaler,
    SCALED_OBJECT: _autoscaler,
    SLICE: _slice,
    LEASE: _lease,
}


def project(kind: Kind, body: Manifest) -> View:
    """The projection of one object as the API server sent it."""
    return _PROJECTIONS[kind](body)
