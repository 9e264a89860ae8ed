"""A service that may sleep and its gateway, over a `testing.Rig`."""

from __future__ import annotations

from typing import Any

from quire_operator.kinds import CHILDREN, DEPLOYMENT, SERVICE_KIND, SLICE, Kind, Manifest
from quire_operator.names import Key
from quire_operator.testing import FakeCluster, Rig, service_manifest

CHAT = Key("default", "chat")
SLEEPS = {"mode": "builtin", "idleSecondsToZero": 60}
GATEWAY = ("198.51.100.7", "198.51.100.8")


def ours(cluster: FakeCluster) -> Manifest | None:
    """The slice that leads to the gateway."""
    found = [body for body in cluster.all(SLICE) if _is_ours(body)]
    return found[0] if found else None


def _is_ours(body: Manifest) -> bool:
    return bool(body["metadata"]["name"] == "chat-gateway")


def leads_to(cluster: FakeCluster) -> list[str]:
    """Everybody who would get a request to the service's address."""
    return [
        endpoint["addresses"][0]
        for body in cluster.all(SLICE)
        for endpoint in body["endpoints"]
        if endpoint["conditions"]["ready"]
    ]


def wish(rig: Rig, replicas: int, **spec: Any) -> None:
    """Writes spec.replicas, and what else changes."""
    body = rig.cluster.all(SERVICE_KIND)[0]
    body["spec"] |= {"replicas": replicas, **spec}
    rig.cluster.put(body, "quire-scaler")


def replicas(cluster: FakeCluster) -> list[int]:
    return [d["spec"]["replicas"] for d in cluster.all(DEPLOYMENT)]


def restarted(rig: Rig, *gateway: str) -> Rig:
    """Another operator over the same cluster, its world filled before it begins."""
    rig.cluster._listeners.clear()
    other = Rig(cluster=rig.cluster)
    for kind in (*CHILDREN, SERVICE_KIND):
        for body in rig.cluster.all(kind):
            other._feed(kind, "MODIFIED", body)
    if gateway:
        other.gateway(*gateway)
    return other


class Witness:
    """Looks at every change, and notes when an order was broken."""

    def __init__(self, rig: Rig) -> None:
        self.broken: list[str] = []
        self._rig = rig
        self._replicas: dict[str, int] = {}
        rig.cluster.subscribe(self._see)

    def _see(self, kind: Kind, event: str, body: Manifest) -> None:
        if kind is DEPLOYMENT:
            name, count = body["metadata"]["name"], body["spec"]["replicas"]
            count = 0 if event == "DELETED" else count
            before, self._replicas[name] = self._replicas.get(name, 0), count
            went = before > 0 and sum(self._replicas.values()) == 0
            if went and self._must_be_held() and ours(self._rig.cluster) is None:
                self.broken.append(f"{name} went to zero with nobody to take its requests")
        by_us = self._rig.cluster.writes[-1:] == ["DELETE EndpointSlice/chat-gateway"]
        ours_went = kind is SLICE and event == "DELETED" and by_us and _is_ours(body)
        if ours_went and self._must_be_held() and not leads_to(self._rig.cluster):
            gateway = self._rig.world.gateway
            if gateway is not None and gateway.addresses:
                self.broken.append("the gateway was let go before a pod answers")

    def _must_be_held(self) -> bool:
        services = self._rig.cluster.all(SERVICE_KIND)
        scaling = services[0]["spec"].get("scaling", {}) if services else {}
        return "idleSecondsToZero" in scaling and self._rig.world.gateway is not None


async def put_to_sleep(rig: Rig) -> None:
    """Brings a service up and lets it go to sleep."""
    rig.gateway(*GATEWAY)
    rig.cluster.put(service_manifest(scaling=SLEEPS))
    await rig.bring_up(CHAT)
    wish(rig, 0)
    await rig.settle()
    rig.cluster.run_deployments()
    await rig.settle()
