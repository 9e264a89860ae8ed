"""Whether a model fits, asked before a claim is made, a byte fetched or a GPU taken. Pure.

The engine's own memory plan answers, from the model's headers, in a short Job without the model's
volume; a model that lies on a claim already is read there instead of at its source.

    no plan in status for the request's key ─► Job n ─┬─► plan: into status, Job deleted: go on
                                                      ├─► DoesNotFit: into status: nothing is made
                                                      └─► failed: later Job n+1 (until then the Job
                                                          that failed tells why)
    a model that lies on a claim: a question that fails holds nothing up, and is asked on
    a revision that has its Deployment ─► is never stopped by a plan

A Job is made when it is the service's turn (plan_places.py): a thousand at once serve nobody.
Nothing is kept but the answer. Who loses it asks again. A Deployment bears what was asked for it:
one without was made by an operator that asked nothing, and nobody asks about it now.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from quire_operator import fetch, memory_plan, names, plan_places
from quire_operator.api import PlanStatus
from quire_operator.fetch import FetchState, Report, Stage
from quire_operator.memory_plan import GIBIBYTE, MEBIBYTE, Request
from quire_operator.observe import Observation
from quire_operator.views import JobView, PodView

DOES_NOT_FIT = "DoesNotFit"
ASKING = "asking what the model needs"
NODES_SECONDS = 8.0
"""How often the nodes' labels are looked at for a model that does not fit by them."""

Words = tuple[str, str]
"""Reason and message."""
Truth = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitState:
    """What is known of the fit, whether the way is free, and the next step."""

    request: Request
    plan: PlanStatus | None = None
    """The engine's answer. Of a revision that serves also one for other memory."""
    passes: bool
    """Whether claim, fetch and Deployment may be made."""
    asking: bool = False
    """A Job is about to ask, or asks."""
    pod: PodView | None = None
    """Of the Job that asks."""
    failure: Words | None = None
    """Why there is no answer yet."""
    start: int | None = None
    """Number of the Job to start now."""
    mounted: bool = False
    """Whether that Job reads the model from its claim."""
    waits_for: int | None = None
    """How many others' plans come first, while it is not this one's turn."""
    wait_seconds: float | None = None
    """Until the next look or attempt."""
    discard: tuple[JobView, ...] = ()
    """Jobs that have told what they had to tell, or whose answer nobody wants any more."""

    @property
    def refusal(self) -> str | None:
        return self.plan.refusal if self.plan is not None else None

    @property
    def holds_up(self) -> bool:
        """Whether claim, fetch and pods wait for it."""
        told = self.asking or self.failure is not None or self.refusal is not None
        return told and not self.passes

    @property
    def asking_words(self) -> str:
        """What is done for an answer now."""
        return ASKING if self.waits_for is None else _waiting(self.waits_for)


def asks_nodes(seen: Observation) -> bool:
    """Whether the answer depends on what memory the nodes' GPUs have now."""
    is_open = seen.current is None or seen.planned is None
    return memory_plan.asks_nodes(seen.spec) and is_open and _due(seen)


def state(seen: Observation, fetched: FetchState, request: Request) -> FitState:
    """Where the plan stands, and the next step towards it."""
    live = tuple(job for job in seen.plan_jobs if not job.meta.deleting)
    asked = [job for job in seen.plan_jobs if job.plan == request.key]
    job = asked[-1] if asked else None
    pod = _pod_of(seen, job)
    stored = _stored(seen, fetched, request)
    answer = stored or _answer(fetched, request, pod)
    if answer is not None or not _due(seen):
        # The Job that has just answered goes when status has its answer.
        told = live if stored is answer else tuple(job for job in live if job not in asked)
        step = _settled(seen, request, answer, told)
    else:
        step = _in_turn(seen, _step(seen, fetched, request, asked, pod))
        kept = _kept(seen, asked, step)
        step = replace(step, discard=tuple(job for job in live if job not in kept))
    return replace(step, passes=step.passes or seen.current is not None)


def _settled(
    seen: Observation, request: Request, answer: PlanStatus | None, told: tuple[JobView, ...]
) -> FitState:
    refused = answer is not None and answer.refusal is not None
    return FitState(
        request=request,
        plan=answer,
        passes=answer is not None and not refused,
        # No watch tells of a node whose GPUs have more.
        wait_seconds=NODES_SECONDS if refused and asks_nodes(seen) else None,
        discard=told,
    )


def _wanted(seen: Observation) -> bool:
    return seen.spec.replicas > 0 or seen.spec.cache.prefetch


