"""The chart as Helm renders it: values do what they say, rights are few, wrong values refused."""

import base64
import contextlib
import http.server
import json
import re
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from quire_cluster.build import Binaries
from quire_cluster.settings import read_settings
from quire_cluster.versions import HELM_TOOL
from quire_operator import crd, served_metrics, settings
from quire_operator.fetch_environment import Network

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/quire"
DEFINITION = CHART / "files" / crd.FILE_NAME
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
VERBS = {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}

# The first run on a machine builds Helm, which takes two minutes.
pytestmark = pytest.mark.timeout(900)

Object = dict[str, Any]


@pytest.fixture(scope="session")
def helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the Helm that the test cluster uses, and builds it if it has not been yet (as
    `.venv/bin/python -m quire_cluster tool helm` does)."""
    binaries = Binaries(read_settings().cache)
    binaries.ensure([HELM_TOOL])
    program = binaries.program(HELM_TOOL, "helm")

    def run(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(program), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)

    return run


class Rendered:
    """The objects of one rendering."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = objects

    def of(self, kind: str) -> list[Object]:
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str) -> Object:
        (found,) = self.of(kind)
        return found

    @property
    def pod(self) -> Object:
        spec: Object = self.one("Deployment")["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> Object:
        (container,) = self.pod["containers"]
        return container  # type: ignore[no-any-return]

    @property
    def environment(self) -> dict[str, str]:
        return {entry["name"]: entry.get("value", "") for entry in self.container["env"]}

    def rules(self) -> Iterator[tuple[Object, Object]]:
        for role in [*self.of("ClusterRole"), *self.of("Role")]:
            for rule in role["rules"]:
                yield role, rule


Render = Callable[..., Rendered]


def documents(text: str) -> Iterator[Any]:
    """What YAML holds, read by libyaml: ten times as fast as by Python."""
    yield from yaml.load_all(text, yaml.CSafeLoader)


@pytest.fixture
def render(helm: Callable[..., subprocess.CompletedProcess[str]]) -> Render:
    """`render(values, release=...)`: what would be sent to the API server."""

    def run(values: Object | None = None, release: str = "quire") -> Rendered:
        command = ("template", release, str(CHART), "--namespace", "quire-system", "--values", "-")
        done = helm(*command, stdin=json.dumps(values or {}))
        assert done.returncode == 0, done.stderr
        return Rendered([found for found in documents(done.stdout) if found])

    return run


@pytest.fixture
def refusal(helm: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[[Object], str]:
    """`refusal(values)`: the words with which Helm refuses them."""

    def run(values: Object) -> str:
        done = helm("template", "quire", str(CHART), "--values", "-", stdin=json.dumps(values))
        assert done.returncode != 0, "was not refused"
        return done.stderr

    return run


# ---- the chart as a whole -----------------------------------------------------------------------


def test_lint_is_clean(helm: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_definition_is_the_repos() -> None:
    source = ROOT / "crds" / crd.FILE_NAME
    assert DEFINITION.read_text() == source.read_text(), f"run: cp {source} {DEFINITION}"


# Kubernetes' own types, whose fields the schema leaves to the API server.
KUBERNETES = {"resources", "podSecurityContext", "securityContext"}
PARENTS_KEY = "enabled"  # a chart that has this one as a dependency sets it


def paths(values: Object, prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, dict) and key not in KUBERNETES:
            yield from paths(value, f"{prefix}{key}.")


def schema_paths(schema: Object, prefix: str = "") -> Iterator[str]:
    for key, part in schema.get("properties", {}).items():
        yield prefix + key
        if key not in KUBERNETES:
            yield from schema_paths(part, f"{prefix}{key}.")


def test_values_and_schema_have_the_same_keys() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(paths(values)) == set(schema_paths(schema)) - {PARENTS_KEY}


def test_no_value_is_without_effect() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    templates = "".join(path.read_text() for path in (CHART / "templates").iterdir())
    for path in paths(values):
        assert re.search(rf"\.{path.rpartition('.')[2]}\b", templates), path


# ---- the operator -------------------------------------------------------------------------------


def test_the_default_operator(render: Render) -> None:
    default = render()
    deployment = default.one("Deployment")
    assert deployment["metadata"]["name"] == "quire"
    assert deployment["spec"]["replicas"] == 1
    assert default.container["image"] == "quire-operator:0.1.0"
    assert default.environment["QUIRE_ENGINE_IMAGE"] == "quire-engine:0.1.0"
    selector = deployment["spec"]["selector"]["matchLabels"].items()
    assert selector <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert selector <= default.one("Service")["spec"]["selector"].items()
    assert not default.of("PodDisruptionBudget") + default.of("NetworkPolicy")
    assert not default.of("ServiceMonitor") + default.of("PodMonitor")


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_operator_may_do_nothing_to_its_node(render: Render, replicas: int) -> None:
    rendered = render({"replicaCount": replicas})
    pod = rendered.pod["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] == 65532
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    container = rendered.container["securityContext"]
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert rendered.container["volumeMounts"] == [{"name": "tmp", "mountPath": "/tmp"}]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {
            "watchNamespaces": ["a", "b"],
            "hub": {"endpoint": "http://hub.example.com"},
            "models": {
                "httpsProxy": "http://proxy.example.com:3128",
                "httpProxy": "http://proxy.example.com:3129",
                "noProxy": ".svc,minio.example.com",
                "caBundle": PEM,
            },
            "leaderElection": {"leaseSeconds": 4.5},
            "scaling": {"scrapeIntervalSeconds": 0.5},
            "gateway": {"serviceName": "gate"},
            "externalMetrics": {"enabled": True, "port": 7443},
            "keda": {"externalScaler": {"enabled": True, "port": 9111}},
            "workers": 3,
            "metrics": {"port": 9443},
        },
    ],
)
def test_the_environment_is_what_the_operator_reads(render: Render, values: Object) -> None:
    """No setting of the chart's is unknown to the operator, and each arrives as its value."""
    environment = render(values).environment
    read = settings.from_environment({k: v for k, v in environment.items() if v})
    assert read.engine_image == "quire-engine:0.1.0"
    models = values.get("models", {})
    assert read.network == Network(
        hf_endpoint=values.get("hub", {}).get("endpoint"),
        https_proxy=models.get("httpsProxy"),
        http_proxy=models.get("httpProxy"),
        no_proxy=models.get("noProxy"),
        ca_pem=models.get("caBundle"),
    )
    assert read.watch_namespaces == tuple(values.get("watchNamespaces", ()))
    assert read.lease_seconds == values.get("leaderElection", {}).get("leaseSeconds", 15)
    assert read.scrape_interval_seconds == (
        values.get("scaling", {}).get("scrapeIntervalSeconds", 5)
    )
    assert read.gateway_service == values.get("gateway", {}).get("serviceName")
    assert read.external_metrics_port == values.get("externalMetrics", {}).get("port", 0)
    keda = values.get("keda", {}).get("externalScaler", {})
    assert read.keda_scaler_port == keda.get("port", 0)
    assert read.keda_scaler_address == ("quire-keda.quire-system.svc:9111" if keda else None)
    assert read.workers == values.get("workers", 8)
    assert read.metrics_port == values.get("metrics", {}).get("port", 9090)
    assert read.probe_port == 8080
    assert {"QUIRE_NAMESPACE", "QUIRE_POD_NAME"} <= environment.keys()


def test_ports_and_probes_agree(render: Render) -> None:
    rendered = render({"metrics": {"port": 9443}})
    ports = {port["name"]: port["containerPort"] for port in rendered.container["ports"]}
    assert ports == {"metrics": 9443, "probes": 8080}
    for probe in ("livenessProbe", "readinessProbe"):
        assert rendered.container[probe]["httpGet"]["port"] == "probes"
    assert rendered.one("Service")["spec"]["ports"][0]["port"] == 9443


@pytest.mark.parametrize(
    ("values", "operator", "engine"),
    [
        (
            {"global": {"imageRegistry": "reg.example.com:5000/q/"}},
            "reg.example.com:5000/q/quire-operator:0.1.0",
            "reg.example.com:5000/q/quire-engine:0.1.0",
        ),
        (
            {
                "image": {"repository": "a/b", "tag": "sha256:" + "0" * 64},
                "engine": {"image": "c/d@sha256:1"},
            },
            "a/b@sha256:" + "0" * 64,
            "c/d@sha256:1",
        ),
    ],
)
def test_images(render: Render, values: Object, operator: str, engine: str) -> None:
    rendered = render(values)
    assert rendered.container["image"] == operator
    assert rendered.environment["QUIRE_ENGINE_IMAGE"] == engine


def test_what_is_passed_to_the_pod_arrives(render: Render) -> None:
    spread = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    scheduling: Object = {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [spread],
        "priorityClassName": "high",
        "imagePullSecrets": [{"name": "pull"}],
    }
    rendered = render(
        {
            **scheduling,
            "podAnnotations": {"a": "1"},
            "podLabels": {"b": "2"},
            "resources": {"limits": {"memory": "1Gi"}},
            "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
            "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
            "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
            "serviceAccount": {"automount": False},
            "image": {"pullPolicy": "Always"},
        }
    )
    assert {key: rendered.pod[key] for key in scheduling} == scheduling
    metadata = rendered.one("Deployment")["spec"]["template"]["metadata"]
    assert metadata["annotations"] == {"a": "1"}
    assert metadata["labels"]["b"] == "2"
    assert rendered.container["resources"]["limits"] == {"memory": "1Gi"}
    assert rendered.container["imagePullPolicy"] == "Always"
    assert rendered.environment["HTTPS_PROXY"] == "http://proxy"
    assert [volume["name"] for volume in rendered.pod["volumes"]] == ["tmp", "ca"]
    assert [mount["name"] for mount in rendered.container["volumeMounts"]] == ["tmp", "ca"]
    assert rendered.pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize(
    ("values", "release", "name"),
    [
        ({}, "quire", "quire"),
        ({}, "prod", "prod-quire"),
        ({"nameOverride": "llm"}, "prod", "prod-llm"),
        ({"fullnameOverride": "serving"}, "prod", "serving"),
        ({"fullnameOverride": "x" * 60}, "prod", "x" * 50),
    ],
)
def test_names(render: Render, values: Object, release: str, name: str) -> None:
    rendered = render(values, release)
    assert rendered.one("Deployment")["metadata"]["name"] == name
    assert rendered.one("ServiceAccount")["metadata"]["name"] == name
    for found in rendered.objects:
        assert len(found["metadata"]["name"]) <= 80
        assert found["metadata"]["labels"]["app.kubernetes.io/instance"] == release


# ---- rights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["a", "b"]}])
def test_rights_are_few_and_named(render: Render, values: Object) -> None:
    for role, rule in render(values).rules():
        where = role["metadata"]["name"]
        assert set(rule["verbs"]) <= VERBS, where
        assert not any("*" in entry for part in rule.values() for entry in part), where
        assert not {"secrets", "configmaps", "serviceaccounts"} & set(rule["resources"])
        assert "nodes" not in rule["resources"] or rule["verbs"] == ["list"]
        assert not any(resource.startswith("pods/") for resource in rule["resources"])
        assert "rbac.authorization.k8s.io" not in rule["apiGroups"]


def test_the_operator_never_changes_what_users_write(render: Render) -> None:
    """spec belongs to the user: the operator writes status and /scale, and creates no service."""
    rendered = render({"rbac": {"aggregateToUserRoles": False}})
    operator = rendered.one("ClusterRole")
    rights = {
        resource: set(rule["verbs"]) for rule in operator["rules"] for resource in rule["resources"]
    }
    assert rights["inferenceservices"] == {"get", "list", "watch"}
    assert rights["inferenceservices/status"] == rights["inferenceservices/scale"] == {"patch"}
    assert rights["pods"] == {"get", "list", "watch", "delete"}


def test_leases_are_held_for_fetches_and_never_replaced(render: Render) -> None:
    """A claim's writer has one; the operator's own is written in its own namespace."""
    rendered = render({"rbac": {"aggregateToUserRoles": False}})
    rules = {
        tuple(rule["resources"]): set(rule["verbs"])
        for rule in rendered.one("ClusterRole")["rules"]
    }
    assert rules[("leases",)] == {"get", "list", "watch", "create", "patch", "delete"}
    (role,) = rendered.of("Role")
    assert {tuple(rule["resources"]) for rule in role["rules"]} == {("leases",)}


def test_the_gateway_is_looked_for_where_it_is(render: Render) -> None:
    rendered = render({"gateway": {"serviceName": "gate"}, "watchNamespaces": ["a"]})
    own = next(r for r in rendered.of("Role") if r["metadata"]["namespace"] == "quire-system")
    rule = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list"]}
    assert rule in own["rules"]


def test_named_namespaces_get_a_role_each_and_nothing_beyond(render: Render) -> None:
    rendered = render({"watchNamespaces": ["a", "b"], "rbac": {"aggregateToUserRoles": False}})
    assert not rendered.of("ClusterRole") + rendered.of("ClusterRoleBinding")
    roles = {(r["metadata"]["namespace"], r["metadata"]["name"]) for r in rendered.of("Role")}
    name = "quire-system-quire"
    assert roles == {("a", name), ("b", name), ("quire-system", "quire-leader")}
    everywhere = [
        rule for rule in render().of("ClusterRole")[0]["rules"] if rule["resources"] != ["nodes"]
    ]
    assert all(
        r["rules"] == everywhere for r in rendered.of("Role") if r["metadata"]["name"] == name
    )


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["a"]}])
def test_every_binding_binds_a_role_of_ours_to_the_operator(render: Render, values: Object) -> None:
    rendered = render({**values, "serviceAccount": {"name": "someone"}})
    roles = {
        (r["kind"], r["metadata"].get("namespace"), r["metadata"]["name"])
        for r in [*rendered.of("Role"), *rendered.of("ClusterRole")]
    }
    bindings = [*rendered.of("RoleBinding"), *rendered.of("ClusterRoleBinding")]
    assert bindings
    subject = {"kind": "ServiceAccount", "name": "someone", "namespace": "quire-system"}
    for binding in bindings:
        role = binding["roleRef"]
        assert (role["kind"], binding["metadata"].get("namespace"), role["name"]) in roles
        assert binding["subjects"] == [subject]
    assert rendered.pod["serviceAccountName"] == "someone"


