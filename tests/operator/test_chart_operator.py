"""The operator's Deployment and what stands beside it, as the chart renders them."""

import pytest

from quire_cluster.chart import Object, Renderer
from quire_operator import settings
from quire_operator.fetch_environment import Network

# The first run on a machine builds Helm, which takes two minutes.
pytestmark = pytest.mark.timeout(900)


PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


def test_the_default_operator(render: Renderer) -> None:
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
def test_the_operator_may_do_nothing_to_its_node(render: Renderer, replicas: int) -> None:
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
            "planJobs": 7,
            "metrics": {"port": 9443},
        },
    ],
)
def test_the_environment_is_what_the_operator_reads(render: Renderer, values: Object) -> None:
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
    assert read.plan_jobs == values.get("planJobs", 50)
    assert read.metrics_port == values.get("metrics", {}).get("port", 9090)
    assert read.probe_port == 8080
    assert {"QUIRE_NAMESPACE", "QUIRE_POD_NAME"} <= environment.keys()


def test_ports_and_probes_agree(render: Renderer) -> None:
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
def test_images(render: Renderer, values: Object, operator: str, engine: str) -> None:
    rendered = render(values)
    assert rendered.container["image"] == operator
    assert rendered.environment["QUIRE_ENGINE_IMAGE"] == engine


def test_what_is_passed_to_the_pod_arrives(render: Renderer) -> None:
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
def test_names(render: Renderer, values: Object, release: str, name: str) -> None:
    rendered = render(values, release)
    assert rendered.one("Deployment")["metadata"]["name"] == name
    assert rendered.one("ServiceAccount")["metadata"]["name"] == name
    for found in rendered.objects:
        assert len(found["metadata"]["name"]) <= 80
        assert found["metadata"]["labels"]["app.kubernetes.io/instance"] == release


def test_a_budget_never_blocks_a_drain(render: Renderer) -> None:
    budget = render({"pdb": {"enabled": True}, "replicaCount": 2}).one("PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_monitors(render: Renderer) -> None:
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


def test_the_network_policy_names_who_may_scrape(render: Renderer) -> None:
    closed = render({"networkPolicy": {"enabled": True}}).one("NetworkPolicy")
    assert closed["spec"]["policyTypes"] == ["Ingress"]
    assert "ingress" not in closed["spec"]
    peers = [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]
    opened = render({"networkPolicy": {"enabled": True, "metricsFrom": peers}})
    (rule,) = opened.one("NetworkPolicy")["spec"]["ingress"]
    assert rule == {"from": peers, "ports": [{"port": "metrics", "protocol": "TCP"}]}