def _stored(seen: Observation, fetched: FetchState, request: Request) -> PlanStatus | None:
    """The answer in status, as far as it still is one."""
    plan = seen.planned
    if plan is None or seen.current is not None or not _wanted(seen):
        return plan
    there = fetched.record.commit if fetched.record is not None else None
    moved = there is not None and plan.commit is not None and there != plan.commit
    return plan if plan.key == request.key and not moved else None


def _due(seen: Observation) -> bool:
    """Whether to ask, where there is no answer. Not for what an operator made that asked nothing:
    an upgrade from it would start a Job for each service."""
    return _wanted(seen) and (seen.current is None or _was_asked(seen))


def _was_asked(seen: Observation) -> bool:
    """Whether the question about the revision that serves was put before that was made."""
    return seen.current is not None and names.ANNOTATION_PLAN in seen.current.meta.annotations


def _kept(seen: Observation, asked: list[JobView], step: FitState) -> list[JobView]:
    """The Job that runs, and the last one that failed: it is what is known meanwhile."""
    running = [job for job in asked if _runs(job)] if step.start is None else []
    return running[-1:] + _ended(seen, asked)[-1:]


def _ended(seen: Observation, asked: list[JobView]) -> list[JobView]:
    """Attempts that are over and were made as they would be now."""
    return [job for job in asked if not _runs(job) and not fetch.superseded(seen, job.asked)]


def _runs(job: JobView) -> bool:
    return not job.failed and not job.succeeded


def _step(
    seen: Observation,
    fetched: FetchState,
    request: Request,
    asked: list[JobView],
    pod: PodView | None,
) -> FitState:
    """Without an answer: ask, wait for one, or ask again."""
    job = asked[-1] if asked else None
    mounted = fetched.stage is Stage.COMPLETE or seen.spec.model.uri.startswith("pvc://")
    step = FitState(request=request, passes=False, mounted=mounted)
    if job is None:
        return replace(step, asking=True, start=1)
    if _runs(job):
        again = job.attempt + 1 if _is_stuck(seen, job, pod) else None
        before = _failure_before(seen, asked) if not _is_held_up(pod) else None
        return replace(step, asking=True, pod=pod, start=again, failure=before)
    if fetch.last_words_due(seen, job, pod):
        return replace(step, asking=True, pod=pod, wait_seconds=1.0)
    return _failed(seen, step, job, pod)


def _in_turn(seen: Observation, step: FitState) -> FitState:
    """Puts the next Job off while it is others' turn."""
    if step.start is None:
        return step
    places, again = seen.defaults.plan_places, step.start > 1
    wait = plan_places.wait(seen.plan_line, seen.now, places, again=again)
    if wait is None:
        return step
    failure = step.failure
    if failure is not None:
        failure = (failure[0], f"{failure[1]}; {_waiting(wait.num_plans)}")
    return replace(
        step, start=None, failure=failure, waits_for=wait.num_plans, wait_seconds=wait.seconds
    )


def _waiting(num_plans: int) -> str:
    return f"waiting for {num_plans} other plan{'' if num_plans == 1 else 's'}"


def _pod_of(seen: Observation, job: JobView | None) -> PodView | None:
    found = [pod for pod in seen.plan_pods if job is not None and pod.job == job.meta.name]
    return found[-1] if found else None


def _failed(seen: Observation, step: FitState, job: JobView, pod: PodView | None) -> FitState:
    """What lies on a claim is not held up by a question that fails: the engine that loads it asks
    itself the same, and tells what is wrong, or has it repaired."""
    step = replace(step, failure=_told(job, pod), passes=step.mounted)
    delay = _retry_seconds(job.attempt, waited_for=not step.mounted and seen.current is None)
    due = (job.finished or seen.now) + (0.0 if fetch.superseded(seen, job.asked) else delay)
    if due > seen.now:
        return replace(step, wait_seconds=due - seen.now)
    return replace(step, start=job.attempt + 1)


def _retry_seconds(attempts: int, *, waited_for: bool) -> float:
    """As long as a fetch waits; longer and longer for an answer that holds nothing up, which is
    not worth a pod every 10 s."""
    if waited_for:
        return fetch.retry_seconds(attempts)
    return min(fetch.RETRY_SECONDS[0] * 2.0 ** min(attempts - 1, 10), fetch.RETRY_PATIENT_SECONDS)


def _told(job: JobView, pod: PodView | None) -> Words:
    reason, message = explain(job, pod)
    tries = f"{job.attempt} attempt{'s' if job.attempt > 1 else ''} so far, trying again"
    return reason, f"{message} ({tries})"


def _failure_before(seen: Observation, asked: list[JobView]) -> Words | None:
    """What the attempt before said, until this one has said something: Ready would turn to and fro
    with each attempt."""
    ended = _ended(seen, asked)
    return _told(ended[-1], _pod_of(seen, ended[-1])) if ended else None


