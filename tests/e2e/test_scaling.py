"""The builtin scaler: by time to first token, by waiting requests, and back, with its reasons."""

import itertools
import time
from collections.abc import Callable, Iterator

import openai
import pytest

from quire_cluster import kube, scaled, serving
from quire_cluster.scaled import Scaled

pytestmark = pytest.mark.e2e

DOWN_SECONDS = 10
BUILTIN: kube.Json = {
    "mode": "builtin",
    "minReplicas": 1,
    "scaleDown": {"stabilizationSeconds": DOWN_SECONDS, "maxStep": 2},
}
LONG_PROMPT_WORDS = 60  # about 300 tokens


@pytest.fixture(scope="module")
def service(quire: None) -> Iterator[Scaled]:
    with serving.fresh_namespace("scaling") as namespace:
        kube.apply(scaled.manifest(), namespace)
        kube.wait_ready(namespace, "chat")
        yield Scaled(namespace)


def test_a_late_first_token_adds_a_replica_while_nobody_waits(service: Scaled) -> None:
    targets = {"queueDepth": 50, "ttftSeconds": 0.1}
    service.scale_by(**BUILTIN, maxReplicas=2, targets=targets)
    with serving.connect(service.namespace) as client:
        _ask_long_until(client, lambda: service.replicas() == 2, seconds=60)
    [up, *_] = service.decisions()
    assert (up["from"], up["to"]) == (1, 2)
    assert up["reason"].startswith("TimeToFirstToken"), up
    assert float(up["inputs"]["ttftP95Seconds"]) > 0.1
    assert float(up["inputs"]["waiting"]) <= 1, "the queue was to be short"
    service.wait_ready(2)
    service.wait_ready(1, 150)


def test_a_burst_doubles_a_step_settles_and_goes_back_to_one(service: Scaled) -> None:
    service.scale_by(**BUILTIN, maxReplicas=4, targets={"queueDepth": 2})
    before = len(service.decisions())
    with scaled.burst(service, num_callers=16) as load:
        service.wait_replicas(4, scaled.START_SECONDS)
        ups = list(itertools.takewhile(_is_up, service.decisions()))
        service.wait_ready(4)
        kube.sleep(DOWN_SECONDS)
        assert service.replicas() == 4, "it did not stay where it had settled"
        result = load.stop()
    assert result.errors == ()
    assert result.num_answered > 0
    assert 1 <= len(ups) <= 3, (before, ups)
    for up in ups:
        assert up["to"] <= 2 * int(up["inputs"]["ready"]), up
        assert up["inputs"]["waiting"], "a decision carries the numbers that it was taken on"

    service.wait_ready(1, 150)
    downs = list(itertools.takewhile(lambda decision: not _is_up(decision), service.decisions()))
    path = [4, *(down["to"] for down in reversed(downs))]
    assert [down["from"] for down in reversed(downs)] == path[:-1], downs
    # How long the steps are depends on when the last callers had their answer.
    assert path[-1] == 1, path
    assert all(0 < a - b <= 2 for a, b in itertools.pairwise(path)), path
    assert kube.items("events", service.namespace), "changes are told as Events"


def _is_up(decision: kube.Json) -> bool:
    return bool(decision["to"] > decision["from"])


def _ask_long_until(client: openai.OpenAI, holds: Callable[[], bool], seconds: float) -> None:
    """One caller whose prompts take long to read; each is new, as answers of a cache
    come at once."""
    deadline = time.monotonic() + seconds
    for n in itertools.count():
        words = " ".join(str(n * LONG_PROMPT_WORDS + i) for i in range(LONG_PROMPT_WORDS))
        serving.ask(client, f"Sum these: {words}", max_tokens=1)
        if holds():
            return
        assert time.monotonic() < deadline, "no replica was added"
