"""How reasons of pods, containers and the rollout are found: rules of `reasons.py`. Pure."""

from __future__ import annotations

from collections.abc import Callable

from quire_operator import fetch
from quire_operator.case import Case, Rule, Subject
from quire_operator.fetch_rules import CONFIG_REASONS, IMAGE_REASONS, waits_for_claim
from quire_operator.observe import PodEvent
from quire_operator.views import Exit, PodView

QUOTA = "exceeded quota"

# ---- no pods at all ----


def quota_exceeded(case: Case) -> str | None:
    applied = [p.message for p in case.problems if p.reason == "QuotaExceeded" and not p.of_scaling]
    refused = [*applied, *_refused_pods(case)]
    return next((words for words in refused if QUOTA in words), None)


def pods_refused(case: Case) -> str | None:
    return next(iter(_refused_pods(case)), None)


def _refused_pods(case: Case) -> list[str]:
    """The API server's words on pods that the Job or the Deployment asked for."""
    if case.plans:
        event = case.seen.plan_event
        return [f"the plan gets no pod: {event}"] if case.plan.fit.pod is None and event else []
    if case.fetches:
        event = case.seen.job_event
        alone = case.fetch.pod is None and event
        return [f"the fetch gets no pod: {event}"] if alone else []
    current = case.seen.current
    return [current.failure] if current is not None and current.failure else []


# ---- pods that do not get to run ----


def unschedulable(case: Case) -> str | None:
    for pod in case.waiting_pods:
        if pod.unschedulable is not None and not waits_for_claim(case, pod):
            return pod.unschedulable or "the scheduler finds no node"
    return None


def waits_for(reasons: frozenset[str]) -> Rule:
    """The rule of containers that wait for one of these reasons of the kubelet's."""

    def found(case: Case) -> str | None:
        for subject in case.subjects:
            container = subject.container
            if container.waiting in reasons:
                return container.waiting_message or container.waiting
        return None

    return found


image_pull = waits_for(IMAGE_REASONS)
pod_config = waits_for(CONFIG_REASONS)


def mount_failed(case: Case) -> str | None:
    return _while_made(case, "FailedMount", "FailedAttachVolume", "FailedMapVolume")


def sandbox_failed(case: Case) -> str | None:
    return _while_made(case, "FailedCreatePodSandBox")


def _while_made(case: Case, *reasons: str) -> str | None:
    """The newest event's words on a pod whose containers are still being made; once something
    else has happened since, an older one is history."""
    for pod in case.waiting_pods:
        containers = [subject.container for subject in case.subjects if subject.pod is pod]
        newest = case.newest_event(pod)
        being_made = any(container.is_being_made for container in containers)
        if being_made and newest is not None and newest.reason in reasons:
            return newest.message
    return None


_NODE_LOST = ("NodeNotReady", "TaintManagerEviction")


def node_lost(case: Case) -> str | None:
    for pod in case.waiting_pods:
        newest = case.newest_event(pod)
        if newest is not None and newest.reason in _NODE_LOST:
            return f"node {pod.node} is not ready: nobody hears of pod {pod.meta.name} there"
    return None


def evicted(case: Case) -> str | None:
    return _last_ended(case, lambda reason: reason == "Evicted")


def pod_failed(case: Case) -> str | None:
    return _last_ended(case, lambda reason: reason != "Evicted")


SUCCESSOR_SECONDS = 60.0
"""A pod made within this time of another's end takes its place."""


def _last_ended(case: Case, is_wanted: Callable[[str], bool]) -> str | None:
    """What ended a pod is told until the pod in its place is ready; of an older one it is
    history."""
    if case.fetches or not case.seen.ended_pods or case.ready_pods >= case.seen.spec.replicas:
        return None
    pod = case.seen.ended_pods[-1]
    if not is_wanted(pod.phase_reason) or not _is_recent(case, pod):
        return None
    words = pod.phase_message or "the pod has ended"
    known = pod.phase_reason in ("", "Evicted")
    return words if known else f"{pod.phase_reason}: {words}"


def _is_recent(case: Case, ended: PodView) -> bool:
    if not case.seen.current_pods:
        return True
    at = ended.ended_at
    made = [pod.meta.created for pod in case.waiting_pods]
    return at is not None and any(abs(created - at) <= SUCCESSOR_SECONDS for created in made)


# ---- containers that end ----


def oom_killed(case: Case) -> str | None:
    for subject, ended in _crashes(case):
        if ended.reason == "OOMKilled":
            limit = subject.container.memory_limit
            at = f"its memory limit of {limit}" if limit else "the node's memory (no limit is set)"
            ours = subject.role == "engine"
            more = "raise resources.memory" if ours else "raise its limit in podTemplate"
            return f"{subject.name} was killed at {at}; {more} ({subject.restarts})"
    return None


def engine_hung(case: Case) -> str | None:
    for subject in case.subjects:
        if subject.role == "engine":
            words = _does_not_answer(case, subject) or _killed_by_probe(case, subject)
            if words is not None:
                return words
    return None


