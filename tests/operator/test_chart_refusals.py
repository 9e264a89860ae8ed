"""Wrong values are refused, by their names."""

import pytest

from quire_cluster.chart import Helm, Object, template

# The first run on a machine builds Helm, which takes two minutes.
pytestmark = pytest.mark.timeout(900)


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
def test_wrong_values_are_refused_by_name(helm: Helm, values: Object, words: str) -> None:
    done = template(helm, values)
    assert done.returncode != 0, "was not refused"
    assert words in done.stderr
