"""What conditions are told from, and what the rules of `reasons.py` share. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from quire_operator.fetch import FetchState, Stage
from quire_operator.observe import Observation, PodEvent
from quire_operator.plan import Plan
from quire_operator.views import ContainerView, PodView

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
    """One service as it was seen, what is planned for it, and what applying that ran into."""

    seen: Observation
    plan: Plan
    problems: tuple[Problem, ...]

    @property
    def fetch(self) -> FetchState:
        return self.plan.fetch

    @property
    def ready_pods(self) -> int:
        return sum(pod.ready for pod in self.seen.current_pods)

    @property
    def plans(self) -> bool:
        """Whether all else waits for the memory plan, or is refused by it."""
        return self.plan.fit.holds_up

    @property
    def fetches(self) -> bool:
        """Whether pods wait for the fetch: one that serves already waits for no repair."""
        if self.plans:
            return False
        waits = self.fetch.stage in (Stage.NO_CLAIM, Stage.WANTED, Stage.RUNNING, Stage.FAILED)
        return waits and not (self.fetch.record is not None and self.ready_pods)

    @property
    def waiting_pods(self) -> tuple[PodView, ...]:
        """The pods that hold the service up: the plan's, the fetch's, later those of the wanted
        revision."""
        if self.plans:
            return (self.plan.fit.pod,) if self.plan.fit.pod is not None else ()
        if self.fetches:
            return (self.fetch.pod,) if self.fetch.pod is not None else ()
        return tuple(pod for pod in self.seen.current_pods if not pod.ready)

    def events(self, pod: PodView) -> tuple[PodEvent, ...]:
        """The newest first; none of a pod that nobody had to ask about."""
        return tuple(self.seen.pod_events.get(pod.meta.uid, ()))

    def newest_event(self, pod: PodView) -> PodEvent | None:
        return next(iter(self.events(pod)), None)

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """The containers of those pods."""
        return tuple(subject for pod in self.waiting_pods for subject in _subjects(pod))


@dataclass(frozen=True, slots=True)
class Subject:
    """A container that holds the service up."""

    pod: PodView
    container: ContainerView
    role: Literal["fetch", "engine", "other"]
    """A plan's counts as a fetch's: its end is told by what it reports."""

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"the {self.role}" if self.role != "other" else f"container {self.container.name}"

    @property
    def restarts(self) -> str:
        count = self.container.restarts
        return f"restarted {count} time{'s' if count != 1 else ''}"


def _subjects(pod: PodView) -> Iterable[Subject]:
    if pod.init is not None:
        yield Subject(pod, pod.init, "fetch")
    if pod.main is not None:
        yield Subject(pod, pod.main, "fetch" if pod.job else "engine")
    for container in pod.others:
        yield Subject(pod, container, "other")


Rule = Callable[[Case], str | None]
"""Finds one reason: its message, or None where it is not so."""


# ---- words ----


def short(text: str) -> str:
    """One line of at most MAX_MESSAGE characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= MAX_MESSAGE else flat[: MAX_MESSAGE - 1] + "…"


def size(count: int) -> str:
    """Such as "16.1 GB"."""
    return pair(count, count)[1]


def pair(done: int, total: int) -> tuple[str, str]:
    """Both in the larger one's unit, so that they compare at a glance."""
    units: Iterable[tuple[str, float]] = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
    for unit, factor in units:
        if total >= factor:
            return f"{done / factor:.1f}", f"{total / factor:.1f} {unit}"
    return str(done), f"{total} bytes"
