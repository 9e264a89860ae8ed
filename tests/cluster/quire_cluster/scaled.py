"""A service whose scaling a test changes and watches."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from quire_cluster import kube, serving
from quire_cluster.errors import CommandError

START_SECONDS = 120
"""Several engines that start at once on two cores that already compute."""
_AUTOSCALERS = ("horizontalpodautoscalers", "scaledobjects.keda.sh")


def manifest(name: str = "chat", **spec: kube.Json) -> kube.Json:
    """A service with two slots an engine, so that a handful of callers make a queue."""
    small = {"engine": {"maxNumSeqs": 2}, "resources": {"gpus": 0, "memory": "2Gi"}}
    return serving.manifest(name, **small, **spec)


@dataclass(frozen=True)
class Scaled:
    """One InferenceService of the cluster."""

    namespace: str
    name: str = "chat"

    def get(self) -> kube.Json:
        text = kube.kubectl(
            "get", "inferenceservice", self.name, "-o", "json", "--show-managed-fields",
            namespace=self.namespace,
        )  # fmt: skip
        return json.loads(text)

    def scale_by(self, **scaling: object) -> None:
        """Another spec.scaling in place of the one that is there."""
        operation = {"op": "add", "path": "/spec/scaling", "value": scaling}
        kube.kubectl(
            "patch", "inferenceservice", self.name, "--type=json", "-p", json.dumps([operation]),
            namespace=self.namespace,
        )  # fmt: skip

    def set_replicas(self, replicas: int) -> None:
        kube.kubectl(
            "scale", "inferenceservice", self.name, f"--replicas={replicas}",
            namespace=self.namespace,
        )  # fmt: skip

    def replicas(self) -> int:
        wanted: int = self.get()["spec"].get("replicas", 1)
        return wanted

    def ready_replicas(self) -> int:
        ready: int = self.get().get("status", {}).get("readyReplicas", 0)
        return ready

    def condition(self) -> kube.Json:
        return kube.condition(self.get(), "Scaling")

    def decisions(self) -> list[kube.Json]:
        """Newest first."""
        found: list[kube.Json] = (
            self.get().get("status", {}).get("scaling", {}).get("decisions", [])
        )
        return found

    def pods(self) -> list[kube.Json]:
        selector = f"serving.quire.dev/service={self.name}"
        return kube.items("pods", self.namespace, selector)

    def writers(self) -> list[str]:
        """The field managers that own spec.replicas. Kubernetes (1.34) loses them for ever once 0
        was written through /scale: there the field is left out."""
        return [
            entry["manager"]
            for entry in self.get()["metadata"]["managedFields"]
            if "f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {})
        ]

    def autoscalers(self) -> list[str]:
        """`Kind/name` of everything that could scale it, KEDA's own HPA among it."""
        names = {self.name, f"keda-hpa-{self.name}"}
        return [
            f"{item['kind']}/{item['metadata']['name']}"
            for kind in _AUTOSCALERS
            for item in _items_of(kind, self.namespace)
            if item["metadata"]["name"] in names
        ]

    def wait_replicas(self, replicas: int, seconds: float) -> None:
        kube.wait_until(
            lambda: self.replicas() == replicas, seconds, f"spec.replicas of {replicas}"
        )

    def wait_ready(self, replicas: int, seconds: float = START_SECONDS) -> None:
        """Until exactly so many pods are wanted, there and ready."""
        kube.wait_until(
            lambda: (self.replicas(), self.ready_replicas(), len(self.pods())) == (replicas,) * 3,
            seconds,
            f"{replicas} ready replicas and no other pod",
        )

    def wait_condition(self, status: str, seconds: float, *reasons: str) -> kube.Json:
        """Condition Scaling once it says so; any reason without `reasons`."""
        return kube.wait_until(
            lambda: self._holds(status, reasons), seconds, f"Scaling={status}/{'|'.join(reasons)}"
        )

    def _holds(self, status: str, reasons: tuple[str, ...]) -> kube.Json | None:
        now = self.condition()
        fits = now["status"] == status and (not reasons or now["reason"] in reasons)
        return now if fits else None


def _items_of(kind: str, namespace: str) -> list[kube.Json]:
    try:
        return kube.items(kind, namespace)
    except CommandError as error:
        if "doesn't have a resource type" in str(error):
            return []
        raise


@contextmanager
def burst(service: Scaled, num_callers: int, limit_seconds: float = 180) -> Iterator[serving.Burst]:
    """Callers that ask all the while; ended and waited for on the way out."""
    with serving.connect(service.namespace, service.name) as client:
        load = serving.Burst(client, num_callers, limit_seconds, service.name)
        try:
            yield load
        finally:
            load.stop()
