"""What no watch tells, of what holds a service up: a fetch's bytes, an engine's own word, and the
events of a claim, a Job or a pod. Which questions there are, and what follows from answers. Pure.

`inquirer.py` asks. Bounded: at most MAX_UNCLEAR pods of a service.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from quire_operator.observe import EngineAnswer, Observation, PodEvent, Progress
from quire_operator.views import JobView, PodView

EVENTS_AFTER_SECONDS = 3.0
"""What has only just begun is given this long before its events are read for what holds it up."""
PROVISIONING_SECONDS = 10.0
"""A provisioner takes some seconds; afterwards that it is waited for is what holds the claim up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What is worth asking about one service now."""

    fetching: PodView | None
    """The pod that fetches."""
    events: tuple[str, ...]
    """uids of what may be told of."""
    engines: tuple[PodView, ...]

    @property
    def each(self) -> frozenset[tuple[str, str]]:
        """What for, and the uid of what it is about."""
        fetching = (self.fetching,) if self.fetching is not None else ()
        pods = (("progress", fetching), ("engine", self.engines))
        asked = {(what, pod.meta.uid) for what, of in pods for pod in of}
        return frozenset(asked | {("events", uid) for uid in self.events})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What was answered, by the uid of what it is about."""

    asked: frozenset[tuple[str, str]] = frozenset()
    """`Questions.each`, answered or not."""
    progress: Mapping[str, Progress] = field(default_factory=dict)
    events: Mapping[str, tuple[PodEvent, ...]] = field(default_factory=dict)
    engines: Mapping[str, EngineAnswer] = field(default_factory=dict)


NOTHING = Answers()


def questions(seen: Observation) -> Questions:
    """What is worth asking about a service as it is seen."""
    fetching = _fetching_pod(seen)
    return Questions(
        fetching=fetching if fetching is not None and fetching.ip else None,
        events=tuple(dict.fromkeys(_told_of(seen))),
        engines=tuple(pod for pod in seen.unclear_pods if _runs(pod)),
    )


def hear(seen: Observation, answers: Answers) -> Observation:
    """The observation with the answers in it, as far as they are still asked for."""
    asked = questions(seen)
    events = {uid: answers.events.get(uid, ()) for uid in asked.events}
    return replace(
        seen,
        progress=answers.progress.get(asked.fetching.meta.uid) if asked.fetching else None,
        claim_event=_claim_words(seen, events),
        job_event=_job_words(seen.jobs, events),
        plan_event=_job_words(seen.plan_jobs, events),
        pod_events={p.meta.uid: events.get(p.meta.uid, ()) for p in seen.unclear_pods},
        answers={u: answers.engines[u] for what, u in asked.each if u in answers.engines},
    )


def _told_of(seen: Observation) -> Iterator[str]:
    claim = seen.claim
    if claim is not None and claim.phase == "Pending" and _old(seen, claim.meta.created):
        yield claim.meta.uid
    for jobs in (seen.jobs, seen.plan_jobs):
        if jobs and _lacks_pod(seen, jobs[-1]):
            yield jobs[-1].meta.uid
    for pod in seen.unclear_pods:
        if _has_news(seen, pod):
            yield pod.meta.uid


def _claim_words(seen: Observation, events: Mapping[str, tuple[PodEvent, ...]]) -> str | None:
    if seen.claim is None:
        return None
    telling = {"FailedBinding"}
    if seen.now - seen.claim.meta.created > PROVISIONING_SECONDS:
        telling.add("ExternalProvisioning")
    found = events.get(seen.claim.meta.uid, ())
    return next((e.message for e in found if e.is_warning or e.reason in telling), None)


def _job_words(jobs: tuple[JobView, ...], events: Mapping[str, tuple[PodEvent, ...]]) -> str | None:
    found = events.get(jobs[-1].meta.uid, ()) if jobs else ()
    return next((event.message for event in found if event.is_warning), None)


def _fetching_pod(seen: Observation) -> PodView | None:
    """A Job's pod, or a pod whose own init container fetches."""
    job = seen.jobs[-1].meta.name if seen.jobs else None
    for pod in seen.fetch_pods:
        if pod.job == job and pod.main is not None and pod.main.running:
            return pod
    for pod in seen.current_pods:
        if pod.init is not None and pod.init.running:
            return pod
    return None


def _lacks_pod(seen: Observation, job: JobView) -> bool:
    pods = (*seen.fetch_pods, *seen.plan_pods)
    alone = not any(pod.job == job.meta.name for pod in pods)
    return alone and job.finished is None and _old(seen, job.meta.created)


def _runs(pod: PodView) -> bool:
    return pod.job is None and pod.main is not None and pod.main.running and bool(pod.ip)


def _has_news(seen: Observation, pod: PodView) -> bool:
    """Whether events may tell of a pod what its status does not."""
    return _old(seen, pod.started or pod.meta.created)


def _old(seen: Observation, created: float) -> bool:
    return seen.now - created > EVENTS_AFTER_SECONDS
