"""Fixtures of the control plane's tests."""

import pytest

from quire_operator.names import Key
from quire_operator.testing import Rig

CHAT = Key("default", "chat")


@pytest.fixture
def rig() -> Rig:
    """A control plane over an API server in memory."""
    return Rig()


@pytest.fixture
def chat() -> Key:
    """The service that most tests are about."""
    return CHAT
