"""Missing, stale and wrong metrics never take a pod away, are told at once, and heal by themselves.

Each fault meets two idle replicas, of which one would go as soon as the metrics were believed.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx
import pytest

from quire_cluster import faults, kube, scaled, serving
from quire_cluster.scaled import Scaled

pytestmark = pytest.mark.e2e

TOLD_SECONDS = 15
DOWN_SECONDS = 6
HOLD_SECONDS = 3 * DOWN_SECONDS


@pytest.fixture(scope="module")
def pair(quire: None) -> Iterator[Scaled]:
    """A service with two replicas."""
    with serving.fresh_namespace("faults") as namespace:
        kube.apply(scaled.manifest(replicas=2, scaling=_scaling(minimum=2)), namespace)
        service = Scaled(namespace)
        service.wait_ready(2, 240)
        yield service


@pytest.fixture
def operators() -> list[str]:
    """The addresses that the operator scrapes from."""
    pods = kube.items("pods", "quire-system", "app.kubernetes.io/name=quire")
    return [pod["status"]["podIP"] for pod in pods]


def _scaling(*, minimum: int) -> kube.Json:
    return {
        "mode": "builtin",
        "minReplicas": minimum,
        "maxReplicas": 2,
        "targets": {"queueDepth": 2},
        "scaleDown": {"stabilizationSeconds": DOWN_SECONDS},
    }


def test_unreachable(pair: Scaled, operators: list[str]) -> None:
    said = _hold_and_recover(pair, lambda pod: faults.cut_off(pod, *operators))
    assert said["reason"] == "MetricsPartial"


def test_garbage(pair: Scaled, operators: list[str]) -> None:
    page = b"vllm:num_requests_waiting many\n\xff\xfe<html>"
    said = _hold_and_recover(pair, lambda pod: faults.impersonate(pod, page, *operators))
    assert "garbage" in said["message"]


def test_a_page_that_stands_still(pair: Scaled, operators: list[str]) -> None:
    """The engine's own page, sound in every number, and the same one for ever."""

    @contextmanager
    def stale(pod: kube.Json) -> Iterator[None]:
        page = httpx.get(f"http://{pod['status']['podIP']}:8000/metrics").content
        with faults.impersonate(pod, page, *operators):
            yield

    _hold_and_recover(pair, stale)


def test_a_restart(pair: Scaled) -> None:
    """Counters begin again at 0: no reason to shrink, and no negative rate afterwards."""
    pair.wait_condition("True", 30)
    [victim, _] = pair.pods()
    began = time.monotonic()
    faults.kill_engine(victim)
    pair.scale_by(**_scaling(minimum=1))
    said = pair.wait_condition("False", TOLD_SECONDS - (time.monotonic() - began))
    assert said["reason"]
    kube.wait_until(lambda: _restarts(pair) == 1, 30, "the kubelet to restart the engine")
    kube.wait_until(lambda: pair.ready_replicas() == 2, 60, "the engine to be back")
    assert pair.replicas() == 2
    pair.scale_by(**_scaling(minimum=2))
    pair.wait_condition("True", 60)


def test_once_the_metrics_are_back_the_idle_replica_goes(pair: Scaled) -> None:
    """What the other tests held back was a scale-down, and nothing else held it back."""
    pair.scale_by(**_scaling(minimum=1))
    pair.wait_ready(1, 90)


def _hold_and_recover(
    pair: Scaled, fault: Callable[[kube.Json], AbstractContextManager[None]]
) -> kube.Json:
    """What condition Scaling said of the fault."""
    pair.wait_condition("True", 30)
    [victim, _] = pair.pods()
    began = time.monotonic()
    with fault(victim):
        said = pair.wait_condition("False", TOLD_SECONDS + began - time.monotonic())
        assert victim["metadata"]["name"] in said["message"]
        pair.scale_by(**_scaling(minimum=1))
        kube.sleep(HOLD_SECONDS)
        assert pair.replicas() == 2, "it shrank on what it did not know"
        assert pair.condition()["status"] == "False"
        pair.scale_by(**_scaling(minimum=2))  # keeps the pair for the next fault
    pair.wait_condition("True", 30)
    return said


def _restarts(pair: Scaled) -> int:
    return sum(
        container["restartCount"]
        for pod in pair.pods()
        for container in pod["status"]["containerStatuses"]
    )