def _does_not_answer(case: Case, subject: Subject) -> str | None:
    """An engine that did answer the kubelet before, and does not now."""
    container, answer = subject.container, case.seen.answers.get(subject.pod.meta.uid)
    if answer is None or not container.running or not container.started:
        return None
    if answer.reason == "NoAnswer":
        return f"the engine runs and does not answer: {answer.message}; the kubelet will restart it"
    if answer.reason == "Stalled":
        return f"the engine stands still: {answer.message}; the kubelet restarts it if that lasts"
    return None


_BY_PROBE = ("failed liveness probe, will be restarted", "failed startup probe, will be restarted")
PROBE_SECONDS = 300.0
"""Between the kubelet's word that it kills a container and that one's end: at most its grace."""


def _killed_by_probe(case: Case, subject: Subject) -> str | None:
    ended = subject.container.last_end
    if ended is None or ended.reason == "OOMKilled":
        return None
    events = case.events(subject.pod)
    for event in events:
        told = event.reason == "Killing" and event.message.endswith(_BY_PROBE)
        if told and ended.finished - PROBE_SECONDS <= event.at <= ended.finished + 1:
            why = _newest_words(events, "Unhealthy", "Liveness", "Startup")
            return f"the engine was killed as it did not answer: {why} ({subject.restarts})"
    return None


def crash_loop(case: Case) -> str | None:
    for subject, ended in _crashes(case):
        if ended.reason != "OOMKilled":
            words = exit_words(ended)
            return f"{subject.name} exited with {ended.code}: {words} ({subject.restarts})"
    return None


def _crashes(case: Case) -> list[tuple[Subject, Exit]]:
    """Engines that ended, or that start again after they did. How a fetch ended tells
    `fetch_rules.failed_as`."""
    found = []
    for subject in case.subjects:
        container, ended = subject.container, subject.container.last_end
        if subject.role == "fetch" or ended is None:
            continue
        if ended.code != 0 or container.waiting == "CrashLoopBackOff":
            found.append((subject, ended))
    return found


def exit_words(ended: Exit) -> str:
    """What the container said last: our JSON's message, or the last line of its log."""
    report = fetch.report_of(ended.message)
    return report.message or fetch.last_line(ended.message) or ended.reason or "no message"


# ---- pods that run, and are not ready ----


def not_ready(case: Case) -> str | None:
    """An engine that has loaded, as it says or the kubelet's other probes do, and takes no
    requests."""
    for subject in case.subjects:
        container, answer = subject.container, case.seen.answers.get(subject.pod.meta.uid)
        if subject.role != "engine" or answer is None or not container.started:
            continue
        if answer.reason == "Ready":
            words = _disagreement(case, subject)
        else:
            words = _UNREADY.get(answer.reason, "")
            words = f"{words}: {answer.message}" if words and answer.message else words
        if words:
            return words
    return None


_UNREADY = {
    "Draining": "the engine drains: it was told to end",
    "CoreDied": "the engine's core has died",
    "Refused": "the engine runs and cannot be asked",
    "Strange": "what runs is no engine of ours",
}
"""By what an engine answers. Loading is no trouble, and one that does not answer is hung."""


def _disagreement(case: Case, subject: Subject) -> str:
    """An engine that is ready by its own word, and not by the kubelet's. The kubelet asks each
    second, so that a 503 is but of the moment before."""
    words = _newest_words(case.events(subject.pod), "Unhealthy", "Readiness probe failed")
    if not words or "503" in words:
        return ""
    return f"the engine says that it is ready, and the kubelet does not find it so: {words}"


def _newest_words(events: tuple[PodEvent, ...], reason: str, *begins: str) -> str:
    found = (e.message for e in events if e.reason == reason and e.message.startswith(begins))
    return next(found, "")


# ---- pods that start ----


def starting(case: Case) -> str | None:
    wanted, ready = case.seen.spec.replicas, case.ready_pods
    if ready >= wanted:
        return None
    running = sum(p.main is not None and p.main.running for p in case.seen.current_pods)
    words = f"{ready} of {wanted} replicas ready, {running - ready} loading the model"
    pulling = _pulling(case)
    return f"{words}; {pulling}" if pulling else words


def _pulling(case: Case) -> str | None:
    """Such as 'Pulling image "x"': the kubelet's words while it does."""
    newest = (case.newest_event(pod) for pod in case.waiting_pods)
    return next((e.message for e in newest if e is not None and e.reason == "Pulling"), None)


def deadline_exceeded(case: Case) -> str | None:
    """Where no nearer cause is known: what the wanted revision still does after its deadline."""
    if not past_deadline(case):
        return None
    seconds = case.seen.spec.rollout.progress_deadline_seconds
    said = f"revision {case.seen.revision} has had no ready pod for {seconds} s"
    words = starting(case)
    return f"{said}; {words}" if words else said


def past_deadline(case: Case) -> bool:
    seen, current = case.seen, case.seen.current
    if current is None or current.ready > 0 or seen.spec.replicas == 0:
        return False
    return seen.now - current.waits_since >= seen.spec.rollout.progress_deadline_seconds
