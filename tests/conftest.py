"""The order in which two workers end together."""

import pytest

LONGEST = "test_golden.py"  # a third of the suite's time, and a module stays with one worker


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != LONGEST)
