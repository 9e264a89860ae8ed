"""The fetch of a model to its claim: where it stands, and what to do next. Pure.

Completion and failures lie on the claim, as annotations, and outlive Jobs and operators:

    no record ─► Job n runs ─┬─► succeeded: record {commit, bytes, plan, at}, Job deleted: complete
                             ├─► failed: failure {reason, message, failures, at}; later Job n+1
                             └─► cannot start, and the spec was mended: replaced by Job n+1
    complete  ─► a pod exits with 65 or 66 since then ─► Job n+1 with --repair, pods start anew

Each Job needs the claim's Lease before it is made (writer.py): one fetch writes a claim at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TypeVar

import msgspec
from msgspec import Struct

from quire_operator import names, writer
from quire_operator.observe import Observation
from quire_operator.pods import model_content
from quire_operator.views import ClaimView, ContainerView, Exit, JobView, PodView

MODEL_CORRUPT = 65
MODEL_MISSING = 66
REPAIRABLE = (MODEL_CORRUPT, MODEL_MISSING)

RETRY_SECONDS = (2.0, 5.0, 10.0)
"""Then RETRY_STEADY_SECONDS: what is mended outside (a token, a volume) is seen within 15 s."""
RETRY_STEADY_SECONDS = 10.0
RETRY_PATIENT_AFTER = 80
RETRY_PATIENT_SECONDS = 300.0
"""After 80 failures, some 20 minutes with the pods' own starts."""
LAST_WORDS_SECONDS = 5.0
"""A Job may be seen to end before its pod's last state, which has commit, bytes and plan."""
REPAIR_SECONDS = 60.0
"""Between repairs of one claim, times their number: a broken disk is not filled over and over."""


class Plan(Struct, frozen=True, rename="camel", omit_defaults=True):
    """The engine's memory plan, as Jobs report it."""

    weight_bytes: int | None = None
    kv_bytes_per_token: int | None = None
    max_model_len: int | None = None
    kv_blocks: int | None = None
    """This and what follows: of a plan Job, for a given memory."""
    max_concurrency: float | None = None
    required_bytes: int | None = None


class Report(Struct, frozen=True, rename="camel"):
    """A fetch's termination message, well or ill ended."""

    commit: str | None = None
    bytes_total: int | None = None
    bytes_fetched: int | None = None
    seconds: float | None = None
    plan: Plan | None = None
    reason: str | None = None
    message: str | None = None


class Record(Struct, frozen=True, rename="camel", omit_defaults=True):
    """On the claim: the content is there."""

    attempt: int
    at: float
    commit: str | None = None
    bytes_total: int | None = None
    bytes_fetched: int | None = None
    """Over the network, by the last attempt alone."""
    seconds: float | None = None
    plan: Plan | None = None
    repairs: int = 0


class Failure(Struct, frozen=True, rename="camel", omit_defaults=True):
    """On the claim: the last fetch failed."""

    attempt: int
    at: float
    failures: int
    reason: str
    message: str
    asked: str = ""
    """Who started it, and how (`asked`): another wish of the same service is tried at once."""
    bytes_done: int = 0
    """The most that was seen to be there, of all attempts."""
    in_vain: int | None = None
    """How many of `failures` since the last one that brought more; None: all."""

    @property
    def retry_seconds(self) -> float:
        """The delay before the next attempt: none after one that got further."""
        return retry_seconds(self.failures if self.in_vain is None else self.in_vain)


R = TypeVar("R", Record, Failure)


