"""The chart's metrics API for HPAs and its Service for KEDA: certificate, rights, upgrades."""

import base64
import contextlib
import http.server
import json
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quire_cluster.chart import Helm, Object, Renderer, read, template
from quire_operator import served_metrics, settings

# The first run on a machine builds Helm, which takes two minutes.
pytestmark = pytest.mark.timeout(900)


METRICS_API = {"externalMetrics": {"enabled": True}}
API_SERVICE = "v1beta1.external.metrics.k8s.io"


def test_no_autoscaler_is_answered_by_default(render: Renderer) -> None:
    default = render()
    assert not default.of("APIService") + default.of("Secret")
    assert [service["metadata"]["name"] for service in default.of("Service")] == ["quire-metrics"]
    assert {port["name"] for port in default.container["ports"]} == {"metrics", "probes"}


def test_external_metrics_are_served_by_a_certificate_that_the_api_server_knows(
    render: Renderer, tmp_path: Path
) -> None:
    rendered = render(METRICS_API)
    api, secret = rendered.one("APIService"), rendered.one("Secret")
    assert api["metadata"]["name"] == API_SERVICE
    service = next(s for s in rendered.of("Service") if s["metadata"]["name"].endswith("-api"))
    assert api["spec"]["service"] == {
        "name": service["metadata"]["name"],
        "namespace": "quire-system",
        "port": service["spec"]["ports"][0]["port"],
    }
    assert api["spec"]["caBundle"] == secret["data"]["ca.crt"]
    for name, data in secret["data"].items():
        (tmp_path / name).write_bytes(base64.b64decode(data))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    shake_hands(server, tmp_path / "ca.crt", f"{service['metadata']['name']}.quire-system.svc")


def shake_hands(server: ssl.SSLContext, ca: Path, name: str) -> None:
    """A client that knows the CA only, against the server's certificate. Raises ssl.SSLError."""
    context = ssl.create_default_context(cafile=str(ca))
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(ours, theirs, server_hostname=name)
    answering = server.wrap_bio(theirs, ours, server_side=True)
    for _ in range(3):
        for side in (client, answering):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    assert client.version() is not None


def test_the_operator_reads_the_certificate_that_the_chart_made(render: Renderer) -> None:
    rendered = render(METRICS_API)
    (mount,) = [m for m in rendered.container["volumeMounts"] if m["name"] == "external-metrics"]
    defaults = settings.Settings(engine_image="x")
    assert str(defaults.external_metrics_certificate) == f"{mount['mountPath']}/tls.crt"
    assert str(defaults.external_metrics_key) == f"{mount['mountPath']}/tls.key"
    (volume,) = [v for v in rendered.pod["volumes"] if v["name"] == "external-metrics"]
    assert volume["secret"]["secretName"] == rendered.one("Secret")["metadata"]["name"]


def test_a_certificate_of_ones_own(render: Renderer) -> None:
    values = {"enabled": True, "existingSecret": "tls", "caBundle": "QQ=="}
    rendered = render({"externalMetrics": values})
    assert not rendered.of("Secret")
    assert rendered.one("APIService")["spec"]["caBundle"] == "QQ=="
    (volume,) = [v for v in rendered.pod["volumes"] if v["name"] == "external-metrics"]
    assert volume["secret"]["secretName"] == "tls"


def test_who_gets_which_rights_for_external_metrics(render: Renderer) -> None:
    rendered = render({**METRICS_API, "rbac": {"aggregateToUserRoles": False}})
    role = next(r for r in rendered.of("ClusterRole") if r["metadata"]["name"].endswith("-api"))
    assert role["rules"] == [
        {
            "apiGroups": ["external.metrics.k8s.io"],
            "resources": list(served_metrics.METRICS),
            "verbs": ["get", "list"],
        }
    ]
    name = role["metadata"]["name"]
    binding = next(b for b in rendered.of("ClusterRoleBinding") if b["metadata"]["name"] == name)
    assert [s["name"] for s in binding["subjects"]] == ["horizontal-pod-autoscaler"]
    (reader,) = [
        b for b in rendered.of("RoleBinding") if b["metadata"]["namespace"] == "kube-system"
    ]
    assert reader["roleRef"]["name"] == "extension-apiserver-authentication-reader"
    assert [s["name"] for s in reader["subjects"]] == ["quire"]


def test_a_long_name_still_makes_services(render: Renderer) -> None:
    scaler = {"keda": {"externalScaler": {"enabled": True}}}
    rendered = render({**METRICS_API, **scaler, "fullnameOverride": "x" * 60})
    assert len(rendered.of("Service")) == 3
    assert all(len(service["metadata"]["name"]) <= 63 for service in rendered.of("Service"))


