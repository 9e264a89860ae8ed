"""What was read of a service, as the document that is shown. Pure.

It judges nothing anew: Ready and the other conditions are the operator's, and stand beside what the
cluster says now, so that a stale operator shows too.
"""

from __future__ import annotations

import msgspec

from quire_operator import api, fetch, fit, names, pods
from quire_operator.console import document as doc
from quire_operator.console import pod_words
from quire_operator.console.reading import Seen
from quire_operator.reasons import READY, TABLE
from quire_operator.scaling_model import PodLoad
from quire_operator.scraper import Missing, PodMetrics
from quire_operator.values import timestamp
from quire_operator.views import DeploymentView, JobView, PodView

MAX_EVENTS = 8


def document(seen: Seen) -> doc.Document:
    """The whole of it."""
    service, status = seen.service, seen.service.status
    conditions = _conditions(status)
    return doc.Document(
        version=1,
        time=timestamp(seen.now),
        namespace=seen.key.namespace,
        name=seen.key.name,
        created=timestamp(service.meta.created),
        leaving=service.meta.deleting,
        generation=service.generation,
        observed_generation=status.observed_generation,
        spec_error=service.error,
        ready=conditions[0],
        remedy=_remedy(conditions[0]),
        conditions=conditions,
        url=status.url,
        replicas=_replicas(seen),
        model=_model(seen),
        claim=_claim(seen),
        plan=_plan(status.plan),
        plan_job=_plan_job(seen),
        failed_plan=_failed_plan(seen),
        fetch=_fetch(seen),
        failed_fetch=_failed_fetch(seen),
        revisions=[_revision(view, status.revision) for view in _sorted_revisions(seen)],
        pods=[_pod(seen, pod) for pod in _sorted_pods(seen)],
        scaling=_scaling(service.spec, status.scaling),
        events=_events(seen),
        unseen=[doc.Unseen(part=part, why=why) for part, why in seen.unseen],
    )


def _conditions(status: api.Status) -> list[doc.Condition]:
    """Ready first; one that nobody wrote yet is Unknown."""
    found = [
        doc.Condition(
            type=condition.type,
            status=condition.status,
            reason=condition.reason,
            message=condition.message,
            since=condition.last_transition_time,
        )
        for condition in status.conditions
    ]
    if not any(condition.type == READY for condition in found):
        found.append(doc.Condition(type=READY, status="Unknown", reason="", message="", since=None))
    return sorted(found, key=lambda condition: condition.type != READY)


def _remedy(ready: doc.Condition) -> str | None:
    """As docs/reasons.md has it; beside ready pods too, as the reason then tells what else ails."""
    return next((e.remedy for e in TABLE if e.is_trouble and e.reason == ready.reason), None)


def _replicas(seen: Seen) -> doc.Replicas:
    """As counted now; of who may not see pods, as the operator counted."""
    wanted = seen.service.spec.replicas if seen.service.spec else None
    if seen.lacks("pods"):
        status = seen.service.status
        present, ready = status.replicas or 0, status.ready_replicas or 0
        return doc.Replicas(wanted=wanted, present=present, ready=ready)
    pods = [pod for pod in seen.pods if not pod.meta.deleting and not pod.ended]
    return doc.Replicas(wanted=wanted, present=len(pods), ready=sum(pod.ready for pod in pods))


def _model(seen: Seen) -> doc.Model:
    """Of a fetch that runs its own word, which is newer than the status."""
    spec, known, now = seen.service.spec, seen.service.status.model, seen.progress
    model, known = spec.model if spec else None, known or api.ModelStatus()
    live = now is not None and bool(now.bytes_total)
    return doc.Model(
        uri=model.uri if model else None,
        revision=model.revision if model else None,
        served_name=(model.served_name if model else None) or seen.key.name,
        commit=(now.commit if now else None) or known.commit,
        bytes_total=now.bytes_total if now and live else known.bytes_total,
        bytes_done=now.bytes_done if now and live else known.bytes_done,
        bytes_per_second=(now.bytes_per_second or None) if now else None,
        eta_seconds=now.eta_seconds if now and live else known.eta_seconds,
    )


def _claim(seen: Seen) -> doc.Claim | None:
    if seen.claim_name is None:
        return None
    view = seen.claim
    return doc.Claim(
        name=seen.claim_name,
        phase=view.phase if view else ("Unknown" if seen.lacks("claim") else "Missing"),
        requested=view.size if view else "",
        capacity=view.capacity if view else "",
        storage_class=view.storage_class if view else "",
        shared_by=len(view.meta.owners) if view else 0,
    )


def _plan(plan: api.PlanStatus | None) -> doc.Plan | None:
    """By name, so that the plan may come to say more."""
    if plan is None or plan == api.PlanStatus():
        return None
    said = msgspec.to_builtins(plan)
    known = [field.encode_name for field in msgspec.structs.fields(doc.Plan)]
    return msgspec.convert({name: said.get(name) for name in known}, doc.Plan)


def _plan_job(seen: Seen) -> doc.PlanJob | None:
    if not seen.plan_jobs:
        return None
    job = seen.plan_jobs[-1]
    pod = _plan_pod(seen, job)
    return doc.PlanJob(
        job=job.meta.name,
        attempt=job.attempt,
        created=timestamp(job.meta.created),
        state=_job_state(job),
        pod=_pod(seen, pod) if pod is not None else None,
    )