class Stage(Enum):
    """Where a service's model stands."""

    NOT_NEEDED = auto()
    NO_CLAIM = auto()
    WANTED = auto()
    RUNNING = auto()
    FAILED = auto()
    COMPLETE = auto()
    IDLE = auto()
    """Not fetched, and nobody asks for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchState:
    """Where the fetch stands and the next step."""

    stage: Stage
    record: Record | None = None
    failure: Failure | None = None
    pod: PodView | None = None
    repairing: bool = False
    start: int | None = None
    """Number of the Job to start now."""
    wait_seconds: float | None = None
    """Until the next attempt."""
    waits_for: str | None = None
    """Who writes the claim, in words, while the next attempt is due and must wait for him."""
    note: tuple[tuple[str, str | None], ...] = ()
    """Annotations to write on the claim (None removes)."""
    discard: tuple[JobView, ...] = ()
    """Jobs that have told what they had to tell."""


def state(seen: Observation) -> FetchState:
    """Where the service's model stands, and the next step towards it."""
    if not seen.fetches:
        return FetchState(stage=Stage.NOT_NEEDED)
    wanted = seen.spec.replicas > 0 or seen.spec.cache.prefetch or bool(seen.deployments)
    if seen.claim is None or seen.claim.meta.deleting:
        return FetchState(stage=Stage.NO_CLAIM if wanted else Stage.IDLE)
    record = _read(seen, names.fetched_annotation(seen.content), Record)
    failure = _read(seen, names.failed_annotation(seen.content), Failure)
    note: tuple[tuple[str, str | None], ...] = ()
    last = seen.jobs[-1] if seen.jobs else None
    if last is not None and _runs(last) and not _replaceable(seen, last):
        return _running(seen, last, record, failure)
    told = last is None or not _untold(last, record, failure)
    if last is not None and not told and last_words_due(seen, last, _pod_of(seen, last)):
        return replace(_running(seen, last, record, failure), wait_seconds=1.0)
    if last is not None and last.succeeded and (not record or record.attempt < last.attempt):
        record, failure = _record(seen, last, record), None
        note = (*_noted(seen, record), (names.failed_annotation(seen.content), None))
    elif last is not None and last.failed and _untold(last, record, failure):
        failure = _failure(seen, last, failure, is_first=record is None)
        note = (_written(seen, failure),)
    return _settled(seen, record, failure, note, wanted)


def held_up(seen: Observation, state: FetchState, *, refused: bool) -> FetchState:
    """The state while nothing may be fetched for the service. A Job that runs goes on, until the
    model is known not to fit and nobody else wants its files: who asks again goes on from there.
    What repairs a model does so for pods that serve it."""
    state = replace(state, start=None)
    last = seen.jobs[-1] if seen.jobs else None
    if not refused or seen.wanted_elsewhere or state.record is not None:
        return state
    if state.stage is not Stage.RUNNING or last is None or not _runs(last) or last.meta.deleting:
        return state
    return replace(state, discard=(*state.discard, last))


def _runs(job: JobView) -> bool:
    return not job.succeeded and not job.failed


def last_words_due(seen: Observation, job: JobView, pod: PodView | None) -> bool:
    """Whether the Job has just ended, and the pod that we know is not yet seen to have."""
    if pod is None or pod.ended or pod.main is None or pod.main.exited is not None:
        return False
    return job.finished is not None and seen.now - job.finished < LAST_WORDS_SECONDS


def _replaceable(seen: Observation, job: JobView) -> bool:
    """A fetch whose pod cannot start (no such image, Secret or node) and whose wish was mended
    since. One that has begun goes on: it fetches the same files."""
    pod = _pod_of(seen, job)
    begun = pod is not None and pod.main is not None and (pod.main.running or pod.main.exited)
    return _runs(job) and not begun and superseded(seen, job.asked)


def _running(
    seen: Observation, job: JobView, record: Record | None, failure: Failure | None
) -> FetchState:
    return FetchState(
        stage=Stage.RUNNING,
        record=record,
        failure=failure,
        pod=_pod_of(seen, job),
        repairing=record is not None,
        discard=_discard(seen, seen.jobs[:-1]),
    )


def _settled(
    seen: Observation,
    record: Record | None,
    failure: Failure | None,
    note: tuple[tuple[str, str | None], ...],
    wanted: bool,
) -> FetchState:
    """No Job runs that is to go on: what the records say, and whether to start one."""
    replaced = _discard(seen, tuple(job for job in seen.jobs if _replaceable(seen, job)))
    repair_at = _repair_at(seen, record)
    tell = _State(record, failure, note, repairing=repair_at is not None)
    if record is not None and repair_at is None:
        return tell.build(Stage.COMPLETE, discard=_discard(seen, seen.jobs))
    if not wanted:
        return tell.build(Stage.FAILED if failure else Stage.IDLE, discard=replaced)
    due = max(repair_at or 0.0, _retry_at(seen, failure))
    stage = Stage.FAILED if failure else Stage.WANTED
    if due > seen.now:
        return tell.build(stage, wait_seconds=due - seen.now, discard=replaced)
    wait = writer.wait_seconds(seen.writer, seen.now)
    if wait is not None and seen.writer is not None:
        waiting = tell.build(stage, wait_seconds=wait, discard=replaced)
        return replace(waiting, waits_for=f"{seen.writer.words} of claim {seen.mount.claim}")
    return tell.build(
        stage, start=_next_attempt(seen, record, failure), discard=_discard(seen, seen.jobs)
    )