def test_keda_finds_the_operator_by_a_service(render: Renderer) -> None:
    rendered = render({"keda": {"externalScaler": {"enabled": True, "port": 9111}}})
    service = next(s for s in rendered.of("Service") if s["metadata"]["name"] == "quire-keda")
    (port,) = service["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (9111, "keda")
    ports = {p["name"]: p["containerPort"] for p in rendered.container["ports"]}
    assert ports["keda"] == 9111


def test_the_network_policy_lets_autoscalers_in(render: Renderer) -> None:
    peers = [{"namespaceSelector": {"matchLabels": {"name": "keda"}}}]
    rendered = render(
        {
            **METRICS_API,
            "keda": {"externalScaler": {"enabled": True}},
            "networkPolicy": {"enabled": True, "kedaFrom": peers},
        }
    )
    assert rendered.one("NetworkPolicy")["spec"]["ingress"] == [
        {"ports": [{"port": "metrics-api", "protocol": "TCP"}]},
        {"from": peers, "ports": [{"port": "keda", "protocol": "TCP"}]},
    ]


Upgrade = Callable[[dict[str, Object]], subprocess.CompletedProcess[str]]


@pytest.fixture
def upgrade(helm: Helm, tmp_path: Path) -> Iterator[Upgrade]:
    """`upgrade(objects)`: renders with external metrics against an API server that has these
    objects, by path."""
    objects: dict[str, Object] = {}

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            found = KNOWN.get(path) or objects.get(path)
            body = json.dumps(found or {"kind": "Status", "code": 404, "reason": "NotFound"})
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Nothing: it is no news."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    config = tmp_path / "kubeconfig"
    config.write_text("{}")
    address = f"http://127.0.0.1:{server.server_port}"

    def run(found: dict[str, Object]) -> subprocess.CompletedProcess[str]:
        objects.clear()
        objects.update(found)
        server_side = ("--dry-run=server", "--kube-apiserver", address, "--kubeconfig", str(config))
        return template(helm, METRICS_API, "quire", *server_side)

    yield run
    server.shutdown()
    thread.join()
    server.server_close()


def resources(group_version: str, *kinds: tuple[str, str, bool]) -> Object:
    found = [
        {"kind": kind, "name": name, "namespaced": namespaced, "verbs": ["get"], "singularName": ""}
        for kind, name, namespaced in kinds
    ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": found,
    }


REGISTRATION = "apiregistration.k8s.io/v1"
KNOWN: dict[str, Object] = {
    "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
    "/api": {"kind": "APIVersions", "apiVersion": "v1", "versions": ["v1"]},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [
            {
                "name": "apiregistration.k8s.io",
                "versions": [{"groupVersion": REGISTRATION, "version": "v1"}],
                "preferredVersion": {"groupVersion": REGISTRATION, "version": "v1"},
            }
        ],
    },
    "/api/v1": resources("v1", ("Secret", "secrets", True)),
    f"/apis/{REGISTRATION}": resources(REGISTRATION, ("APIService", "apiservices", False)),
}
AT_API = f"/apis/{REGISTRATION}/apiservices/{API_SERVICE}"
AT_SECRET = "/api/v1/namespaces/quire-system/secrets/quire-metrics-api"


def registered(**annotations: str) -> Object:
    metadata = {"name": API_SERVICE, "annotations": annotations}
    service = {"namespace": "keda", "name": "keda-operator-metrics-apiserver"}
    head = {"apiVersion": REGISTRATION, "kind": "APIService", "metadata": metadata}
    return {**head, "spec": {"service": service}}


def test_an_api_that_is_anothers_is_refused(upgrade: Upgrade) -> None:
    done = upgrade({AT_API: registered()})
    assert done.returncode != 0
    assert "Service keda/keda-operator-metrics-apiserver" in done.stderr
    assert "externalMetrics.enabled=false" in done.stderr


def test_an_upgrade_keeps_its_certificate(upgrade: Upgrade) -> None:
    ours = {
        "meta.helm.sh/release-name": "quire",
        "meta.helm.sh/release-namespace": "quire-system",
    }
    data = {"tls.crt": "b25l", "tls.key": "dHdv", "ca.crt": "dGhyZWU="}
    head = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "quire-metrics-api"}}
    done = upgrade({AT_API: registered(**ours), AT_SECRET: {**head, "data": data}})
    rendered = read(done)
    assert rendered.one("Secret")["data"] == data
    assert rendered.one("APIService")["spec"]["caBundle"] == "dGhyZWU="
