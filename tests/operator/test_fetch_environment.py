"""What pods that fetch are given, and pods that serve are not."""

import pytest

from quire_operator.api import Adapter, Model, Spec, decode_spec
from quire_operator.fetch_environment import SECRET_KEYS, Network, credentials
from quire_operator.names import Key
from quire_operator.pods import engine_template, fetch_template, plan_template

NETWORK = Network(https_proxy="http://proxy:3128", no_proxy=".svc", ca_pem="PEM")
URIS = ["hf://org/model", "s3://b/p", "gs://b/p", "az://c/p", "https://h/m.tar"]


def spec_of(**spec: object) -> Spec:
    return decode_spec(spec)


def names_of(model: Model) -> set[str]:
    return {entry["name"] for entry in credentials(model)}


@pytest.mark.parametrize("uri", URIS)
def test_without_a_secret_there_are_no_credentials(uri: str) -> None:
    assert credentials(Model(uri=uri)) == []


def test_the_hubs_token_must_be_there() -> None:
    [token] = credentials(Model(uri="hf://org/model", credentials_secret="s"))
    assert token == {
        "name": "HF_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}},
    }


@pytest.mark.parametrize("uri", URIS[1:])
def test_of_the_others_keys_each_secret_has_some(uri: str) -> None:
    for entry in credentials(Model(uri=uri, credentials_secret="s")):
        assert entry["valueFrom"]["secretKeyRef"]["optional"] is True


@pytest.mark.parametrize("uri", URIS)
def test_only_its_own_sources_keys_reach_a_fetch(uri: str) -> None:
    scheme = uri.partition("://")[0]
    assert names_of(Model(uri=uri, credentials_secret="s")) == set(SECRET_KEYS[scheme])


def test_adapters_sources_are_opened_with_the_models_secret() -> None:
    adapters = [Adapter(name="a", uri="s3://b/a"), Adapter(name="b", uri="hf://org/b")]
    own = Model(uri="https://h/m.tar", credentials_secret="s", adapters=adapters)
    entries = credentials(own)
    names = [entry["name"] for entry in entries]
    wanted = [name for scheme in ("https", "s3") for name in SECRET_KEYS[scheme]]
    assert names == wanted
    assert all(entry["valueFrom"]["secretKeyRef"].get("optional") for entry in entries)


def test_a_hubs_token_is_told_to_no_web_server() -> None:
    adapters = [Adapter(name="a", uri="https://elsewhere.example/a.tar")]
    own = Model(uri="hf://org/gated", credentials_secret="s", adapters=adapters)
    assert names_of(own) == {"HF_TOKEN", "QUIRE_HTTP_USERNAME", "QUIRE_HTTP_PASSWORD"}


def test_a_web_servers_keys_are_those_of_kubernetes_own_secrets() -> None:
    entries = credentials(Model(uri="https://h/m.gguf", credentials_secret="s"))
    keys = {entry["valueFrom"]["secretKeyRef"]["key"] for entry in entries}
    assert keys == {"token", "username", "password"}


def test_the_network_is_told_by_the_usual_variables() -> None:
    assert NETWORK.environment() == [
        {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
        {"name": "NO_PROXY", "value": ".svc"},
        {"name": "QUIRE_CA_PEM", "value": "PEM"},
    ]


@pytest.mark.parametrize("uri", URIS)
def test_jobs_have_network_and_credentials(uri: str) -> None:
    spec = spec_of(model={"uri": uri, "credentialsSecret": "s"})
    key = Key("ns", "chat")
    wanted = [*NETWORK.environment(), *credentials(spec.model)]
    fetch = fetch_template(key, spec, "stem", "image", NETWORK, repair=False)
    plan = plan_template(key, spec, "image", NETWORK, None, mounted=False)
    for template in (fetch, plan):
        [container] = template["spec"]["containers"]
        assert container["env"] == wanted


@pytest.mark.parametrize("uri", URIS)
def test_pods_that_serve_have_neither(uri: str) -> None:
    spec = spec_of(model={"uri": uri, "credentialsSecret": "s"})
    template = engine_template(Key("ns", "chat"), spec, "0" * 8, "image", NETWORK)
    [container] = template["spec"]["containers"]
    assert "env" not in container
    assert "secretKeyRef" not in str(template)


def test_pods_that_fetch_for_themselves_have_the_network_alone() -> None:
    spec = spec_of(
        model={"uri": "s3://b/p", "credentialsSecret": "s"}, cache={"mode": "none", "size": "5Gi"}
    )
    template = engine_template(Key("ns", "chat"), spec, "0" * 8, "image", NETWORK)
    [fetch] = template["spec"]["initContainers"]
    assert fetch["env"] == NETWORK.environment()
    assert "env" not in template["spec"]["containers"][0]