def test_rights_and_accounts_can_be_somebody_elses(render: Render) -> None:
    rendered = render({"rbac": {"create": False}, "serviceAccount": {"create": False}})
    assert not [found for found in rendered.objects if "Role" in found["kind"]]
    assert not rendered.of("ServiceAccount")
    assert rendered.pod["serviceAccountName"] == "default"


# ---- the definition -----------------------------------------------------------------------------


def test_the_definition_arrives_unchanged_but_for_its_labels(render: Render) -> None:
    rendered = render().one("CustomResourceDefinition")
    source = yaml.safe_load(DEFINITION.read_text())
    assert rendered["spec"] == source["spec"]
    assert rendered["metadata"]["name"] == source["metadata"]["name"]
    assert rendered["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert rendered["metadata"]["labels"]["app.kubernetes.io/part-of"] == "quire"


def test_the_definition_can_go_with_the_release_or_be_left_out(render: Render) -> None:
    gone = render({"crds": {"keep": False}}).one("CustomResourceDefinition")
    assert "annotations" not in gone["metadata"]
    assert not render({"crds": {"install": False}}).of("CustomResourceDefinition")


# ---- what is opted into -------------------------------------------------------------------------


def test_a_budget_never_blocks_a_drain(render: Render) -> None:
    budget = render({"pdb": {"enabled": True}, "replicaCount": 2}).one("PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_monitors(render: Render) -> None:
    options = {
        "enabled": True,
        "interval": "15s",
        "scrapeTimeout": "5s",
        "additionalLabels": {"release": "prometheus"},
        "relabelings": [{"action": "labeldrop", "regex": "pod"}],
    }
    rendered = render(
        {
            "metrics": {"serviceMonitor": options, "podMonitor": options},
            "watchNamespaces": ["a"],
        }
    )
    service, pod = rendered.one("ServiceMonitor"), rendered.one("PodMonitor")
    endpoint = {
        "path": "/metrics",
        "interval": "15s",
        "scrapeTimeout": "5s",
        "relabelings": options["relabelings"],
    }
    assert service["spec"]["endpoints"] == [{"port": "metrics", **endpoint}]
    ready = {"action": "keep", "sourceLabels": ["__meta_kubernetes_pod_ready"], "regex": "true"}
    endpoint["relabelings"] = [ready, *options["relabelings"]]
    assert pod["spec"]["podMetricsEndpoints"] == [{"port": "http", **endpoint}]
    assert pod["spec"]["namespaceSelector"] == {"matchNames": ["a"]}
    for monitor in (service, pod):
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
    selector = service["spec"]["selector"]["matchLabels"].items()
    assert selector <= rendered.one("Service")["metadata"]["labels"].items()


def test_the_network_policy_names_who_may_scrape(render: Render) -> None:
    closed = render({"networkPolicy": {"enabled": True}}).one("NetworkPolicy")
    assert closed["spec"]["policyTypes"] == ["Ingress"]
    assert "ingress" not in closed["spec"]
    peers = [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]
    opened = render({"networkPolicy": {"enabled": True, "metricsFrom": peers}})
    (rule,) = opened.one("NetworkPolicy")["spec"]["ingress"]
    assert rule == {"from": peers, "ports": [{"port": "metrics", "protocol": "TCP"}]}


# ---- metrics for autoscalers ----

METRICS_API = {"externalMetrics": {"enabled": True}}
API_SERVICE = "v1beta1.external.metrics.k8s.io"


def test_no_autoscaler_is_answered_by_default(render: Render) -> None:
    default = render()
    assert not default.of("APIService") + default.of("Secret")
    assert [service["metadata"]["name"] for service in default.of("Service")] == ["quire-metrics"]
    assert {port["name"] for port in default.container["ports"]} == {"metrics", "probes"}


def test_external_metrics_are_served_by_a_certificate_that_the_api_server_knows(
    render: Render, tmp_path: Path
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


def test_the_operator_reads_the_certificate_that_the_chart_made(render: Render) -> None:
    rendered = render(METRICS_API)
    (mount,) = [m for m in rendered.container["volumeMounts"] if m["name"] == "external-metrics"]
    defaults = settings.Settings(engine_image="x")
    assert str(defaults.external_metrics_certificate) == f"{mount['mountPath']}/tls.crt"
    assert str(defaults.external_metrics_key) == f"{mount['mountPath']}/tls.key"
    (volume,) = [v for v in rendered.pod["volumes"] if v["name"] == "external-metrics"]
    assert volume["secret"]["secretName"] == rendered.one("Secret")["metadata"]["name"]


def test_a_certificate_of_ones_own(render: Render) -> None:
    values = {"enabled": True, "existingSecret": "tls", "caBundle": "QQ=="}
    rendered = render({"externalMetrics": values})
    assert not rendered.of("Secret")
    assert rendered.one("APIService")["spec"]["caBundle"] == "QQ=="
    (volume,) = [v for v in rendered.pod["volumes"] if v["name"] == "external-metrics"]
    assert volume["secret"]["secretName"] == "tls"


def test_who_gets_which_rights_for_external_metrics(render: Render) -> None:
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


def test_a_long_name_still_makes_services(render: Render) -> None:
    scaler = {"keda": {"externalScaler": {"enabled": True}}}
    rendered = render({**METRICS_API, **scaler, "fullnameOverride": "x" * 60})
    assert len(rendered.of("Service")) == 3
    assert all(len(service["metadata"]["name"]) <= 63 for service in rendered.of("Service"))


def test_keda_finds_the_operator_by_a_service(render: Render) -> None:
    rendered = render({"keda": {"externalScaler": {"enabled": True, "port": 9111}}})
    service = next(s for s in rendered.of("Service") if s["metadata"]["name"] == "quire-keda")
    (port,) = service["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (9111, "keda")
    ports = {p["name"]: p["containerPort"] for p in rendered.container["ports"]}
    assert ports["keda"] == 9111


def test_the_network_policy_lets_autoscalers_in(render: Render) -> None:
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
def upgrade(
    helm: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> Iterator[Upgrade]:
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
        command = ("template", "quire", str(CHART), "--namespace", "quire-system")
        server_side = ("--dry-run=server", "--kube-apiserver", address, "--kubeconfig", str(config))
        return helm(*command, *server_side, "--values", "-", stdin=json.dumps(METRICS_API))

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
    assert done.returncode == 0, done.stderr
    rendered = Rendered([found for found in yaml.safe_load_all(done.stdout) if found])
    assert rendered.one("Secret")["data"] == data
    assert rendered.one("APIService")["spec"]["caBundle"] == "dGhyZWU="


# ---- wrong values -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replicas": 2}, "additional properties 'replicas' not allowed"),
        ({"image": {"tga": "1"}}, "additional properties 'tga' not allowed"),
        ({"engine": {"image": {"repository": "x"}}}, "got object, want string"),
        ({"replicaCount": "two"}, "got string, want integer"),
        ({"hub": {"endpoint": "hub.example.com"}}, "/hub/endpoint"),
        ({"models": {"httpsProxy": "proxy.example.com"}}, "/models/httpsProxy"),
        ({"models": {"caBundle": "/etc/ssl/ca.pem"}}, "/models/caBundle"),
        ({"watchNamespaces": ["Team A"]}, "/watchNamespaces/0"),
        ({"watchNamespaces": "team"}, "got string, want array"),
        ({"gateway": {"serviceName": "gate.quire-system"}}, "/gateway/serviceName"),
        ({"leaderElection": {"leaseSeconds": 1}}, "/leaderElection/leaseSeconds"),
        ({"scaling": {"scrapeIntervalSeconds": 0}}, "/scaling/scrapeIntervalSeconds"),
        ({"extraEnv": [{"value": "x"}]}, "missing property 'name'"),
        ({"metrics": {"port": 8080}}, "metrics.port must not be 8080, which serves the probes"),
        (
            {"externalMetrics": {"enabled": True, "port": 9090}},
            "externalMetrics.port must not be 9090, which serves metrics.port",
        ),
        (
            {"keda": {"externalScaler": {"enabled": True, "port": 8080}}},
            "keda.externalScaler.port must not be 8080",
        ),
        (
            {"externalMetrics": {"enabled": True, "existingSecret": "tls"}},
            "externalMetrics.existingSecret needs externalMetrics.caBundle",
        ),
        (
            {"externalMetrics": {"enabled": True, "caBundle": "QQ=="}},
            "externalMetrics.caBundle has no meaning without",
        ),
        ({"externalMetrics": {"existingSecret": "My_Secret"}}, "/externalMetrics/existingSecret"),
        ({"keda": {"scaler": True}}, "additional properties 'scaler' not allowed"),
        ({"metrics": {"port": 80}}, "/metrics/port"),
        ({"metrics": {"serviceMonitor": {"interval": "15"}}}, "/metrics/serviceMonitor/interval"),
        (
            {"metrics": {"serviceMonitor": {"enabled": True}, "service": {"create": False}}},
            "needs metrics.service.create: true",
        ),
        ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy"),
        ({"pdb": {"maxUnavailable": 0}}, "/pdb/maxUnavailable"),
        ({"crds": {"keep": "yes"}}, "got string, want boolean"),
    ],
)
def test_wrong_values_are_refused_by_name(
    refusal: Callable[[Object], str], values: Object, words: str
) -> None:
    assert words in refusal(values)
