"""Fixtures of the control plane's tests."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from quire_operator.names import Key
from quire_operator.testing import Rig

CHAT = Key("default", "chat")


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the operator runs on: its transports, say, are none of asyncio's classes."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def rig() -> Rig:
    """A control plane over an API server in memory."""
    return Rig()


@pytest.fixture
def chat() -> Key:
    """The service that most tests are about."""
    return CHAT
