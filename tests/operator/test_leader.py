"""Leadership over a Lease, on clocks that the test moves: one leader, a successor in time."""

from typing import Any

import pytest

from quire_operator.errors import AlreadyExists, Conflict, NotFound, NotLeader, Unavailable
from quire_operator.kinds import Kind, Manifest
from quire_operator.leader import Leader, LeaseLost

LEASE_SECONDS = 15.0


class LeaseServer:
    """One Lease with resourceVersion preconditions; `down` makes it unreachable."""

    def __init__(self) -> None:
        self.lease: Manifest | None = None
        self.version = 0
        self.down = False

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        self._check()
        if self.lease is None:
            raise NotFound(404, "GET lease", "not found")
        return self._copy()

    async def create(self, manifest: Manifest, manager: str) -> Manifest:
        self._check()
        if self.lease is not None:
            raise AlreadyExists(409, "POST lease", "exists", "AlreadyExists")
        return self._store(manifest)

    async def replace(self, manifest: Manifest) -> Manifest:
        self._check()
        if self.lease is None:
            raise NotFound(404, "PUT lease", "not found")
        if manifest["metadata"].get("resourceVersion") != str(self.version):
            raise Conflict(409, "PUT lease", "changed")
        return self._store(manifest)

    def _check(self) -> None:
        if self.down:
            raise Unavailable(0, "lease", "no answer")

    def _store(self, manifest: Manifest) -> Manifest:
        self.version += 1
        metadata = manifest["metadata"] | {"resourceVersion": str(self.version)}
        self.lease = manifest | {"metadata": metadata}
        return self._copy()

    def _copy(self) -> Manifest:
        assert self.lease is not None
        return {k: dict(v) if isinstance(v, dict) else v for k, v in self.lease.items()}


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def leader(server: LeaseServer, clock: Time, name: str, **more: Any) -> Leader:
    return Leader(server, "quire", name, LEASE_SECONDS, clock=clock, wall=lambda: 0.0, **more)


@pytest.fixture
def server() -> LeaseServer:
    return LeaseServer()


@pytest.fixture
def clock() -> Time:
    return Time()


async def test_the_first_one_leads_and_the_second_waits(server: LeaseServer, clock: Time) -> None:
    a, b = leader(server, clock, "a"), leader(server, clock, "b")
    await a._attempt()
    await b._attempt()
    assert a.is_leader
    assert not b.is_leader
    with pytest.raises(NotLeader, match="b does not hold"):
        b.guard()


async def test_a_dead_leader_is_replaced_within_20_seconds(
    server: LeaseServer, clock: Time
) -> None:
    a, b = leader(server, clock, "a"), leader(server, clock, "b")
    await a._attempt()
    await b._attempt()
    died = clock.now
    while not b.is_leader:
        clock.now += LEASE_SECONDS / 5
        await b._attempt()
        assert not (a.is_leader and b.is_leader)
    assert clock.now - died <= 20
    assert server.lease is not None
    assert server.lease["spec"]["leaseTransitions"] == 2


async def test_a_live_leader_is_not_replaced(server: LeaseServer, clock: Time) -> None:
    a, b = leader(server, clock, "a"), leader(server, clock, "b")
    await a._attempt()
    for _ in range(50):
        clock.now += 3
        await a._renew()
        await b._attempt()
        assert a.is_leader
        assert not b.is_leader


async def test_no_two_lead_while_one_is_cut_off(server: LeaseServer, clock: Time) -> None:
    a, b = leader(server, clock, "a"), leader(server, clock, "b")
    await a._attempt()
    await b._attempt()
    for _ in range(40):  # a renews no more: it hangs, or its network is gone
        clock.now += 0.5
        await b._attempt()
        assert not (a.is_leader and b.is_leader)
    assert b.is_leader
    with pytest.raises(LeaseLost, match="held by 'b'"):
        await a._renew()


async def test_writes_stop_a_third_of_the_lease_before_its_end(
    server: LeaseServer, clock: Time
) -> None:
    a = leader(server, clock, "a")
    await a._attempt()
    clock.now += LEASE_SECONDS * 2 / 3 - 0.1
    a.guard()
    clock.now += 0.2
    with pytest.raises(NotLeader):
        a.guard()


async def test_an_outage_shorter_than_the_deadline_is_sat_out(
    server: LeaseServer, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = leader(server, clock, "a")
    await a._attempt()

    async def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr("quire_operator.leader.asyncio.sleep", sleep)
    server.down = True
    await a._renew()
    assert a.is_leader
    server.down = False
    await a._renew()
    clock.now += 9
    assert a.is_leader


async def test_a_late_renewal_looks_at_everything_again(server: LeaseServer, clock: Time) -> None:
    woken: list[float] = []
    a = leader(server, clock, "a", on_leading=lambda: woken.append(clock.now))
    await a._attempt()
    clock.now += 9
    await a._renew()
    assert woken == []
    clock.now += 11  # stalled: keys reconciled since second 10 were dropped
    assert not a.is_leader
    await a._renew()
    assert a.is_leader
    assert woken == [1020.0]


async def test_an_outage_past_the_deadline_loses_the_lease(
    server: LeaseServer, clock: Time
) -> None:
    a = leader(server, clock, "a")
    await a._attempt()
    server.down = True
    clock.now += LEASE_SECONDS
    with pytest.raises(LeaseLost, match="not renewed in time"):
        await a._renew()


async def test_run_leads_wakes_and_ends_when_the_lease_is_taken(
    server: LeaseServer, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken = []
    a = leader(server, clock, "a", on_leading=lambda: woken.append(clock.now))

    async def sleep(seconds: float) -> None:
        clock.now += seconds
        if clock.now > 1020 and server.lease is not None:
            server.lease["spec"]["holderIdentity"] = "thief"
            server.version += 1
            server.lease["metadata"]["resourceVersion"] = str(server.version)

    monkeypatch.setattr("quire_operator.leader.asyncio.sleep", sleep)
    with pytest.raises(LeaseLost, match="thief"):
        await a.run()
    assert woken == [1000.0]
    assert not a.is_leader


async def test_a_released_lease_is_taken_at_once(server: LeaseServer, clock: Time) -> None:
    a, b = leader(server, clock, "a"), leader(server, clock, "b")
    await a._attempt()
    await a.release()
    assert not a.is_leader
    await b._attempt()
    assert b.is_leader


async def test_a_process_that_comes_back_under_its_name_need_not_wait(
    server: LeaseServer, clock: Time
) -> None:
    a = leader(server, clock, "a")
    await a._attempt()
    again = leader(server, clock, "a")
    await again._attempt()
    assert again.is_leader
