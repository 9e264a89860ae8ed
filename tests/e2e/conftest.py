"""A quire installed by its own chart on the test cluster, and one namespace for each test.

Run by `make e2e`, inside `quire_cluster exec`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from quire_cluster import installation, kube, serving
from quire_cluster.faults import AuditLog, Hub, SmallVolumes
from quire_cluster.layout import Layout
from quire_cluster.place import Place
from quire_cluster.settings import read_settings


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    if installation.IMAGE not in os.environ:
        pytest.exit("the end-to-end tests need the test cluster: run `make e2e`", returncode=2)
    hub = Hub(os.environ["QUIRE_HUB_ADDRESS"])
    hub.faults()
    yield hub
    hub.faults()


@pytest.fixture(scope="session")
def quire(hub: Hub) -> Iterator[None]:
    """The chart, installed; uninstalled at the end, its CRD with it."""
    installation.upgrade()
    yield
    installation.uninstall()


@pytest.fixture
def namespace(quire: None) -> Iterator[str]:
    with serving.fresh_namespace("e2e") as name:
        yield name


@pytest.fixture
def place(namespace: str, hub: Hub) -> Iterator[Place]:
    """The test's namespace, as tests of reasons look at it; the mirror is well afterwards."""
    yield Place(namespace)
    hub.faults()


@pytest.fixture(scope="module")
def chat(quire: None) -> Iterator[str]:
    """The namespace of a ready service `chat`, shared by the tests of one module."""
    with serving.fresh_namespace("chat") as name:
        kube.apply(serving.manifest(), name)
        kube.wait_ready(name, "chat")
        yield name


@pytest.fixture
def client(chat: str) -> Iterator[openai.OpenAI]:
    with serving.connect(chat) as client:
        yield client


@pytest.fixture
def audit_log() -> AuditLog:
    """What the API server carries out from now on."""
    return AuditLog(Path(os.environ["QUIRE_AUDIT_LOG"]))


@pytest.fixture(scope="session")
def hub_root() -> Path:
    """What the mirror serves, where tests may add models."""
    if os.environ.get("QUIRE_CLUSTER_NETWORK") != "direct":
        pytest.skip("the mirror of a given cluster serves what it was given")
    return Layout(read_settings().cache).hub


@pytest.fixture
def small_volumes(namespace: str) -> Iterator[SmallVolumes]:
    """Volumes of an enforced size; removed after the test's namespace."""
    volumes = SmallVolumes()
    yield volumes
    volumes.remove()
