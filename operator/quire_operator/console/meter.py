"""What pods' pages of two moments and more amount to: tokens a second, time to first token. Pure.

Counters are compared with the sample before, the histogram of first tokens over the last minute:
few requests end between two looks two seconds apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from quire_operator.names import Key
from quire_operator.scaling_histogram import Histogram, HistogramWindow, merged, quantile
from quire_operator.scaling_pods import TTFT_QUANTILE
from quire_operator.scraper import Missing, PodMetrics

WINDOW_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Page:
    """One pod's page: what the scaler reads of it, and the tokens that it generated so far."""

    metrics: PodMetrics
    generated: float | None


Answers = dict[Key, Page | Missing]
"""By pod."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one service, over those of its pods that answered; None: none of them says it."""

    running: float | None
    waiting: float | None
    kv_cache_utilization: float | None
    """The mean, as the scaler sees it."""
    ttft_p95_seconds: float | None
    """Of the last minute at most; None also when no request got its first token in it."""
    tokens_per_second: float | None
    """Generated since the sample before."""
    silent: tuple[tuple[str, str], ...]
    """(pod, why) of those that did not answer."""


@dataclass(slots=True)
class _Pod:
    window: HistogramWindow
    at: float = 0.0
    generated: float | None = None
    rate: float | None = None
    ttft: Histogram | None = None


class Meter:
    """The memory of all pods that were ever asked, as long as they are."""

    def __init__(self) -> None:
        self._pods: dict[Key, _Pod] = {}

    def hear(self, now: float, answers: Answers) -> None:
        """One round, `now` in seconds on a steady clock. Who is not asked any more is forgotten."""
        self._pods = {key: pod for key, pod in self._pods.items() if key in answers}
        for key, answer in answers.items():
            pod = self._pods.setdefault(key, _Pod(HistogramWindow(WINDOW_SECONDS)))
            if isinstance(answer, Page):
                _take(pod, now, answer)

    def figures(self, answers: Answers, pods: Iterable[Key]) -> Figures:
        """Of a service with these pods, by the round that was heard last."""
        found = {pod: answers[pod] for pod in pods if pod in answers}
        pages = {pod: page for pod, page in found.items() if isinstance(page, Page)}
        loads = [page.metrics.load for page in pages.values()]
        kept = [self._pods[pod] for pod in pages]
        ttft = merged(pod.ttft for pod in kept if pod.ttft is not None)
        usage = [value for load in loads if (value := load.kv_cache_utilization) is not None]
        return Figures(
            running=_sum(load.running for load in loads),
            waiting=_sum(load.waiting for load in loads),
            kv_cache_utilization=sum(usage) / len(usage) if usage else None,
            ttft_p95_seconds=None if ttft is None else quantile(TTFT_QUANTILE, ttft),
            tokens_per_second=_sum(pod.rate for pod in kept),
            silent=tuple((pod.name, a.why) for pod, a in found.items() if isinstance(a, Missing)),
        )


def _take(pod: _Pod, now: float, page: Page) -> None:
    """By the pod's own clock where it tells it: a slow answer was made when it says."""
    at = page.metrics.made if page.metrics.made is not None else now
    pod.rate = _rate(pod, at, page.generated)
    pod.at, pod.generated = at, page.generated
    if page.metrics.ttft is not None:
        pod.window.add(now, page.metrics.ttft)
        pod.ttft = pod.window.recent()


def _rate(pod: _Pod, at: float, generated: float | None) -> float | None:
    """None for the first page, an old one, and a process that began anew."""
    before, seconds = pod.generated, at - pod.at
    if before is None or generated is None or generated < before or seconds <= 0:
        return None
    return (generated - before) / seconds


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
