"""Fixtures of the control plane's tests."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from quire_cluster.chart import Helm, Renderer, helm_program
from quire_operator.names import Key
from quire_operator.testing import Rig
from quire_operator.testing_sleep import put_to_sleep

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


@pytest.fixture
async def asleep(rig: Rig) -> Rig:
    """A control plane whose one service was up and has been put to sleep."""
    await put_to_sleep(rig)
    return rig


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Helm, as the test cluster has it."""
    return helm_program()


@pytest.fixture(scope="session")
def render(helm: Helm) -> Renderer:
    """`render(values, release)`: what the chart makes of them."""
    return Renderer(helm)


@pytest.fixture
def held(rig: Rig) -> Rig:
    """Plans wait until the test says how they end."""
    rig.cluster.plans = None
    return rig