def _plan_pod(seen: Seen, job: JobView) -> PodView | None:
    return next((pod for pod in reversed(seen.plan_pods) if pod.job == job.meta.name), None)


def _failed_plan(seen: Seen) -> doc.FailedPlan | None:
    """As the operator tells it: the Job that failed stays until a later one has said something."""
    last = seen.plan_jobs[-1] if seen.plan_jobs else None
    failed = [job for job in seen.plan_jobs if job.failed and last and job.plan == last.plan]
    if not failed:
        return None
    job = failed[-1]
    reason, message = fit.explain(job, _plan_pod(seen, job))
    if reason == fit.DOES_NOT_FIT:
        return None  # an answer, on its way into status
    ended = job.finished
    due = None
    if ended is not None and job is last:
        due = ended + fetch.retry_seconds(job.attempt)
    return doc.FailedPlan(
        failures=job.attempt,
        reason=reason,
        message=message,
        time=timestamp(ended) if ended is not None else None,
        next=timestamp(due) if due is not None else None,
    )


def _fetch(seen: Seen) -> doc.Fetch | None:
    if not seen.jobs:
        return None
    job = seen.jobs[-1]
    return doc.Fetch(
        job=job.meta.name,
        attempt=job.attempt,
        created=timestamp(job.meta.created),
        state=_job_state(job),
        phase=seen.progress.phase if seen.progress else None,
        note=(seen.progress.note or None) if seen.progress else None,
        pod=_pod(seen, seen.fetch_pods[-1]) if seen.fetch_pods else None,
    )


def _job_state(job: JobView) -> str:
    if job.succeeded:
        return "Succeeded"
    return "Failed" if job.failed else "Running"


def _failed_fetch(seen: Seen) -> doc.FailedFetch | None:
    """As the claim's annotation records it; it goes when a fetch ends well."""
    if seen.service.spec is None:
        return None
    annotation = names.failed_annotation(pods.content_of(seen.service.spec))
    failure = fetch.recorded(seen.claim, annotation, fetch.Failure)
    if failure is None:
        return None
    return doc.FailedFetch(
        failures=failure.failures,
        reason=failure.reason,
        message=failure.message,
        time=timestamp(failure.at),
        next=timestamp(failure.at + failure.retry_seconds),
    )


def _sorted_revisions(seen: Seen) -> list[DeploymentView]:
    wanted = seen.service.status.revision
    return sorted(seen.deployments, key=lambda d: (d.revision != wanted, -d.meta.created))


def _revision(view: DeploymentView, wanted: str | None) -> doc.Revision:
    return doc.Revision(
        revision=view.revision,
        wanted=view.revision == wanted,
        replicas=view.replicas,
        ready=view.ready,
        image=view.image,
        created=timestamp(view.meta.created),
        failure=view.failure,
        leaving=view.meta.deleting,
    )


def _sorted_pods(seen: Seen) -> list[PodView]:
    """Those of the wanted revision first, and of them those in trouble."""
    wanted = seen.service.status.revision
    return sorted(seen.pods, key=lambda p: (p.revision != wanted, p.ready, p.meta.name))


def _pod(seen: Seen, pod: PodView) -> doc.Pod:
    answer = seen.answers.get(pod.meta.name)
    return doc.Pod(
        name=pod.meta.name,
        revision=pod.revision,
        node=pod.node,
        phase=pod.phase,
        state=pod_words.state(pod),
        ready=pod.ready,
        restarts=pod_words.restarts(pod),
        created=timestamp(pod.meta.created),
        trouble=pod_words.trouble(pod, seen.now),
        load=_load(answer.load) if isinstance(answer, PodMetrics) else None,
        load_missing=answer.why if isinstance(answer, Missing) else None,
    )


def _load(load: PodLoad) -> doc.Load:
    return doc.Load(
        running=_whole(load.running),
        waiting=_whole(load.waiting),
        kv_cache_utilization=load.kv_cache_utilization,
    )


def _whole(count: float | None) -> int | None:
    return None if count is None else int(count)


def _scaling(spec: api.Spec | None, status: api.ScalingStatus | None) -> doc.Scaling | None:
    if spec is None:
        return None
    scaling, known = spec.scaling, status or api.ScalingStatus()
    return doc.Scaling(
        mode=scaling.mode,
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        dry_run=scaling.dry_run,
        idle_seconds_to_zero=scaling.idle_seconds_to_zero,
        desired=known.desired,
        decisions=[
            doc.Decision(
                time=decision.time,
                from_replicas=decision.from_replicas,
                to_replicas=decision.to_replicas,
                reason=decision.reason,
                inputs=decision.inputs,
            )
            for decision in known.decisions
        ],
    )


def _events(seen: Seen) -> list[doc.Event]:
    newest = sorted(seen.events, key=lambda event: event.time, reverse=True)[:MAX_EVENTS]
    return [
        doc.Event(
            time=timestamp(event.time),
            type=event.type,
            reason=event.reason,
            message=event.message,
            count=event.count,
            object=event.object,
        )
        for event in newest
    ]


def is_looked_at(seen: Seen) -> bool:
    """Whether an operator has written a status at all."""
    return seen.service.status.observed_generation is not None
