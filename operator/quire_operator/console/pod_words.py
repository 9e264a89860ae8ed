"""A pod's state in one word, and its trouble in one line. Pure."""

from __future__ import annotations

from quire_operator import names
from quire_operator.console import words
from quire_operator.pod_rules import exit_words
from quire_operator.views import ContainerView, Exit, PodView


def state(pod: PodView) -> str:
    """What a person calls it; the kubelet's own word where it waits or has ended."""
    if pod.meta.deleting:
        return "Draining"
    if pod.ended:
        return pod.phase_reason or pod.phase
    if pod.unschedulable is not None:
        return "Unschedulable"
    if pod.init is not None and (pod.init.exited is None or pod.init.exited.code != 0):
        return _container_state(pod.init, "Fetching") or pod.phase
    if pod.ready and pod.job is None:
        return "Ready"
    return (_container_state(pod.main, _doing(pod.main)) if pod.main else None) or pod.phase


def _doing(container: ContainerView) -> str:
    """Of one that runs, by its name."""
    of_job = {names.FETCH_CONTAINER: "Fetching", names.PLAN_CONTAINER: "Planning"}
    return of_job.get(container.name, "Loading")


def _container_state(container: ContainerView, running: str) -> str | None:
    if container.waiting is not None:
        return container.waiting
    if container.exited is not None:
        return container.exited.reason or f"Exited {container.exited.code}"
    return running if container.running else None


def restarts(pod: PodView) -> int:
    return sum(container.restarts for container in (pod.init, pod.main) if container is not None)


def trouble(pod: PodView, now: float) -> str | None:
    """What holds it up, in the scheduler's or kubelet's words, or how a container ended last."""
    if pod.unschedulable is not None:
        return pod.unschedulable or "the scheduler finds no node"
    if pod.ended and pod.phase_message:
        return pod.phase_message
    ended = [found for c in (pod.main, pod.init) if c is not None and (found := _ended(c, now))]
    waits = [found for c in (pod.init, pod.main) if c is not None and (found := _waits(c))]
    return next(iter([*ended, *waits]), None)


def _waits(container: ContainerView) -> str | None:
    """Of an image that does not come, a Secret that is not there."""
    return container.waiting_message or None if container.waiting is not None else None


def _ended(container: ContainerView, now: float) -> str | None:
    """Its last end that was not a good one."""
    ended = [e for e in (container.exited, container.last_exit) if e is not None and _ill(e)]
    if not ended:
        return None
    ago = f"{words.age(now - ended[0].finished)} ago" if ended[0].finished else "before"
    if ended[0].reason == "OOMKilled":
        limit = container.memory_limit
        where = f"its memory limit of {limit}" if limit else "the node's memory"
        return f"killed at {where}, {ago}"
    return f"exited with {ended[0].code}, {ago}: {exit_words(ended[0])}"


def _ill(ended: Exit) -> bool:
    return ended.code != 0 or ended.reason not in ("", "Completed")
