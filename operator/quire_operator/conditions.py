"""What a service's state is called: conditions, with reasons and words to act on. Pure.

`Ready` tells the first trouble of a table, in order of what a person must mend first. It concerns
the spec as it is now: with an earlier revision still serving it is False until the wanted one has a
ready pod, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from quire_operator import autoscaler_report, fetch, route
from quire_operator.api import Condition
from quire_operator.fetch import FetchState, Stage
from quire_operator.observe import Observation
from quire_operator.plan import Plan
from quire_operator.views import ContainerView, Exit, PodView, ServiceView

READY = "Ready"
MODEL_CACHED = "ModelCached"
PODS_READY = "PodsReady"
ROLLOUT_COMPLETE = "RolloutComplete"
SCALING = "Scaling"
TYPES = frozenset({READY, MODEL_CACHED, PODS_READY, ROLLOUT_COMPLETE, SCALING})

IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)
CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError"})
MAX_MESSAGE = 1024
"""Characters; enough for a scheduler's list of nodes, short enough for a terminal."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What an apply ran into, in status' words."""

    reason: str
    message: str
    of_scaling: bool = False
    """With an autoscaler: told in Scaling, as the service serves all the same."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One condition, before its times."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Case:
    """What conditions are told from."""

    seen: Observation
    plan: Plan
    problems: tuple[Problem, ...]

    @property
    def fetch(self) -> FetchState:
        return self.plan.fetch

    @property
    def ready_pods(self) -> int:
        return sum(pod.ready for pod in self.seen.current_pods)


Trouble = tuple[str, str]
"""Reason and message."""


def conditions(case: Case) -> list[Finding]:
    """All conditions of a service, Ready first."""
    found = [_ready(case), _model_cached(case), _pods_ready(case), _rollout(case)]
    return found + _scaling(case)


def _scaling(case: Case) -> list[Finding]:
    """What the scaler says; until it has said something in this process, what it said before."""
    refused = [(p.reason, p.message) for p in case.problems if p.of_scaling]
    told = autoscaler_report.told(case.seen, refused[0] if refused else None)
    if told is not None:
        return [Finding(SCALING, told[0], told[1], _short(told[2]))]
    if case.seen.spec.scaling.mode != "builtin":
        return []
    if case.seen.scaling is not None:
        report = case.seen.scaling.report
        return [Finding(SCALING, report.status, report.reason, _short(report.message))]
    service = case.seen.service
    before = [c for c in service.status.conditions if c.type == SCALING and _still(c, service)]
    return [Finding(SCALING, c.status, c.reason, c.message) for c in before]


def _still(condition: Condition, service: ServiceView) -> bool:
    """Whether it was said of this spec, and not of a switch that has ended."""
    left_over = condition.reason in autoscaler_report.LEFT_OVER_REASONS
    return condition.observed_generation == service.generation and not left_over


def invalid(error: str) -> list[Finding]:
    """Of a service whose spec does not decode: an older CRD let it in."""
    message = f"the spec is not understood: {_short(error)}; correct it, or upgrade the CRD"
    return [Finding(READY, "False", "InvalidSpec", message)]


# ---- Ready ----


def trouble(case: Case) -> Trouble | None:
    """The first trouble of the table, or None for a service that has all it needs."""
    for rule in TABLE:
        found = rule(case)
        if found is not None:
            return found
    return None


def _ready(case: Case) -> Finding:
    found = trouble(case)
    wanted, ready = case.seen.spec.replicas, case.ready_pods
    if wanted and ready:
        count = f"{ready} of {wanted} replicas ready"
        reason, message = ("Ready", count) if found is None else found
        if found is not None:
            reason = "Ready" if reason == "Starting" else reason
            message = f"{count}; {message}"
        return Finding(READY, "True", reason, _short(message))
    reason, message = found or ("Starting", "pods are being made")
    serving = [old for old in case.seen.others if old.ready]
    if serving:
        message += f"; revision {serving[0].revision} still serves"
    return Finding(READY, "False", reason, _short(message))