@dataclass(frozen=True, slots=True)
class _State:
    record: Record | None
    failure: Failure | None
    note: tuple[tuple[str, str | None], ...]
    repairing: bool

    def build(
        self,
        stage: Stage,
        *,
        start: int | None = None,
        wait_seconds: float | None = None,
        discard: tuple[JobView, ...] = (),
    ) -> FetchState:
        return FetchState(
            stage=stage,
            record=self.record,
            failure=self.failure,
            repairing=self.repairing,
            start=start,
            wait_seconds=wait_seconds,
            note=self.note,
            discard=discard,
        )


def _discard(seen: Observation, jobs: tuple[JobView, ...]) -> tuple[JobView, ...]:
    """A Job whose end is in doubt stays: it is what is known of the claim's writer."""
    told = (job for job in jobs if not writer.is_in_doubt(seen.writer, job, seen.now))
    return tuple(job for job in told if not job.meta.deleting)


def _untold(job: JobView, record: Record | None, failure: Failure | None) -> bool:
    told = max(record.attempt if record else 0, failure.attempt if failure else 0)
    return job.attempt > told


def _next_attempt(seen: Observation, record: Record | None, failure: Failure | None) -> int:
    known = [job.attempt for job in seen.jobs]
    known += [entry.attempt for entry in (record, failure) if entry is not None]
    if seen.writer is not None:
        known.append(names.fetch_attempt(seen.writer.lease.holder, seen.stem))
    return max(known, default=0) + 1


def _read(seen: Observation, annotation: str, kind: type[R]) -> R | None:
    return recorded(seen.claim, annotation, kind)


def recorded(claim: ClaimView | None, annotation: str, kind: type[R]) -> R | None:
    """What a claim's annotation says of a fetch; None where it says nothing, or nothing of ours."""
    text = claim.meta.annotations.get(annotation) if claim else None
    if not text:
        return None
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError:
        return None


def _written(seen: Observation, entry: Record | Failure) -> tuple[str, str]:
    done = isinstance(entry, Record)
    key = (names.fetched_annotation if done else names.failed_annotation)(seen.content)
    return key, msgspec.json.encode(entry).decode()


def _noted(seen: Observation, record: Record) -> tuple[tuple[str, str | None], ...]:
    """With adapters the model is there for services without them too, if nobody noted it before:
    their failure is over, and no Job of theirs ended after the record."""
    own = names.fetched_annotation(model_content(seen.spec))
    written = _written(seen, record)
    if own == written[0] or model_record(seen) is not None:
        return (written,)
    failed = names.failed_annotation(model_content(seen.spec))
    failure = _read(seen, failed, Failure)
    attempt = max(record.attempt, failure.attempt if failure else 0)
    model = msgspec.structs.replace(record, attempt=attempt)
    return (written, (own, msgspec.json.encode(model).decode()), (failed, None))


def model_record(seen: Observation) -> Record | None:
    """What is known of the model itself on the claim, whatever adapters lie beside it."""
    return _read(seen, names.fetched_annotation(model_content(seen.spec)), Record)


def _pod_of(seen: Observation, job: JobView) -> PodView | None:
    found = [pod for pod in seen.fetch_pods if pod.job == job.meta.name]
    return found[-1] if found else None


def report_of(message: str) -> Report:
    """A termination message; an empty report where it is none of ours."""
    try:
        return msgspec.json.decode(message, type=Report)
    except msgspec.MsgspecError:
        return Report()


def _record(seen: Observation, job: JobView, before: Record | None) -> Record:
    pod = _pod_of(seen, job)
    ended = pod.main.exited if pod and pod.main else None
    report = report_of(ended.message) if ended else Report()
    return Record(
        attempt=job.attempt,
        at=job.finished or seen.now,
        commit=report.commit or (before.commit if before else None),
        bytes_total=report.bytes_total or (before.bytes_total if before else None),
        bytes_fetched=report.bytes_fetched,
        seconds=report.seconds,
        plan=report.plan or (before.plan if before else None),
        repairs=before.repairs + 1 if before else 0,
    )


