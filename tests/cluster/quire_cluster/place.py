"""A namespace in which tests provoke what `Ready` tells, and how soon it does.

By the contract each reason is told within FOUND_SECONDS of its cause and gone within
CLEARED_SECONDS of its end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from quire_cluster import kube, serving
from quire_cluster.errors import NotReadyError

FOUND_SECONDS = 15
"""From a cause that the test itself makes, or that the cluster has just told of."""
CLEARED_SECONDS = 15
POD_SECONDS = 90
"""Where a pod has to come up first, on a busy machine."""


@dataclass(frozen=True)
class Place:
    """One namespace."""

    namespace: str

    # ---- services ----

    def apply(self, name: str, **spec: object) -> None:
        kube.apply(serving.manifest(name, **spec), self.namespace)

    def pause(self, *names: str) -> None:
        """No pod of these is wanted any more; until Ready says so, and nothing else."""
        for name in names:
            kube.patch("inferenceservice", name, self.namespace, {"spec": {"replicas": 0}})
        for name in names:
            self.found(name, "ScaledToZero", CLEARED_SECONDS)

    def stop(self, *names: str) -> None:
        """Takes services away; what they leave goes while the next test runs."""
        kube.kubectl(
            "delete", "inferenceservice", *names, "--ignore-not-found", "--wait=false",
            namespace=self.namespace,
        )  # fmt: skip

    @contextmanager
    def service(self, name: str, **spec: object) -> Iterator[str]:
        """A service for a while."""
        self.apply(name, **spec)
        try:
            yield name
        finally:
            self.stop(name)

    # ---- what Ready tells ----

    def found(self, name: str, reason: str, seconds: float = FOUND_SECONDS) -> str:
        """The message of Ready=False once it has this reason."""
        return kube.wait_reason(self.namespace, name, reason, seconds)

    def found_of_pod(self, name: str, reason: str) -> str:
        """The same, of a cause that lies in the service's pod: in time after the cluster first
        warned of that pod, as the kubelet takes its time on a busy machine."""
        message = self.found(name, reason, POD_SECONDS)
        self.told_in_time(name, reason, self.warned_of(self.pod(name)))
        return message

    def found_beside(self, name: str, reason: str, seconds: float = FOUND_SECONDS) -> str:
        """The message of Ready=True once it has this reason: pods serve all the same."""

        def told() -> str | None:
            now = self.ready(name)
            return str(now["message"]) if (now["status"], now["reason"]) == ("True", reason) else ""

        return kube.wait_until(told, seconds, f"{name} to be Ready=True/{reason}") or ""

    def cleared(self, name: str, reason: str, seconds: float = CLEARED_SECONDS) -> None:
        """Until Ready says something else, of the spec as it is now."""

        def gone() -> bool:
            service = kube.get("inferenceservice", name, self.namespace)
            now = kube.condition(service)
            current = now.get("observedGeneration") == service["metadata"]["generation"]
            return bool(now["reason"] != reason and current)

        try:
            kube.wait_until(gone, seconds, f"{name} not to be {reason} any more")
        except NotReadyError as error:
            raise NotReadyError(f"{error}; it says: {self.ready(name)['message']}") from error

    def told_in_time(self, name: str, reason: str, cause: datetime) -> None:
        """Asserts that this reason was told within FOUND_SECONDS of its cause: by the operator's
        Event, whatever else the test has waited for meanwhile."""
        turns = [when(e["firstTimestamp"]) for e in self.told(name) if e["reason"] == reason]
        late = (min(turns) - cause).total_seconds()
        assert late <= FOUND_SECONDS, f"{reason} was told {late:.0f} s after its cause"

    def told(self, name: str) -> list[kube.Json]:
        """What the operator told of a service in Events."""
        events = kube.items("events", self.namespace)
        mine = [e for e in events if e["involvedObject"]["name"] == name]
        return [e for e in mine if e["involvedObject"]["kind"] == "InferenceService"]

    def warned(self, name: str) -> list[str]:
        """The reasons of a service's Warnings, the first one first."""
        told = [event for event in self.told(name) if event["type"] == "Warning"]
        told.sort(key=lambda event: str(event["firstTimestamp"]))
        return [event["reason"] for event in told]

    def ready(self, name: str) -> kube.Json:
        return kube.condition(kube.get("inferenceservice", name, self.namespace) or {})

    # ---- when a cause arose ----

    def made(self, kind: str, name: str) -> datetime:
        """When the first object of this kind that a service has was made."""
        found = kube.items(kind, self.namespace, f"serving.quire.dev/service={name}")
        return min(when(each["metadata"]["creationTimestamp"]) for each in found)

    def warned_of(self, pod: kube.Json) -> datetime:
        """When the scheduler or the kubelet first warned of a pod."""
        events = kube.items("events", self.namespace)
        mine = [e for e in events if e["involvedObject"].get("uid") == pod["metadata"]["uid"]]
        warnings = [event for event in mine if event["type"] == "Warning"]
        return min(when(event["firstTimestamp"] or event["eventTime"]) for event in warnings)

    def ended(self, name: str) -> datetime:
        """When the first container of a service's pods ended, as far as the kubelet still knows."""
        pods = kube.items("pods", self.namespace, f"serving.quire.dev/service={name}")
        statuses = [s for pod in pods for s in pod["status"].get("containerStatuses", [])]
        states = [s.get(field, {}) for s in statuses for field in ("state", "lastState")]
        return min(when(s["terminated"]["finishedAt"]) for s in states if "terminated" in s)

    # ---- its pods ----

    def pod(self, name: str) -> kube.Json:
        """The one pod of a service that neither leaves nor has ended."""
        pods = kube.items("pods", self.namespace, f"serving.quire.dev/service={name}")
        [pod] = [pod for pod in pods if not _is_over(pod)]
        return pod

    def job_pod(self, component: str, *besides: str) -> kube.Json:
        """The pod of a fetch or a plan, once it runs; none of the names in `besides`."""

        def running() -> kube.Json | None:
            label = f"app.kubernetes.io/component={component}"
            pods = kube.items("pods", self.namespace, label)
            live = [p for p in pods if p["status"]["phase"] == "Running" and not _is_over(p)]
            return next((p for p in live if p["metadata"]["name"] not in besides), None)

        return kube.wait_until(running, POD_SECONDS, f"a {component} that runs")


def _is_over(pod: kube.Json) -> bool:
    ended = pod["status"].get("phase") in ("Failed", "Succeeded")
    return ended or "deletionTimestamp" in pod["metadata"]


def when(text: str) -> datetime:
    """A Kubernetes time."""
    return datetime.fromisoformat(text)
