"""Settings: read once, unknown keys and bad values stop the start with key, value and rule."""

import pytest

from quire_operator.errors import SettingError
from quire_operator.fetch_environment import Network
from quire_operator.settings import from_environment

ENOUGH = {"QUIRE_ENGINE_IMAGE": "engine:v1"}


def test_defaults() -> None:
    settings = from_environment(ENOUGH)
    assert settings.engine_image == "engine:v1"
    assert settings.lease_seconds == 15
    assert settings.watch_namespaces == ()
    assert settings.external_metrics_port == settings.keda_scaler_port == 0
    assert settings.pod_name


def test_everything_given() -> None:
    settings = from_environment(
        {
            **ENOUGH,
            "QUIRE_WATCH_NAMESPACES": "a, b,",
            "QUIRE_LEASE_SECONDS": "9",
            "QUIRE_PROBE_PORT": "1",
            "QUIRE_HF_ENDPOINT": "",
            "QUIRE_GATEWAY_SERVICE": "quire-gateway",
            "QUIRE_EXTERNAL_METRICS_PORT": "6443",
            "QUIRE_EXTERNAL_METRICS_KEY": "/key",
            "QUIRE_KEDA_SCALER_PORT": "9100",
            "QUIRE_KEDA_SCALER_ADDRESS": "quire-keda.quire-system.svc:9100",
        }
    )
    assert settings.gateway_service == "quire-gateway"
    assert settings.external_metrics_port == 6443
    assert str(settings.external_metrics_key) == "/key"
    assert settings.keda_scaler_port == 9100
    assert settings.keda_scaler_address == "quire-keda.quire-system.svc:9100"
    assert settings.watch_namespaces == ("a", "b")
    assert settings.lease_seconds == 9
    assert settings.network == Network()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"QUIRE_LEASE_SECONDS": "2"}, r"QUIRE_LEASE_SECONDS has value '2': must be a number >= 3"),
        ({"QUIRE_LEASE_SECONDS": "nan"}, "QUIRE_LEASE_SECONDS has value 'nan'"),
        ({"QUIRE_GATEWAY_SERVICE": "a.b"}, "must be a Service's name"),
        ({"QUIRE_PROBE_PORT": "http"}, "QUIRE_PROBE_PORT has value 'http'"),
        ({"QUIRE_PROBE_PORT": "70000"}, "must be a port"),
        ({"QUIRE_KEDA_SCALER_PORT": "9100"}, "belong together"),
        ({"QUIRE_KEDA_SCALER_ADDRESS": "quire-keda:9100"}, "belong together"),
        ({"QUIRE_KEDA_SCALER_ADDRESS": "quire-keda"}, "must be host:port"),
        ({"QUIRE_ENGIN_IMAGE": "x"}, "unknown setting QUIRE_ENGIN_IMAGE"),
        ({"QUIRE_ENGINE_IMAGE": ""}, "QUIRE_ENGINE_IMAGE is not set"),
    ],
)
def test_what_is_wrong_is_refused(more: dict[str, str], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        from_environment({**ENOUGH, **more})


def test_variables_of_a_service_beside_us_are_none_of_ours() -> None:
    links = {
        "QUIRE_GATEWAY_SERVICE_HOST": "198.51.100.1",
        "QUIRE_GATEWAY_SERVICE_PORT_HTTP": "80",
        "QUIRE_GATEWAY_PORT": "tcp://198.51.100.1:80",
        "QUIRE_GATEWAY_PORT_80_TCP_ADDR": "198.51.100.1",
    }
    assert from_environment({**ENOUGH, **links}).engine_image == "engine:v1"
