"""What pods say, against what they said before: old pages, restarts, lost pods, arrivals, TTFT."""

from dataclasses import replace

import pytest

from quire_operator.scaling_histogram import Histogram
from quire_operator.scaling_model import PodLoad, Ttft
from quire_operator.scaling_pods import REMEMBERED_SECONDS, PodMemory, Said
from quire_operator.scraper import Missing, PodMetrics

BOUNDS = (0.1, 1.0, float("inf"))


def page(ended: float = 0, made: float | None = None, **changes: object) -> PodMetrics:
    base = PodMetrics(PodLoad(0.0, 0.0, 0.0), Histogram(BOUNDS, (0.0, 0.0, 0.0)), ended, 1.0, made)
    return replace(base, **changes)  # type: ignore[arg-type]


class Pods:
    """A memory that hears one pod every 5 s."""

    def __init__(self) -> None:
        self.memory = PodMemory(window_seconds=60, doubt_seconds=15)
        self.now = 1000.0

    def hear(self, answer: PodMetrics | Missing | None, *starting: str) -> Said:
        """None: the pod is not ready, so nobody asks it."""
        said = self.memory.hear(self.now, {} if answer is None else {"a": answer}, starting)
        self.now += 5
        return said


def test_arrivals_are_the_requests_that_ended_since_the_last_page() -> None:
    pods = Pods()
    counts = [pods.hear(page(ended)).loads[0].arrivals for ended in (7, 7, 9, 9)]
    assert counts == [7, 0, 2, 0], "of an unknown past all counts"


def test_arrivals_across_a_lost_scrape_are_not_lost() -> None:
    pods = Pods()
    pods.hear(page(7))
    pods.hear(Missing("answered 500"))
    assert pods.hear(page(8)).loads[0].arrivals == 1


def test_without_the_counter_arrivals_are_not_known() -> None:
    pods = Pods()
    assert pods.hear(page(ended=None)).loads[0].arrivals is None  # type: ignore[arg-type]


def test_an_old_page_is_missing_until_a_new_one_comes() -> None:
    pods = Pods()
    old, new = page(made=10.0), page(made=15.0)
    assert pods.hear(old).missing == ()
    said = pods.hear(old)
    assert said.loads == ()
    assert said.missing == (
        "pod a answers an old page: its quire_metrics_time_seconds stands still",
    )
    assert pods.hear(old).loads == ()
    assert pods.hear(new).missing == ()


def test_a_clock_that_is_set_back_costs_one_round() -> None:
    pods = Pods()
    pods.hear(page(made=5000.0))
    assert pods.hear(page(made=10.0)).loads == ()
    assert len(pods.hear(page(made=15.0)).loads) == 1


def test_pages_without_a_time_are_never_old() -> None:
    pods = Pods()
    assert [len(pods.hear(page()).loads) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize(
    "fresh",
    [
        page(ended=3),
        page(ended=9, started=2.0),
        page(ended=9, ttft=Histogram(BOUNDS, (1.0, 1.0, 2.0))),
    ],
    ids=["requests fell", "another process", "the histogram fell"],
)
def test_a_pod_that_began_anew_is_doubted_for_a_while(fresh: PodMetrics) -> None:
    pods = Pods()
    pods.hear(page(ended=9, ttft=Histogram(BOUNDS, (1.0, 2.0, 3.0))))
    said = [pods.hear(fresh) for _ in range(4)]
    assert [one.doubtful for one in said] == [1, 1, 1, 0]
    assert said[0].missing == ("pod a has begun anew: its counters started over",)
    assert [len(one.loads) for one in said] == [1, 1, 1, 1], "its load may raise all the same"


def test_a_process_that_began_anew_has_served_all_that_it_counts() -> None:
    pods = Pods()
    pods.hear(page(ended=9))
    assert pods.hear(page(ended=9, started=2.0)).loads[0].arrivals == 9


def test_a_pod_that_is_lost_is_doubted_then_waited_for() -> None:
    pods = Pods()
    pods.hear(page(ended=9))
    said = [pods.hear(None, "a", "b") for _ in range(4)]
    assert [one.doubtful for one in said] == [1, 1, 1, 0], "a pod that never comes wedges nothing"
    assert said[0].missing == ("pod a was ready and is not any more",)
    back = pods.hear(page(ended=0, started=2.0))
    assert back.missing == ("pod a has begun anew: its counters started over",)


def test_a_pod_that_only_flickered_is_not_doubted_for_long() -> None:
    pods = Pods()
    pods.hear(page(ended=9))
    pods.hear(None, "a")
    assert pods.hear(page(ended=9)).doubtful == 1
    assert [pods.hear(page(ended=9)).doubtful for _ in range(2)] == [1, 0]


def test_pods_that_are_starting_for_the_first_time_are_no_loss() -> None:
    assert Pods().hear(None, "new").doubtful == 0


def test_a_pod_that_is_gone_for_long_is_forgotten() -> None:
    pods = Pods()
    pods.hear(page(ended=9))
    pods.now += REMEMBERED_SECONDS
    pods.hear(None)
    assert pods.hear(page(ended=3)).doubtful == 0


def test_ttft_is_that_of_the_window_over_all_pods() -> None:
    pods = Pods()
    pods.hear(page(ttft=Histogram(BOUNDS, (900.0, 900.0, 900.0))))
    said = pods.hear(page(ended=0, ttft=Histogram(BOUNDS, (900.0, 920.0, 920.0))))
    assert said.ttft is not None
    assert said.ttft.count == 20
    assert said.ttft.p95_seconds == pytest.approx(0.955)


def test_ttft_without_traffic_is_zero_and_with_waiting_requests_only_not_known() -> None:
    pods = Pods()
    assert pods.hear(page()).ttft == Ttft(0.0, 0)
    assert pods.hear(page(load=PodLoad(1.0, 0.0, 0.0))).ttft is None
    assert pods.hear(page(ttft=None)).ttft is None
