"""A real TLS server: who is let in, what is answered, and what happens when certificates change."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from quire_operator.errors import NotFound
from quire_operator.external_metrics import (
    ExternalMetrics,
    Identity,
    Server,
    TrustError,
    read_trust,
    selected_service,
)
from quire_operator.kinds import CONFIG_MAP
from quire_operator.names import Key
from quire_operator.readings import Reading, Readings
from quire_operator.testing import FakeCluster

CHAT = Key("default", "chat")
ROOT = "/apis/external.metrics.k8s.io/v1beta1"
QUEUE = f"{ROOT}/namespaces/default/quire_queue_depth"
READING = Reading(at=100.0, wall=1_700_000_000.0, ready=1, complete=True, waiting=3.0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Sleeps:
    """Ends the server's waiting when told."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._go = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await self._go.wait()
        self._go.clear()

    def go(self) -> None:
        self._go.set()


@dataclass
class Site:
    """A server, the cluster that it believes, and the authority that signs for it."""

    folder: Path

    def __post_init__(self) -> None:
        self.cluster = FakeCluster()
        self.proxy_ca = trustme.CA()
        self.our_ca = trustme.CA()
        self.readings = Readings()
        self.readings.put(CHAT, READING)
        self.now = 101.0
        self.trust(self.proxy_ca, "front-proxy-client")
        self.certify()
        identity = Identity(self.folder / "tls.crt", self.folder / "tls.key")
        metrics = ExternalMetrics(self.readings, 5.0, clock=lambda: self.now)
        self.port = free_port()
        self.sleeps = Sleeps()
        self.server = Server(metrics, self.cluster, identity, self.port, "127.0.0.1", self.sleeps)

    def trust(self, ca: trustme.CA, *names: str, above: str = "") -> None:
        """`above`: text before the certificate, as files of CAs often have it."""
        data = {
            "requestheader-client-ca-file": above + ca.cert_pem.bytes().decode(),
            "requestheader-allowed-names": json.dumps(names),
        }
        metadata = {"namespace": "kube-system", "name": "extension-apiserver-authentication"}
        head = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
        self.cluster.put(head | {"data": data})

    def certify(self) -> None:
        issued = self.our_ca.issue_cert("quire.quire-system.svc", "127.0.0.1")
        (self.folder / "tls.crt").write_bytes(issued.cert_chain_pems[0].bytes())
        issued.private_key_pem.write_to_path(self.folder / "tls.key")

    async def get(
        self,
        path: str,
        *,
        name: str | None = "front-proxy-client",
        ca: trustme.CA | None = None,
        user: str | None = "system:serviceaccount:kube-system:horizontal-pod-autoscaler",
        **query: str,
    ) -> tuple[int, Any]:
        context = ssl.create_default_context()
        self.our_ca.configure_trust(context)
        if name is not None:
            issued = (ca or self.proxy_ca).issue_cert(common_name=name)
            issued.configure_cert(context)
        headers = {"X-Remote-User": user} if user else {}
        url = f"https://127.0.0.1:{self.port}{path}"
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(url, params=query, ssl=context) as response,
        ):
            return response.status, await response.json()

    async def queue(self, **more: Any) -> tuple[int, Any]:
        return await self.get(QUEUE, labelSelector="service=chat", **more)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    await made.server.refresh()
    yield made
    await made.server.close()


# ---- who is let in ----


async def test_the_front_proxy_is_answered(site: Site) -> None:
    status, answer = await site.queue()
    assert status == 200
    assert answer["kind"] == "ExternalMetricValueList"
    assert answer["items"] == [
        {
            "metricName": "quire_queue_depth",
            "metricLabels": {"service": "chat"},
            "timestamp": "2023-11-14T22:13:20Z",
            "value": "3",
        }
    ]


async def test_who_has_no_certificate_is_unauthorized(site: Site) -> None:
    status, answer = await site.queue(name=None)
    assert status == 401
    assert (answer["kind"], answer["reason"]) == ("Status", "Unauthorized")


async def test_another_name_is_forbidden(site: Site) -> None:
    status, answer = await site.queue(name="kubelet")
    assert status == 403
    assert "kubelet" in answer["message"]


async def test_another_ca_does_not_get_through_the_handshake(site: Site) -> None:
    with pytest.raises(aiohttp.ClientError, match=r"(?i)unknown.ca|reset|disconnected"):
        await site.queue(ca=trustme.CA())


async def test_somebody_has_to_be_asking(site: Site) -> None:
    assert (await site.queue(user=None))[0] == 401


async def test_without_allowed_names_any_of_the_ca_is_believed(site: Site) -> None:
    site.trust(site.proxy_ca)
    await site.server.refresh()
    assert (await site.queue(name="aggregator"))[0] == 200


async def test_an_intermediate_ca_is_believed_without_its_root(site: Site) -> None:
    root, site.proxy_ca = site.proxy_ca, site.proxy_ca.create_child_ca()
    site.trust(site.proxy_ca, "front-proxy-client", above="# für den API-Server\n")
    await site.server.refresh()
    assert (await site.queue())[0] == 200
    with pytest.raises(aiohttp.ClientError):
        await site.queue(ca=root)


@pytest.mark.parametrize("path", ["/apis", ROOT, QUEUE, "/nowhere"])
async def test_nothing_is_told_to_strangers(site: Site, path: str) -> None:
    assert (await site.get(path, name=None))[0] == 401


# ---- what is answered ----


