"""How seldom garbage is looked for: by the products of the thresholds."""

import gc
from collections.abc import Iterator

import pytest

from quire_engine.garbage import collect_briefly, collect_seldom


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_brief_collections_are_of_less_and_the_older_ones_as_seldom() -> None:
    collect_seldom()
    young, middle, old = gc.get_threshold()
    collect_briefly()
    brief = gc.get_threshold()
    assert brief[0] * 10 <= young
    assert brief[0] * brief[1] == young * middle
    assert brief[2] == old
