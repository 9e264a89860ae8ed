"""A cluster as one user sees it, the operator over it, and a service that people ask about."""

from collections.abc import Awaitable, Callable

import pytest

from quire_operator.console.document import Document
from quire_operator.console.reading import read
from quire_operator.console.telling import document
from quire_operator.names import Key
from quire_operator.testing import Rig, service_manifest
from quire_operator.testing_console import ConsoleCluster

COMMIT = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
PLAN = {"weightBytes": 269_060_552, "kvBytesPerToken": 23_040, "maxModelLen": 8192}


@pytest.fixture
def cluster() -> ConsoleCluster:
    return ConsoleCluster()


@pytest.fixture
def rig(cluster: ConsoleCluster) -> Rig:
    """The operator, over the same cluster."""
    return Rig(cluster=cluster)


@pytest.fixture
def look(cluster: ConsoleCluster, chat: Key) -> Callable[[], Awaitable[Document]]:
    """What `kubectl quire status chat` finds now."""

    async def found() -> Document:
        return document(await read(cluster, chat, cluster.now, "https://api.example"))

    return found


@pytest.fixture
async def ready(rig: Rig, cluster: ConsoleCluster, chat: Key) -> ConsoleCluster:
    """chat, ready for a minute, with one pod that answers."""
    cluster.plans = {"commit": COMMIT, "bytesTotal": 272_389_213, "plan": PLAN}
    cluster.put(service_manifest(replicas=1))
    await rig.bring_up(chat, commit=COMMIT, bytesTotal=272_389_213, plan=PLAN)
    cluster.schedule("node-1")
    cluster.answer()
    cluster.now += 60
    return cluster