def _is_held_up(pod: PodView | None) -> bool:
    """Whether this attempt has a trouble of its own, such as its image."""
    waiting = pod.main.waiting if pod is not None and pod.main is not None else None
    starts = waiting in (None, "ContainerCreating", "PodInitializing")
    return pod is not None and (pod.unschedulable is not None or not starts)


def _is_stuck(seen: Observation, job: JobView, pod: PodView | None) -> bool:
    """One whose pod cannot start, and whose service asks otherwise now."""
    begun = pod is not None and pod.main is not None and (pod.main.running or pod.main.exited)
    return not begun and fetch.superseded(seen, job.asked)


def _answer(fetched: FetchState, request: Request, pod: PodView | None) -> PlanStatus | None:
    """What the Job's pod has said, well or ill, if it is an answer. Its end is not waited for."""
    ended = pod.main.exited if pod is not None and pod.main is not None else None
    report = fetch.report_of(ended.message) if ended is not None else Report()
    told = ended is not None and ended.code == 0 and report.plan is not None
    if not told and report.reason != DOES_NOT_FIT:
        return None
    plan, record = report.plan or fetch.Plan(), fetched.record
    return PlanStatus(
        key=request.key,
        commit=report.commit or (record.commit if record else None),
        bytes_total=report.bytes_total or (record.bytes_total if record else None),
        weight_bytes=plan.weight_bytes,
        kv_bytes_per_token=plan.kv_bytes_per_token,
        kv_blocks=plan.kv_blocks,
        max_model_len=plan.max_model_len,
        max_concurrency=plan.max_concurrency,
        required_bytes=plan.required_bytes,
        memory_bytes=request.memory.num_bytes,
        refusal=(report.message or DOES_NOT_FIT) if report.reason == DOES_NOT_FIT else None,
    )


def explain(job: JobView, pod: PodView | None) -> Words:
    """Why a plan's Job failed, from its pod if there still is one."""
    ended = pod.main.exited if pod is not None and pod.main is not None else None
    if ended is None:
        why = pod.phase_message if pod is not None else job.failure
        return "Interrupted", f"the plan ended without a word: {why or 'its pod is gone'}"
    report = fetch.report_of(ended.message)
    if report.reason:
        return report.reason, report.message or report.reason
    if pod is not None and pod.main is not None and (cut := fetch.cut_short("plan", pod, pod.main)):
        return cut
    last = fetch.last_line(ended.message) or ended.reason or "no message"
    return "PlanFailed", f"the plan exited with {ended.code}: {last}"


# ---- words ----


def condition(seen: Observation, fit: FitState) -> tuple[Truth, Words]:
    """Status, reason and message of `Fits`."""
    if fit.refusal is not None:
        return "False", (DOES_NOT_FIT, fit.refusal)
    if fit.plan is not None:
        needs = _needs(fit.plan)
        if fit.plan.memory_bytes is not None:
            return "True", ("Fits", f"{needs}{_has(fit.plan, fit.request.memory.on_gpu)}")
        return "Unknown", ("MemoryUnknown", f"{needs}; {fit.request.memory.unknown}")
    if fit.failure is not None:
        return "Unknown", fit.failure
    if fit.asking:
        reason = "Planning" if fit.waits_for is None else plan_places.QUEUED
        return "Unknown", (reason, fit.asking_words)
    if seen.current is not None and not _was_asked(seen):
        return "Unknown", ("NotPlanned", "its pods were made before anybody asked what they need")
    return "Unknown", ("NotPlanned", "asked when replicas is above 0")


def _needs(plan: PlanStatus) -> str:
    context = f" for a context of {plan.max_model_len:,}" if plan.max_model_len else ""
    return f"needs {_size(plan.required_bytes)}{context}, weights {_size(plan.weight_bytes)}"


def _has(plan: PlanStatus, on_gpu: bool) -> str:
    where = "a GPU has" if on_gpu else "the container may take"
    blocks = f"; {plan.kv_blocks:,} blocks of cache" if plan.kv_blocks is not None else ""
    at_once = f", {plan.max_concurrency:,} such contexts at once" if plan.max_concurrency else ""
    return f"; {where} {_size(plan.memory_bytes)}{blocks}{at_once}"


def _size(num_bytes: int | None) -> str:
    """As the engine writes them, so that they compare at a glance."""
    if num_bytes is None:
        return "an unknown amount"
    if num_bytes >= GIBIBYTE:
        return f"{num_bytes / GIBIBYTE:,.1f} GiB"
    return f"{num_bytes / MEBIBYTE:,.1f} MiB"
