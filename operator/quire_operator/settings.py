"""The process's settings, read once from the environment (prefix QUIRE_)."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from quire_operator.errors import SettingError
from quire_operator.fetch_environment import Network
from quire_operator.plan_places import PLACES

T = TypeVar("T")
PREFIX = "QUIRE_"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that one operator process is told from outside."""

    engine_image: str
    """QUIRE_ENGINE_IMAGE: image of revisions and fetches whose spec names none. Required."""

    network: Network = field(default_factory=Network)
    """How fetches reach their sources. QUIRE_HF_ENDPOINT: a hub mirror; unset: huggingface.co.
    QUIRE_FETCH_HTTPS_PROXY, QUIRE_FETCH_HTTP_PROXY, QUIRE_FETCH_NO_PROXY: proxies, and the
    comma-separated hosts reached without; unset: none. QUIRE_FETCH_CA_PEM: text of certificates
    that are trusted beside the public ones."""

    namespace: str = "quire-system"
    """QUIRE_NAMESPACE: where the operator runs and keeps its Lease."""

    pod_name: str = "quire-operator"
    """QUIRE_POD_NAME: identity in the Lease; default the host's name."""

    watch_namespaces: tuple[str, ...] = ()
    """QUIRE_WATCH_NAMESPACES: comma-separated; empty watches all."""

    gateway_service: str | None = None
    """QUIRE_GATEWAY_SERVICE: the gateway's Service, in QUIRE_NAMESPACE: it holds the requests of
    services without a ready pod. Unset: there is none, and nothing goes to zero by itself."""

    lease_seconds: float = 15.0
    """QUIRE_LEASE_SECONDS: how long a silent leader is believed in. A dead one is replaced within
    this plus one retry (a fifth of it): 18 s. At least 3, as it is renewed every third of it."""

    scrape_interval_seconds: float = 5.0
    """QUIRE_SCRAPE_INTERVAL_SECONDS: the scaling loop's period."""

    metrics_port: int = 9090
    """QUIRE_METRICS_PORT: the operator's own /metrics."""

    probe_port: int = 8080
    """QUIRE_PROBE_PORT: /healthz (liveness)."""

    external_metrics_port: int = 0
    """QUIRE_EXTERNAL_METRICS_PORT: external.metrics.k8s.io for HPAs, over TLS. 0: not served."""

    external_metrics_certificate: Path = Path("/etc/quire/external-metrics/tls.crt")
    """QUIRE_EXTERNAL_METRICS_CERTIFICATE: what it shows; read anew when it changes."""

    external_metrics_key: Path = Path("/etc/quire/external-metrics/tls.key")
    """QUIRE_EXTERNAL_METRICS_KEY"""

    keda_scaler_port: int = 0
    """QUIRE_KEDA_SCALER_PORT: KEDA's external scaler (gRPC). 0: not served."""

    keda_scaler_address: str | None = None
    """QUIRE_KEDA_SCALER_ADDRESS: host:port at which KEDA finds it. Required with the port."""

    workers: int = 8
    """QUIRE_WORKERS: reconciles at a time. More than the API server answers is of no use."""

    plan_jobs: int = PLACES
    """QUIRE_PLAN_JOBS: memory plans at a time, in all the cluster: short Jobs that new services
    wait for, the oldest first. Each reads a model's headers from its source."""


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Reads QUIRE_* settings. Raises SettingError for a missing, unknown or bad one."""
    reader = _Reader(environment)
    settings = Settings(
        engine_image=reader.required("ENGINE_IMAGE"),
        network=Network(
            hf_endpoint=reader.get("HF_ENDPOINT", str, None),
            https_proxy=reader.get("FETCH_HTTPS_PROXY", str, None),
            http_proxy=reader.get("FETCH_HTTP_PROXY", str, None),
            no_proxy=reader.get("FETCH_NO_PROXY", str, None),
            ca_pem=reader.get("FETCH_CA_PEM", _pem, None),
        ),
        namespace=reader.get("NAMESPACE", str, Settings.namespace),
        pod_name=reader.get("POD_NAME", str, socket.gethostname()),
        watch_namespaces=reader.get("WATCH_NAMESPACES", _names, ()),
        gateway_service=reader.get("GATEWAY_SERVICE", _label, None),
        lease_seconds=reader.get("LEASE_SECONDS", _at_least(3.0), Settings.lease_seconds),
        scrape_interval_seconds=reader.get(
            "SCRAPE_INTERVAL_SECONDS", _at_least(0.5), Settings.scrape_interval_seconds
        ),
        metrics_port=reader.get("METRICS_PORT", _port, Settings.metrics_port),
        probe_port=reader.get("PROBE_PORT", _port, Settings.probe_port),
        external_metrics_port=reader.get("EXTERNAL_METRICS_PORT", _port, 0),
        external_metrics_certificate=reader.get(
            "EXTERNAL_METRICS_CERTIFICATE", Path, Settings.external_metrics_certificate
        ),
        external_metrics_key=reader.get(
            "EXTERNAL_METRICS_KEY", Path, Settings.external_metrics_key
        ),
        keda_scaler_port=reader.get("KEDA_SCALER_PORT", _port, 0),
        keda_scaler_address=reader.get("KEDA_SCALER_ADDRESS", _address, None),
        workers=int(reader.get("WORKERS", _at_least(1), float(Settings.workers))),
        plan_jobs=int(reader.get("PLAN_JOBS", _at_least(1), float(Settings.plan_jobs))),
    )
    reader.refuse_unknown()
    if (settings.keda_scaler_port == 0) is not (settings.keda_scaler_address is None):
        raise SettingError(
            "QUIRE_KEDA_SCALER_PORT and QUIRE_KEDA_SCALER_ADDRESS belong together: KEDA is told the"
            " address at which the port is reached; set both or neither"
        )
    return settings


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._values = {k: v for k, v in environment.items() if k.startswith(PREFIX) and v != ""}
        self._known: set[str] = set()

    def get(self, key: str, parse: Callable[[str], T], default: T) -> T:
        key = PREFIX + key
        self._known.add(key)
        if key not in self._values:
            return default
        try:
            return parse(self._values[key])
        except ValueError as e:
            raise SettingError(f"{key} has value {self._values[key]!r}: {e}") from None

    def required(self, key: str) -> str:
        value = self.get(key, str, "")
        if not value:
            raise SettingError(f"{PREFIX}{key} is not set: name the engine image that pods run")
        return value

    def refuse_unknown(self) -> None:
        left = set(self._values) - self._known
        unknown = sorted(key for key in left if not _SERVICE_LINK.search(key))
        if unknown:
            raise SettingError(
                f"unknown setting {unknown[0]}; the known ones are {', '.join(sorted(self._known))}"
            )


_SERVICE_LINK = re.compile(r"_(SERVICE_(HOST|PORT)|PORT)(_[A-Z0-9_]+)?$")
"""Variables that the kubelet makes for Services whose names begin with `quire-`."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _label(text: str) -> str:
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", text):
        raise ValueError("must be a Service's name: a-z, 0-9 and '-', at most 63 characters")
    return text


def _pem(text: str) -> str:
    if "-----BEGIN CERTIFICATE-----" not in text:
        raise ValueError("must be the text of certificates in PEM form")
    return text


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise ValueError("must be host:port")
    return text


def _at_least(low: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value < float("inf"):
            raise ValueError(f"must be a number >= {low}")
        return value

    return parse


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError("must be a port, 0 to 65535")
    return value
