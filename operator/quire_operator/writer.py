"""Who may write a claim: its Lease `<claim>-writer`, which one fetch Job holds at a time. Pure.

    nobody's ─► taken for Job n, then Job n is made ─► renewed while Job n lives
                                                     ├─► it has ended, and its pod too: given back
                                                     └─► in doubt: its pod may still write. Not
                                                         renewed: given back, or it runs out

In doubt is a Job that has failed, or is gone, whose pod was not seen to end: it is being ended, its
node is lost, or it was deleted by force, after which nobody knows whether the process has ended. A
failed Job stays as long as it is in doubt: with it, the doubt outlives a restart of the operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from quire_operator.views import ClaimView, JobView, LeaseView, PodView

DURATION_SECONDS = 60
"""What a pod that nobody hears of is given to end: longer than its own grace of 10 s."""
RENEW_SECONDS = 15.0
"""After which whoever started the Job renews; with others looking on after twice that."""
ON_ITS_WAY_SECONDS = 10.0
"""A Job that was not made by then will not be: the Lease comes first, the Job by the next call."""
LOOK_SECONDS = 2.0
"""How often one who waits looks again: no watch tells him of another content's Job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """A claim's Lease, and what there is of its holder."""

    lease: LeaseView
    seconds_left: float
    """Until it has run out."""
    job: JobView | None
    pods: tuple[PodView, ...]
    """The holder's, ended ones included."""

    @property
    def words(self) -> str:
        """For people: who is being waited for."""
        return f"fetch {self.lease.holder}"


class Standing(Enum):
    """What is known of a holder."""

    LIVE = auto()
    IN_DOUBT = auto()
    OVER = auto()


@dataclass(frozen=True, slots=True)
class Hold:
    """Take the Lease for a Job, or renew it: the state of it that was seen is the precondition."""

    claim: ClaimView
    holder: str
    lease: LeaseView | None
    """None: there is none yet."""
    now: float
    """Epoch seconds."""
    duration_seconds: int = DURATION_SECONDS


@dataclass(frozen=True, slots=True)
class Release:
    """Give the Lease back: it is nobody's then, and stays with its claim."""

    lease: LeaseView


def standing(writer: Writer, now: float) -> Standing:
    """Whether the holder writes, may write, or will not write any more."""
    job = writer.job
    if not writer.lease.holder:
        return Standing.OVER
    if job is not None and not (job.meta.deleting or job.succeeded or job.failed):
        return Standing.LIVE
    if writer.seconds_left <= 0 or (job is not None and job.succeeded):
        return Standing.OVER
    if any(_may_write(pod) for pod in writer.pods):
        return Standing.IN_DOUBT
    if job is not None and job.failed:
        return Standing.OVER if writer.pods else Standing.IN_DOUBT
    taken = writer.lease.acquired
    just_taken = job is None and taken is not None and now - taken < ON_ITS_WAY_SECONDS
    return Standing.IN_DOUBT if just_taken else Standing.OVER


def _may_write(pod: PodView) -> bool:
    exited = pod.main is not None and pod.main.exited is not None
    return pod.on_node and not pod.ended and not exited


def wait_seconds(writer: Writer | None, now: float) -> float | None:
    """When to look again whether the Lease can be taken; None if it can be now."""
    if writer is None:
        return None
    match standing(writer, now):
        case Standing.LIVE:
            return LOOK_SECONDS
        case Standing.IN_DOUBT:
            return min(LOOK_SECONDS, writer.seconds_left)
        case Standing.OVER:
            return None


def is_in_doubt(writer: Writer | None, job: JobView, now: float) -> bool:
    """Whether this Job is to stay, as the holder that nobody knows the end of."""
    holds = writer is not None and writer.lease.holder == job.meta.name
    return holds and writer is not None and standing(writer, now) is Standing.IN_DOUBT


def move(
    writer: Writer | None,
    claim: ClaimView,
    *,
    starting: str | None,
    running: str | None,
    service: str,
    now: float,
) -> Hold | Release | None:
    """What to do with the Lease: `starting` is the Job that is to be made now (`wait_seconds` has
    said that it may), `running` the one that runs, `service` the uid of who looks."""
    if starting is not None:
        return Hold(claim, starting, writer.lease if writer is not None else None, now)
    if writer is None or not writer.lease.holder:
        # Of a Job that runs: somebody took it off, or an operator that knew of no Leases made it.
        lease = writer.lease if writer is not None else None
        return Hold(claim, running, lease, now) if running is not None else None
    match standing(writer, now):
        case Standing.OVER:
            return Release(writer.lease)
        case Standing.LIVE if _is_due(writer, service):
            return Hold(claim, writer.lease.holder, writer.lease, now)
        case _:
            return None


def _is_due(writer: Writer, service: str) -> bool:
    """Two services that share a claim would meet in a conflict: its starter goes first."""
    starter = writer.job is not None and service in writer.job.meta.owners
    since = writer.lease.duration_seconds - writer.seconds_left
    return since >= (RENEW_SECONDS if starter else 2 * RENEW_SECONDS)
