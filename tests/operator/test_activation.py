"""When a Lease counts as fresh, whatever the clock of who wrote it."""

import pytest

from quire_operator.activation import Sighting, sight
from quire_operator.kinds import LEASE
from quire_operator.names import Key
from quire_operator.projections import project
from quire_operator.testing_endpoints import activation_lease
from quire_operator.views import LeaseView

NOW = 1_700_000_000.0
SECONDS = 15


def lease(renewed: float | None, uid: str = "lease-1", holder: str = "gateway-0") -> LeaseView:
    body = activation_lease(Key("default", "chat"), SECONDS, renewed or 0.0)
    body["metadata"] |= {"uid": uid, "resourceVersion": "1"}
    body["spec"]["holderIdentity"] = holder
    if renewed is None:
        del body["spec"]["renewTime"]
    view = project(LEASE, body)
    assert isinstance(view, LeaseView)
    return view


@pytest.mark.parametrize(
    ("age", "fresh"), [(0, True), (14.5, True), (15, False), (3600, False), (-3600, True)]
)
def test_a_lease_that_is_found_is_taken_at_its_word(age: float, fresh: bool) -> None:
    """After a start, say: it was written while nobody watched."""
    assert sight(None, lease(NOW - age), NOW).is_fresh(NOW) is fresh


def test_a_clock_ahead_keeps_nothing_awake_for_longer() -> None:
    found = sight(None, lease(NOW + 3600), NOW)
    assert found.is_fresh(NOW + SECONDS - 1)
    assert not found.is_fresh(NOW + SECONDS)


def test_a_clock_behind_wakes_with_its_second_write() -> None:
    first = sight(None, lease(NOW - 3600), NOW)
    assert not first.is_fresh(NOW)
    second = sight(first, lease(NOW - 3595), NOW + 5)
    assert second.is_fresh(NOW + 5 + SECONDS - 1)
    assert not second.is_fresh(NOW + 5 + SECONDS)


def test_a_clock_that_was_set_back_still_renews() -> None:
    first = sight(None, lease(NOW), NOW)
    assert sight(first, lease(NOW - 500), NOW + 100).is_fresh(NOW + 100)


def test_a_change_that_renews_nothing_prolongs_nothing() -> None:
    first = sight(None, lease(NOW), NOW)
    assert not sight(first, lease(NOW), NOW + 14).is_fresh(NOW + 16)


def test_another_lease_of_the_name_is_found_anew() -> None:
    first = sight(None, lease(NOW - 100), NOW)
    assert not sight(first, lease(NOW - 50, uid="lease-2"), NOW).is_fresh(NOW)


@pytest.mark.parametrize("given_up", [lease(NOW, holder=""), lease(None)])
def test_a_lease_that_nobody_holds_wakes_nobody(given_up: LeaseView) -> None:
    before: list[Sighting | None] = [None, sight(None, lease(NOW - 1), NOW)]
    assert not any(sight(known, given_up, NOW).is_fresh(NOW) for known in before)
