"""What one service's pods say, judged against what they said before. Pure: time comes in.

A page alone can lie: a proxy repeats an old one, a restarted process has forgotten its queue, a pod
that has just died is simply not asked any more. Against the round before, each of them shows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from quire_operator.scaling_histogram import Histogram, HistogramWindow, merged, quantile
from quire_operator.scaling_model import PodLoad, Ttft
from quire_operator.scraper import Missing, PodMetrics

TTFT_QUANTILE = 0.95
REMEMBERED_SECONDS = 900.0  # a pod that is not ready: by then its restart is old news


@dataclass(frozen=True, slots=True)
class Said:
    """One round. loads: of the pods that answered with something new, arrivals filled in; doubtful:
    how many pods began anew or were lost a moment ago, so that what is known may be too little;
    missing: one sentence for each pod that is one of those, or gave nothing; ttft: None when it
    cannot be known."""

    loads: tuple[PodLoad, ...]
    doubtful: int
    missing: tuple[str, ...]
    ttft: Ttft | None


@dataclass(slots=True)
class _Pod:
    window: HistogramWindow
    last: PodMetrics | None = None
    answered: float | None = None
    anew: float | None = None  # when it was seen to have begun anew, or not to be ready any more
    why: str = ""
    lost: bool = False


class PodMemory:
    """The memory of one service. window_seconds: how far back TTFT looks; doubt_seconds: for how
    long a pod that began anew is not trusted to show the whole load."""

    def __init__(self, window_seconds: float, doubt_seconds: float) -> None:
        self._window_seconds = window_seconds
        self._doubt_seconds = doubt_seconds
        self._pods: dict[str, _Pod] = {}

    def hear(
        self, now: float, answers: Mapping[str, PodMetrics | Missing], starting: Iterable[str] = ()
    ) -> Said:
        """One round: what each ready pod answered, and the pods that run and are not ready."""
        missing = {name: a.why for name, a in answers.items() if isinstance(a, Missing)}
        loads: list[PodLoad] = []
        histograms: list[Histogram | None] = []
        for name, answer in answers.items():
            pod = self._pods.setdefault(name, _Pod(HistogramWindow(self._window_seconds)))
            if isinstance(answer, Missing):
                continue
            load = self._take(pod, answer, now)
            if isinstance(load, Missing):
                missing[name] = load.why
                continue
            loads.append(load)
            histograms.append(None if answer.ttft is None else pod.window.recent())
        self._lose(starting, now)
        doubted = self._doubted(now, {*answers, *starting} - missing.keys())
        self._forget(now, {*answers})
        said = tuple(f"pod {name} {why}" for name, why in sorted((missing | doubted).items()))
        return Said(tuple(loads), len(doubted), said, _ttft(histograms, loads))

    def _take(self, pod: _Pod, answer: PodMetrics, now: float) -> PodLoad | Missing:
        before, pod.last = pod.last, answer
        if before is not None and _is_old(before, answer):
            return Missing("answers an old page: its quire_metrics_time_seconds stands still")
        pod.answered, pod.lost = now, False
        if before is not None and _began_anew(before, answer):
            pod.anew, pod.why = now, "has begun anew: its counters started over"
        if answer.ttft is not None:
            pod.window.add(now, answer.ttft)
        return replace(answer.load, arrivals=_arrivals(before, answer))

    def _lose(self, starting: Iterable[str], now: float) -> None:
        """A pod that was ready and is not: what it held comes back to the others, or is gone."""
        for name in starting:
            pod = self._pods.get(name)
            if pod is not None and pod.answered is not None and not pod.lost:
                pod.lost, pod.anew, pod.why = True, now, "was ready and is not any more"

    def _doubted(self, now: float, names: set[str]) -> dict[str, str]:
        return {
            name: pod.why
            for name, pod in self._pods.items()
            if name in names and pod.anew is not None and now - pod.anew < self._doubt_seconds
        }

    def _forget(self, now: float, asked: set[str]) -> None:
        for name, pod in list(self._pods.items()):
            if name not in asked and now - (pod.answered or 0.0) > REMEMBERED_SECONDS:
                del self._pods[name]


def _is_old(before: PodMetrics, answer: PodMetrics) -> bool:
    """Its time stands still or goes back. Compared with the last page, not with the newest ever: a
    node's clock that was set back costs one round."""
    return before.made is not None and answer.made is not None and answer.made <= before.made


def _began_anew(before: PodMetrics, answer: PodMetrics) -> bool:
    other_process = (
        None not in (before.started, answer.started) and before.started != answer.started
    )
    return (
        other_process or _fell(before.ended, answer.ended) or _fell(_total(before), _total(answer))
    )


def _arrivals(before: PodMetrics | None, answer: PodMetrics) -> float | None:
    """Requests that ended since the last page; all of a process's when there is none to compare."""
    if answer.ended is None:
        return None
    if before is None or before.ended is None or _began_anew(before, answer):
        return answer.ended
    return answer.ended - before.ended


def _total(metrics: PodMetrics) -> float | None:
    return None if metrics.ttft is None else metrics.ttft.total


def _fell(before: float | None, now: float | None) -> bool:
    return before is not None and now is not None and now < before


def _ttft(histograms: list[Histogram | None], loads: list[PodLoad]) -> Ttft | None:
    """p95 over the window; None when a pod that answered has no histogram, or when requests wait
    and none of them got a token in all that time."""
    known = [histogram for histogram in histograms if histogram is not None]
    total = merged(known)
    if total is None or len(known) < len(histograms):
        return None
    p95 = quantile(TTFT_QUANTILE, total)
    if p95 is not None:
        return Ttft(p95, total.total)
    return None if any(load.waiting for load in loads) else Ttft(0.0, 0)