def _failure(seen: Observation, job: JobView, before: Failure | None, *, is_first: bool) -> Failure:
    """`is_first`: of a model that was never whole on its claim; a repair's bytes say nothing."""
    reason, message = explain(_pod_of(seen, job), job.failure)
    before = before or Failure(attempt=0, at=0.0, failures=0, reason="", message="")
    told = seen.model_before if is_first else None
    done = (told.bytes_done if told is not None else None) or 0
    in_vain = before.failures if before.in_vain is None else before.in_vain
    return Failure(
        attempt=job.attempt,
        at=job.finished or seen.now,
        failures=before.failures + 1,
        reason=reason,
        message=message,
        asked=job.asked,
        bytes_done=max(done, before.bytes_done),
        in_vain=0 if done > before.bytes_done else in_vain + 1,
    )


def explain(pod: PodView | None, job_failure: str | None) -> tuple[str, str]:
    """Reason and message of a fetch that failed, from its pod if there still is one."""
    container = (pod.main if pod and pod.job else pod.init) if pod else None
    ended = (container.exited or container.last_exit) if container else None
    if ended is None:
        why = pod.phase_message if pod else job_failure
        return "Interrupted", f"the fetch ended without a word: {why or 'its pod is gone'}"
    report = report_of(ended.message)
    if report.reason:
        return report.reason, report.message or report.reason
    if pod is not None and container is not None and (cut := cut_short("fetch", pod, container)):
        return cut
    last = last_line(ended.message) or ended.reason
    return "FetchFailed", f"the fetch exited with {ended.code}: {last}"


_SIGNALS = {137: "was killed", 143: "was told to end"}
"""Exit codes of a container that somebody else ended: 128 and SIGKILL, or SIGTERM."""


def cut_short(what: str, pod: PodView, container: ContainerView) -> tuple[str, str] | None:
    """Reason and message of a fetch or a plan that ended not by itself; None for one that did."""
    ended = container.last_end
    if ended is not None and ended.reason == "OOMKilled":
        limit = container.memory_limit or "the node"
        return "OOMKilled", f"the {what} was killed at its memory limit ({limit})"
    if ended is None or ended.code not in _SIGNALS:
        return None
    why = pod.phase_message or ("its pod was deleted" if pod.meta.deleting else "nobody says why")
    return "Interrupted", f"the {what} {_SIGNALS[ended.code]}: {why}"


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("quire-engine: ") if lines else ""


def asked(seen: Observation) -> str:
    """Who wants the fetch and what decides how it goes, beside the content itself."""
    spec = seen.spec
    how = [
        spec.model.credentials_secret,
        spec.pod_template,
        str(spec.cache.size),
        seen.image,
        seen.defaults.network,
    ]
    return f"{seen.uid}:{names.digest(msgspec.json.encode(how, order='sorted').decode(), 8)}"


def superseded(seen: Observation, by: str) -> bool:
    """Whether a fetch was asked for by this service, and not as it would ask now."""
    return by.partition(":")[0] == seen.uid and by != asked(seen)


def _retry_at(seen: Observation, failure: Failure | None) -> float:
    if failure is None:
        return 0.0
    if superseded(seen, failure.asked):
        return 0.0
    return failure.at + failure.retry_seconds


def retry_seconds(failures: int) -> float:
    """The delay after this many failures in a row."""
    if failures == 0:
        return 0.0
    if failures <= len(RETRY_SECONDS):
        return RETRY_SECONDS[failures - 1]
    return RETRY_STEADY_SECONDS if failures < RETRY_PATIENT_AFTER else RETRY_PATIENT_SECONDS


def _repair_at(seen: Observation, record: Record | None) -> float | None:
    """When to repair, if a pod has found the files wrong since they were recorded."""
    if record is None:
        return None
    # Not those of earlier revisions: they may serve another model from another claim.
    found = [e for pod in seen.current_pods for e in exits(pod) if e.code in REPAIRABLE]
    if not any(e.finished > record.at for e in found):
        return None
    return record.at + record.repairs * REPAIR_SECONDS


def exits(pod: PodView) -> list[Exit]:
    """How the engine's container ended, now and before."""
    if pod.main is None:
        return []
    return [e for e in (pod.main.exited, pod.main.last_exit) if e is not None]


def mended(seen: Observation, record: Record) -> list[PodView]:
    """Pods that wait out a crash from before the repair: deleted, they start at once."""
    crashed = []
    for pod in seen.pods:
        bad = [e for e in exits(pod) if e.code in REPAIRABLE and e.finished <= record.at]
        stuck = pod.main is not None and not pod.main.running and not pod.meta.deleting
        if record.repairs and bad and stuck:
            crashed.append(pod)
    return crashed