def _refused(case: Case) -> Trouble | None:
    if case.plan.refusal is not None:
        return "InvalidPodTemplate", case.plan.refusal
    problems = [problem for problem in case.problems if not problem.of_scaling]
    return (problems[0].reason, problems[0].message) if problems else None


def _scaled_to_zero(case: Case) -> Trouble | None:
    fetches = case.seen.spec.cache.prefetch and case.fetch.stage is not Stage.COMPLETE
    if case.seen.spec.replicas > 0 or (fetches and case.seen.fetches):
        return None
    return "ScaledToZero", route.words(case.seen)


def _claim_trouble(case: Case) -> Trouble | None:
    claim, mount = case.seen.claim, case.seen.mount
    if not case.seen.fetches or case.fetch.stage is Stage.IDLE:
        return None
    if claim is None:
        if case.seen.spec.cache.mode == "existing":
            return "ClaimUnbound", f"claim {mount.claim} (cache.existingClaim) does not exist"
        return "Starting", f"claim {mount.claim} is being made"
    if claim.meta.deleting:
        return "ClaimUnbound", f"claim {claim.meta.name} is being removed; waiting to make it anew"
    if claim.phase == "Lost":
        return "ClaimUnbound", f"claim {claim.meta.name} has lost its volume"
    if claim.phase != "Bound" and case.seen.claim_event:
        return "ClaimUnbound", f"claim {claim.meta.name} is not bound: {case.seen.claim_event}"
    return None


def _fetch_failed(case: Case) -> Trouble | None:
    failure = case.fetch.failure
    if failure is None or case.fetch.stage is Stage.COMPLETE:
        return None
    if case.fetch.record is not None and case.ready_pods:
        return None
    tries = f"{failure.failures} attempt{'s' if failure.failures > 1 else ''}"
    message = f"{failure.message} ({tries} so far, {_again(case)})"
    small = _cannot_grow(case) if failure.reason == "NoSpace" else None
    return failure.reason, f"{message}; {small[1]}" if small is not None else message


def _fetching(case: Case) -> Trouble | None:
    if case.fetch.stage not in (Stage.WANTED, Stage.RUNNING):
        return None
    stuck = _stuck(case.fetch.pod, case.fetch.pod.main) if case.fetch.pod else None
    if stuck is not None:
        return stuck
    if case.fetch.pod is None and case.seen.job_event:
        reason = "QuotaExceeded" if "exceeded quota" in case.seen.job_event else "FetchFailed"
        return reason, f"the fetch gets no pod: {case.seen.job_event}"
    if case.fetch.repairing and case.ready_pods:
        return None
    return "Fetching", progress_words(case)


def progress_words(case: Case) -> str:
    """Such as "1.2 of 16.1 GB at 300.0 MB/s, 40 s left"."""
    what = "the cached files are wrong, fetching them anew: " if case.fetch.repairing else ""
    if case.fetch.waits_for is not None:
        return what + _again(case)
    progress = case.seen.progress
    if progress is None or not progress.bytes_total:
        return what + _before_or_after(case.fetch.pod)
    if progress.phase == "verifying":
        return f"{what}verifying {_size(progress.bytes_total)}"
    done, total = _pair(progress.bytes_done, progress.bytes_total)
    rate = f" at {_size(int(progress.bytes_per_second))}/s" if progress.bytes_per_second else ""
    left = "" if progress.eta_seconds is None else f", {progress.eta_seconds:.0f} s left"
    return f"{what}{done} of {total}{rate}{left}"


def _again(case: Case) -> str:
    who = case.fetch.waits_for
    return "trying again" if who is None else f"waiting for {who} to end"


def _before_or_after(pod: PodView | None) -> str:
    """What a fetch that does not tell its progress is doing."""
    if pod is None:
        return "the fetch is being started"
    ended = pod.main is not None and pod.main.exited is not None
    return "the fetch has ended, noting the result" if ended else "asking for the files"


