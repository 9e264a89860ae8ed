"""The status of a service: built from what was seen, written only when it says something new."""

from __future__ import annotations

import msgspec

from quire_operator import api, conditions, names
from quire_operator.case import Case, Finding
from quire_operator.client import Api
from quire_operator.fetch import Stage
from quire_operator.kinds import SERVICE_KIND
from quire_operator.names import Key
from quire_operator.observe import Observation
from quire_operator.projections import project
from quire_operator.values import timestamp
from quire_operator.views import ServiceView
from quire_operator.world import MAX_DECISIONS, World


def build(case: Case) -> api.Status:
    """The whole status. Times of transitions are kept from the one before where nothing turned."""
    seen = case.seen
    before = seen.service.status
    present = [pod for pod in seen.pods if not pod.meta.deleting and not pod.ended]
    startup = seen.startup_seconds
    return api.Status(
        observed_generation=seen.service.generation,
        conditions=_dated(conditions.conditions(case), seen.service, seen.now),
        url=names.url(seen.key),
        replicas=len(present),
        ready_replicas=sum(pod.ready for pod in present),
        selector=selector(seen.key),
        revision=seen.revision,
        model=_model(case),
        plan=_plan(case),
        startup=before.startup if startup is None else api.StartupStatus(last_seconds=startup),
        scaling=_scaling(seen, before.scaling),
        gateway_port=seen.gateway_port,
    )


def selector(key: Key) -> str:
    """The pods' label selector, as /scale wants it."""
    return ",".join(f"{k}={v}" for k, v in sorted(names.selector_labels(key.name).items()))


def build_invalid(service: ServiceView, now: float) -> api.Status:
    """Of a service whose spec does not decode: all else stays as it was."""
    return msgspec.structs.replace(
        service.status,
        observed_generation=service.generation,
        conditions=_dated(conditions.invalid(service.error or ""), service, now),
    )


def _dated(findings: list[Finding], service: ServiceView, now: float) -> list[api.Condition]:
    known = {condition.type: condition for condition in service.status.conditions}
    return [_condition(f, known.get(f.type), service.generation, now) for f in findings]


def _condition(
    finding: Finding, before: api.Condition | None, generation: int, now: float
) -> api.Condition:
    same = before is not None and before.status == finding.status
    since = before.last_transition_time if before is not None and same else timestamp(now)
    return api.Condition(
        type=finding.type,
        status=finding.status,
        reason=finding.reason,
        message=finding.message,
        observed_generation=generation,
        last_transition_time=since,
    )


def _model(case: Case) -> api.ModelStatus | None:
    record, progress = case.fetch.record, case.seen.progress
    if progress is not None and progress.bytes_total:
        return api.ModelStatus(
            commit=progress.commit,
            bytes_total=progress.bytes_total,
            bytes_done=progress.bytes_done,
            eta_seconds=progress.eta_seconds,
        )
    if record is not None and not case.fetch.repairing:
        total = record.bytes_total
        return api.ModelStatus(commit=record.commit, bytes_total=total, bytes_done=total)
    plan = case.plan.fit.plan
    planned = None
    if plan is not None and plan.bytes_total:
        planned = api.ModelStatus(commit=plan.commit, bytes_total=plan.bytes_total)
    if case.fetch.stage not in (Stage.RUNNING, Stage.FAILED):
        return planned
    return case.seen.model_before or planned


def _plan(case: Case) -> api.PlanStatus | None:
    """The answer to what the spec asks now; before plans were made first, that of the fetch."""
    if case.plan.fit.plan is not None:
        return case.plan.fit.plan
    plan = case.fetch.record.plan if case.fetch.record else None
    if plan is None:
        return None
    return api.PlanStatus(
        weight_bytes=plan.weight_bytes,
        kv_bytes_per_token=plan.kv_bytes_per_token,
        max_model_len=plan.max_model_len,
    )


def _scaling(seen: Observation, before: api.ScalingStatus | None) -> api.ScalingStatus | None:
    """Decisions of this process before those of earlier ones; with mode none but a history."""
    if seen.spec.scaling.mode != "builtin":
        kept = before.decisions if before else []
        desired = _autoscaler_wants(seen)
        return api.ScalingStatus(desired=desired, decisions=kept) if kept or desired else None
    if seen.scaling is None:
        return before
    known = list(seen.scaling.decisions)
    earlier = [d for d in (before.decisions if before else []) if d not in known]
    decisions = (known + earlier)[:MAX_DECISIONS]
    return api.ScalingStatus(desired=seen.scaling.report.desired, decisions=decisions)


def _autoscaler_wants(seen: Observation) -> int | None:
    """What the HPA says; one that stands at 0 says nothing."""
    hpa = {"hpa": seen.autoscaler, "keda": seen.keda_hpa}.get(seen.spec.scaling.mode)
    return hpa.desired or None if hpa is not None else None


def _comparable(status: api.Status) -> api.Status:
    """Our conditions by type: the list is a map to the API server, and others may add theirs."""
    ours = [c for c in status.conditions if c.type in conditions.TYPES]
    ours.sort(key=lambda condition: condition.type)
    # What an apply takes back may leave an empty map behind.
    return msgspec.structs.replace(
        status,
        conditions=ours,
        model=status.model if status.model != api.ModelStatus() else None,
        plan=status.plan if status.plan != api.PlanStatus() else None,
        startup=status.startup if status.startup != api.StartupStatus() else None,
        scaling=status.scaling if status.scaling != api.ScalingStatus() else None,
    )


async def write(client: Api, world: World, service: ServiceView, status: api.Status) -> bool:
    """Applies the status unless the live one says the same. True if it was written."""
    if _comparable(status) == _comparable(service.status):
        return False
    key = Key(service.meta.namespace, service.meta.name)
    manifest = {
        "apiVersion": api.API_VERSION,
        "kind": api.KIND,
        "metadata": {"name": key.name, "namespace": key.namespace, "uid": service.meta.uid},
        "status": msgspec.to_builtins(status),
    }
    answer = await client.apply(manifest, names.MANAGER_STATUS, force=True, subresource="status")
    world.put(SERVICE_KIND, project(SERVICE_KIND, answer))
    return True
