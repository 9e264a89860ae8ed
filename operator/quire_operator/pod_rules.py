"""How reasons of pods, containers and the rollout are found: rules of `reasons.py`. Pure."""

from __future__ import annotations

from collections.abc import Callable

from quire_operator import fetch
from quire_operator.case import Case, Rule, Subject
from quire_operator.fetch_rules import CONFIG_REASONS, IMAGE_REASONS
from quire_operator.views import Exit

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
    if case.fetches:
        event = case.seen.job_event
        alone = case.fetch.pod is None and event
        return [f"the fetch gets no pod: {event}"] if alone else []
    current = case.seen.current
    return [current.failure] if current is not None and current.failure else []


# ---- pods that do not get to run ----


def unschedulable(case: Case) -> str | None:
    for pod in case.waiting_pods:
        if pod.unschedulable is not None:
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


def evicted(case: Case) -> str | None:
    return _last_ended(case, lambda reason: reason == "Evicted")


def pod_failed(case: Case) -> str | None:
    return _last_ended(case, lambda reason: reason != "Evicted")


def _last_ended(case: Case, is_wanted: Callable[[str], bool]) -> str | None:
    """What ended a pod is told while there is no other."""
    if case.fetches or case.seen.current_pods or not case.seen.ended_pods:
        return None
    pod = case.seen.ended_pods[-1]
    if not is_wanted(pod.phase_reason):
        return None
    words = pod.phase_message or "the pod has ended"
    known = pod.phase_reason in ("", "Evicted")
    return words if known else f"{pod.phase_reason}: {words}"


# ---- containers that end ----


def oom_killed(case: Case) -> str | None:
    for subject, ended in _crashes(case):
        if ended.reason == "OOMKilled":
            limit = subject.container.memory_limit
            at = f"its memory limit of {limit}" if limit else "the node's memory (no limit is set)"
            return f"the engine was killed at {at}; raise resources.memory ({subject.restarts})"
    return None


def crash_loop(case: Case) -> str | None:
    for subject, ended in _crashes(case):
        if ended.reason != "OOMKilled":
            words = exit_words(ended)
            return f"the engine exited with {ended.code}: {words} ({subject.restarts})"
    return None


def _crashes(case: Case) -> list[tuple[Subject, Exit]]:
    """Engines that ended, or that start again after they did. How a fetch ended tells
    `fetch_rules.failed_as`."""
    found = []
    for subject in case.subjects:
        container = subject.container
        ended = container.exited or container.last_exit
        if subject.role == "fetch" or ended is None:
            continue
        if ended.code != 0 or container.waiting == "CrashLoopBackOff":
            found.append((subject, ended))
    return found


def exit_words(ended: Exit) -> str:
    """What the container said last: our JSON's message, or the last line of its log."""
    report = fetch.report_of(ended.message)
    return report.message or fetch.last_line(ended.message) or ended.reason or "no message"


# ---- pods that start ----


def starting(case: Case) -> str | None:
    wanted, ready = case.seen.spec.replicas, case.ready_pods
    if ready >= wanted:
        return None
    running = sum(p.main is not None and p.main.running for p in case.seen.current_pods)
    return f"{ready} of {wanted} replicas ready, {running - ready} loading the model"


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
