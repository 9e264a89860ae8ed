"""Finding the gateway's pods."""

import pytest

from quire_operator import names
from quire_operator.errors import NotFound, QuireError, Unavailable
from quire_operator.gateway import GatewayPoll
from quire_operator.kinds import SLICE, Kind, Manifest
from quire_operator.main import Operator
from quire_operator.settings import Settings
from quire_operator.testing import FakeCluster
from quire_operator.views import Gateway


def endpoints(
    name: str, *addresses: str, family: str = "IPv4", ready: bool | None = True
) -> Manifest:
    return {
        "apiVersion": SLICE.api_version,
        "kind": SLICE.kind,
        "metadata": {
            "namespace": "quire-system",
            "name": name,
            "labels": {names.SLICE_SERVICE: name.rpartition("-")[0]},
        },
        "addressType": family,
        "ports": [{"name": "http", "port": 8000}],
        "endpoints": [{"addresses": [a], "conditions": {"ready": ready}} for a in addresses],
    }


async def found(*slices: Manifest) -> Gateway:
    cluster, told = FakeCluster(), list[Gateway]()
    for body in slices:
        cluster.put(body)
    await GatewayPoll(cluster, "quire-system", "gate", told.append).look()
    return told[-1]


async def test_ready_pods_of_that_service_only() -> None:
    assert await found(
        endpoints("gate-a", "198.51.100.8", "198.51.100.7"),
        endpoints("gate-b", "198.51.100.9", ready=False),
        endpoints("gate-c", "198.51.100.6", ready=None),
        endpoints("other-a", "198.51.100.1"),
        endpoints("gate-v6", "2001:db8::1", family="IPv6"),
    ) == Gateway(("198.51.100.6", "198.51.100.7", "198.51.100.8"), "IPv4")


async def test_a_cluster_of_the_other_family() -> None:
    assert await found(endpoints("gate-a", "2001:db8::1", family="IPv6")) == Gateway(
        ("2001:db8::1",), "IPv6"
    )


async def test_no_service_is_no_pods() -> None:
    assert await found() == Gateway(())


class Flaky(FakeCluster):
    """An API server that does not answer for a while."""

    away = False

    async def list_objects(self, kind: Kind, *args: object, **more: object) -> list[Manifest]:
        if self.away:
            raise Unavailable(0, "GET endpointslices", "no answer")
        return await super().list_objects(kind, *args, **more)  # type: ignore[arg-type]


class EndOfTestError(Exception):
    pass


async def test_an_outage_changes_nothing_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster, told, seconds = Flaky(), list[Gateway](), list[float]()
    cluster.put(endpoints("gate-a", "198.51.100.7"))

    async def sleep(period: float) -> None:
        seconds.append(period)
        cluster.away = 3 <= len(seconds) <= 6
        if len(seconds) == 9:
            raise EndOfTestError

    poll = GatewayPoll(cluster, "quire-system", "gate", told.append, sleep)
    with pytest.raises(EndOfTestError):
        await poll.run()
    assert set(told) == {Gateway(("198.51.100.7",))}
    assert len(told) == 4
    assert [r.message for r in caplog.records] == [
        "the gateway's endpoints (gate) are not read: GET endpointslices: 0 : no answer",
        "the gateway's endpoints (gate) are read again",
    ]
    assert max(seconds) <= 1.0, "a pod that went must not be sent requests for long"


async def test_nothing_is_planned_before_the_gateway_is_known() -> None:
    settings = Settings(engine_image="e", gateway_service="gate", namespace="quire-system")
    operator = Operator(settings, None, None)  # type: ignore[arg-type]
    cluster = FakeCluster()
    cluster.put(endpoints("gate-a", "198.51.100.7"))
    assert operator.gateway is not None
    operator.gateway._client = cluster

    async def none() -> None:
        assert operator.world.gateway == Gateway(("198.51.100.7",))
        raise NotFound(404, "GET inferenceservices", "stop here")

    operator.sweeper.fill = none  # type: ignore[method-assign]
    with pytest.raises(QuireError):
        await operator.run()


async def test_without_the_setting_there_is_none() -> None:
    operator = Operator(Settings(engine_image="e"), None, None)  # type: ignore[arg-type]
    assert operator.gateway is None
    assert operator.world.gateway is None