def _no_pods(case: Case) -> Trouble | None:
    current = case.seen.current
    if current is None or current.failure is None:
        return None
    reason = "QuotaExceeded" if "exceeded quota" in current.failure else "PodsRefused"
    return reason, current.failure


def _pod_trouble(case: Case) -> Trouble | None:
    """The worst pod's trouble: crashes before what only waits. What ended an earlier pod is only
    told while there is no other."""
    if not case.seen.current_pods and case.seen.ended_pods:
        return _evicted(case.seen.ended_pods[-1])
    waiting = [pod for pod in case.seen.current_pods if not pod.ready]
    found = [t for t in (_of_pod(case, pod) for pod in waiting) if t is not None]
    return min(found, key=_severity, default=None)


SEVERITY = ("OOMKilled", "CrashLoop", "ImagePull", "PodConfig", "Unschedulable")


def _severity(found: Trouble) -> int:
    return SEVERITY.index(found[0]) if found[0] in SEVERITY else 0


def _of_pod(case: Case, pod: PodView) -> Trouble | None:
    if pod.init is not None and (pod.init.running or not _passed(pod.init)):
        return _of_init(case, pod, pod.init)
    return _stuck(pod, pod.main) or (_crash(pod.main) if pod.main else None)


def _passed(container: ContainerView) -> bool:
    return container.exited is not None and container.exited.code == 0


def _of_init(case: Case, pod: PodView, container: ContainerView) -> Trouble | None:
    stuck = _stuck(pod, container)
    if stuck is not None:
        return stuck
    if container.exited or container.last_exit:
        reason, message = fetch.explain(pod, None)
        return reason, f"{message} (restarted {container.restarts} times)"
    return "Fetching", progress_words(case)


def _stuck(pod: PodView, container: ContainerView | None) -> Trouble | None:
    """A pod that does not get to run at all."""
    if pod.unschedulable is not None:
        return "Unschedulable", pod.unschedulable or "the scheduler finds no node"
    if container is None or container.waiting is None:
        return None
    if container.waiting in IMAGE_REASONS:
        return "ImagePull", container.waiting_message or container.waiting
    if container.waiting in CONFIG_REASONS:
        return "PodConfig", container.waiting_message or container.waiting
    return None


def _crash(container: ContainerView) -> Trouble | None:
    ended = container.exited or container.last_exit
    if ended is None or (ended.code == 0 and container.waiting != "CrashLoopBackOff"):
        return None
    restarts = f"restarted {container.restarts} time{'s' if container.restarts != 1 else ''}"
    if ended.reason == "OOMKilled":
        limit = container.memory_limit
        where = f"its memory limit of {limit}" if limit else "the node's memory (no limit is set)"
        return "OOMKilled", f"the engine was killed at {where}; raise resources.memory ({restarts})"
    return "CrashLoop", f"the engine exited with {ended.code}: {exit_words(ended)} ({restarts})"


def exit_words(ended: Exit) -> str:
    """What the container said last: our JSON's message, or the last line of its log."""
    report = fetch.report_of(ended.message)
    return report.message or fetch.last_line(ended.message) or ended.reason or "no message"


def _evicted(pod: PodView) -> Trouble:
    return pod.phase_reason or "PodFailed", pod.phase_message or "the pod has ended"


def _starting(case: Case) -> Trouble | None:
    wanted, ready = case.seen.spec.replicas, case.ready_pods
    if ready >= wanted:
        return None
    running = sum(p.main is not None and p.main.running for p in case.seen.current_pods)
    return "Starting", f"{ready} of {wanted} replicas ready, {running - ready} loading the model"


def _cannot_grow(case: Case) -> Trouble | None:
    seen = case.seen
    if seen.refused_growth is None or seen.claim is None:
        return None
    return "ClaimCannotGrow", (
        f"claim {seen.claim.meta.name} of {seen.claim.size} cannot grow to cache.size "
        f"{seen.spec.cache.size}: {seen.refused_growth}; set cache.size back, or another one to try"
    )


