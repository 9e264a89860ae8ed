"""When a live object holds what is wanted, though the API server spells it otherwise."""

import pytest

from quire_operator.kinds import Manifest
from quire_operator.values import holds, quantity


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        ({"a": 1, "b": 2}, {"a": 1}),
        ({"cpu": "1"}, {"cpu": "1000m"}),
        ({"memory": "2Gi"}, {"memory": "2048Mi"}),
        ({"n": "2"}, {"n": 2}),
        ({}, {"empty": {}, "none": None, "list": [], "off": False}),
        ({"l": [{"name": "x", "added": 1}, {"name": "y"}]}, {"l": [{"name": "y"}, {"name": "x"}]}),
    ],
)
def test_holds(live: Manifest, wanted: Manifest) -> None:
    assert holds(live, wanted)


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        ({"a": 1}, {"a": 2}),
        ({}, {"a": 1}),
        ({"cpu": "1"}, {"cpu": "1001m"}),
        ({"on": True}, {"on": 1}),
        ({"on": 1}, {"on": True}),
        ({"l": [{"name": "x"}]}, {"l": [{"name": "y"}]}),
        ({"a": "text"}, {"a": {"b": 1}}),
    ],
)
def test_holds_not(live: Manifest, wanted: Manifest) -> None:
    assert not holds(live, wanted)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", 0.5),
        (2, 2.0),
        ("20Gi", 20 * 1024**3),
        ("1.5G", 1.5e9),
        ("many", None),
        ("1.2.3", None),
    ],
)
def test_quantity(text: object, value: float | None) -> None:
    assert quantity(text) == value
