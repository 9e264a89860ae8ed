"""The fake API server's fields: what an apply takes back is gone, what others own stays."""

import random

import pytest

from quire_operator.testing_fields import leaves, take_back, value_at


def body() -> dict[str, object]:
    return {"status": {"conditions": [{"type": "A", "status": "True"}, {"type": "B"}]}}


@pytest.mark.parametrize("seed", range(4))
def test_an_item_goes_with_its_last_field_in_whatever_order(seed: int) -> None:
    live = body()
    gone = [path for path in leaves(live) if "type=A" in path]
    random.Random(seed).shuffle(gone)
    for path in gone:
        take_back(live, path)
    assert live == {"status": {"conditions": [{"type": "B"}]}}


def test_an_item_of_which_others_own_a_field_stays() -> None:
    live = body()
    take_back(live, ("status", "conditions", "type=A", "type"))
    assert value_at(live, ("status", "conditions", "type=A", "status")) == "True"