TABLE: tuple[Callable[[Case], Trouble | None], ...] = (
    _refused,
    _scaled_to_zero,
    _claim_trouble,
    _fetch_failed,
    _fetching,
    _no_pods,
    _pod_trouble,
    _starting,
    _cannot_grow,
)
"""First match wins. What stops everything behind it stands before it."""


# ---- the others ----


def _model_cached(case: Case) -> Finding:
    stage = case.fetch.stage
    if stage is Stage.NOT_NEEDED:
        why = "the files lie on a claim of yours or in each pod"
        return Finding(MODEL_CACHED, "True", "NotNeeded", why)
    record = case.fetch.record
    if stage is Stage.COMPLETE and record is not None:
        size = _size(record.bytes_total) if record.bytes_total else "all files"
        commit = f", commit {record.commit}" if record.commit else ""
        where = case.seen.claim.meta.name if case.seen.claim else "the claim"
        message = f"{size} on claim {where}{commit}{_pace(record)}"
        return Finding(MODEL_CACHED, "True", "Cached", message)
    for rule in (_claim_trouble, _fetch_failed, _fetching):
        found = rule(case)
        if found is not None:
            return Finding(MODEL_CACHED, "False", found[0], _short(found[1]))
    return Finding(MODEL_CACHED, "False", "NotFetched", "fetched when replicas is above 0")


def _pace(record: fetch.Record) -> str:
    """What the last fetch brought, and how fast; nothing for one that found all in place."""
    if not record.bytes_fetched or not record.seconds:
        return ""
    rate = _size(int(record.bytes_fetched / record.seconds))
    return f"; fetched {_size(record.bytes_fetched)} in {record.seconds:.1f} s ({rate}/s)"


def _pods_ready(case: Case) -> Finding:
    wanted, ready = case.seen.spec.replicas, case.ready_pods
    message = f"{ready} of {wanted} replicas ready"
    if ready >= wanted:
        return Finding(PODS_READY, "True", "AllReady", message)
    found = _pod_trouble(case) or _no_pods(case)
    reason, words = found or ("Starting", "")
    return Finding(PODS_READY, "False", reason, _short(f"{message}; {words}" if words else message))


def _rollout(case: Case) -> Finding:
    seen, current = case.seen, case.seen.current
    wanted = f"revision {seen.revision}"
    if current is None and not seen.others and seen.spec.replicas == 0:
        return Finding(ROLLOUT_COMPLETE, "True", "Complete", "spec.replicas is 0: nothing to do")
    if current is not None and not seen.others and current.ready >= seen.spec.replicas:
        return Finding(ROLLOUT_COMPLETE, "True", "Complete", f"{wanted} is the only one")
    deadline = seen.spec.rollout.progress_deadline_seconds
    waits = current is not None and current.ready == 0 and seen.spec.replicas > 0
    if waits and current is not None and seen.now - current.waits_since >= deadline:
        message = f"{wanted} has had no ready pod for {deadline} s"
        return Finding(ROLLOUT_COMPLETE, "False", "ProgressDeadlineExceeded", message)
    older = ", ".join(old.revision for old in seen.others)
    if not older and current is not None and current.ready:
        return Finding(ROLLOUT_COMPLETE, "True", "Complete", f"{wanted} is the only one")
    message = f"{wanted} comes up" + (f" beside {older}" if older else "")
    return Finding(ROLLOUT_COMPLETE, "False", "Progressing", message)


# ---- words ----


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= MAX_MESSAGE else flat[: MAX_MESSAGE - 1] + "…"


def _size(count: int) -> str:
    return _pair(count, count)[1]


def _pair(done: int, total: int) -> tuple[str, str]:
    """Both in the larger one's unit, so that they compare at a glance."""
    units: Iterable[tuple[str, float]] = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    for unit, factor in units:
        if total >= factor:
            return f"{done / factor:.1f}", f"{total / factor:.1f} {unit}"
    return str(done), f"{total} bytes"