@pytest.mark.parametrize(
    ("reading", "now", "words"),
    [
        (replace(READING, complete=False, missing=("pod a timed out",)), 101.0, "pod a timed out"),
        (replace(READING, waiting=None), 101.0, "no quire_queue_depth"),
        (READING, 116.0, "too old"),
        (None, 101.0, "not been read yet"),
    ],
)
async def test_what_has_no_number_is_an_error(
    site: Site, reading: Reading | None, now: float, words: str
) -> None:
    site.now = now
    site.readings.forget(CHAT)
    if reading is not None:
        site.readings.put(CHAT, reading)
    status, answer = await site.queue()
    assert status == 503
    assert words in answer["message"]
    assert "items" not in answer


@pytest.mark.parametrize(
    ("path", "selector", "status"),
    [
        (f"{ROOT}/namespaces/default/other_metric", "service=chat", 404),
        (QUEUE, "", 400),
        (QUEUE, "app=chat", 400),
        (f"{ROOT}/namespaces/other/quire_queue_depth", "service=chat", 503),
        ("/openapi/v2", "", 404),
    ],
)
async def test_other_questions(site: Site, path: str, selector: str, status: int) -> None:
    found, answer = await site.get(path, labelSelector=selector)
    assert found == status
    assert answer["kind"] == "Status"


@pytest.mark.parametrize(
    ("selector", "name"),
    [
        ("service=chat", "chat"),
        ("service==chat", "chat"),
        ("service in (chat)", None),
        ("service=a,x=b", None),
        ("service=", None),
        ("service", None),
    ],
)
def test_selectors(selector: str, name: str | None) -> None:
    assert selected_service(selector) == name


async def test_discovery_names_the_metrics(site: Site) -> None:
    _, groups = await site.get("/apis")
    assert groups["groups"][0]["preferredVersion"]["groupVersion"] == ROOT.removeprefix("/apis/")
    _, group = await site.get("/apis/external.metrics.k8s.io")
    assert group["name"] == "external.metrics.k8s.io"
    _, resources = await site.get(ROOT)
    assert resources["groupVersion"] == "external.metrics.k8s.io/v1beta1"
    names = {resource["name"] for resource in resources["resources"]}
    assert names == {"quire_queue_depth", "quire_ttft_p95_seconds", "quire_kv_cache_utilization"}
    assert all(resource["namespaced"] for resource in resources["resources"])


# ---- what changes ----


async def test_another_front_proxy_is_believed_and_the_old_one_no_more(site: Site) -> None:
    before, site.proxy_ca = site.proxy_ca, trustme.CA()
    site.trust(site.proxy_ca, "front-proxy-client")
    await site.server.refresh()
    assert (await site.queue())[0] == 200
    with pytest.raises(aiohttp.ClientError):
        await site.queue(ca=before)


async def test_a_rotated_certificate_is_served(site: Site) -> None:
    site.our_ca = trustme.CA()
    site.certify()
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await site.queue()
    await site.server.refresh()
    assert (await site.queue())[0] == 200


async def test_a_broken_certificate_leaves_the_old_one(site: Site) -> None:
    (site.folder / "tls.crt").write_text("garbage")
    with pytest.raises(ssl.SSLError):
        await site.server.refresh()
    assert (await site.queue())[0] == 200


async def test_a_port_that_does_not_open_leaves_the_old_one_to_be_closed_later(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, site.proxy_ca = site.proxy_ca, trustme.CA()
    site.trust(site.proxy_ca, "front-proxy-client")

    async def refused(*_: Any, **__: Any) -> None:
        raise OSError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(asyncio.get_running_loop(), "create_server", refused)
        with pytest.raises(OSError, match="open files"):
            await site.server.refresh()
    assert (await site.queue(ca=before))[0] == 200
    await site.server.refresh()
    for _ in range(8):  # with two listeners the kernel would hand it to either
        with pytest.raises(aiohttp.ClientError):
            await site.queue(ca=before)


async def test_it_waits_for_a_cluster_that_says_whom_to_believe(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(tmp_path)
    site.cluster.unknown.add(CONFIG_MAP)
    running = asyncio.create_task(site.server.run())
    async with asyncio.timeout(10):
        while not site.sleeps.seconds:
            await asyncio.sleep(0)
        assert "external metrics" in caplog.text
        site.cluster.unknown.clear()
        site.sleeps.go()
        while len(site.sleeps.seconds) < 2:
            await asyncio.sleep(0)
    assert site.sleeps.seconds == [5.0, 60.0]
    assert (await site.queue())[0] == 200
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "no requestheader-client-ca-file"),
        (
            {"requestheader-client-ca-file": "x", "requestheader-allowed-names": "front"},
            "not a JSON list",
        ),
        *(
            (
                {"requestheader-client-ca-file": "x", "requestheader-allowed-names": names},
                "not a JSON list of names",
            )
            for names in ('"front"', "0", "{}", "[{}]")
        ),
    ],
)
async def test_a_cluster_that_says_nothing_of_use(data: dict[str, str], words: str) -> None:
    cluster = FakeCluster()
    with pytest.raises(NotFound):
        await read_trust(cluster)
    metadata = {"namespace": "kube-system", "name": "extension-apiserver-authentication"}
    cluster.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    with pytest.raises(TrustError, match=words):
        await read_trust(cluster)


@pytest.mark.parametrize("text", ["null", "[]", ""])
async def test_no_name_is_asked_for(text: str, tmp_path: Path) -> None:
    site = Site(tmp_path)
    metadata = {"namespace": "kube-system", "name": "extension-apiserver-authentication"}
    data = {"requestheader-client-ca-file": "x", "requestheader-allowed-names": text}
    site.cluster.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    assert (await read_trust(site.cluster)).allowed_names == frozenset()
