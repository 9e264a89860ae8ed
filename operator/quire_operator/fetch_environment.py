"""What a pod that fetches finds in its environment: the way out, and what opens a source. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from quire_operator.api import Model
from quire_operator.kinds import Manifest

_S3 = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
)
_GS = ("GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BASE_URL")
_AZ = (
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
)
SECRET_KEYS: dict[str, dict[str, str]] = {
    "hf": {"HF_TOKEN": "token"},
    "https": {
        "QUIRE_HTTP_TOKEN": "token",
        "QUIRE_HTTP_USERNAME": "username",
        "QUIRE_HTTP_PASSWORD": "password",
    },
    "s3": {name: name for name in _S3},
    "gs": {name: name for name in _GS},
    "az": {name: name for name in _AZ},
}
"""By scheme: the variables that its fetch reads, and the keys of a Secret that they come from. No
other key of the Secret gets into the pod: one called LD_PRELOAD or HTTPS_PROXY would be obeyed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How pods that fetch reach their sources; the same for all of them, and no secret."""

    hf_endpoint: str | None = None
    https_proxy: str | None = None
    http_proxy: str | None = None
    no_proxy: str | None = None
    ca_pem: str | None = None

    def environment(self) -> list[Manifest]:
        """Its variables, unset ones left out."""
        named = {
            "HF_ENDPOINT": self.hf_endpoint,
            "HTTPS_PROXY": self.https_proxy,
            "HTTP_PROXY": self.http_proxy,
            "NO_PROXY": self.no_proxy,
            "QUIRE_CA_PEM": self.ca_pem,
        }
        return [{"name": name, "value": value} for name, value in named.items() if value]


def credentials(model: Model) -> list[Manifest]:
    """The variables that come from the model's Secret, for the model's source and its adapters'.
    The model's hub needs its one key, so a pod waits for it; of the others' each Secret has some,
    and a fetch without says which it wanted.

    A key is told to one kind of source, the model's before its adapters': the hub's `token` is no
    web server's.
    """
    secret = model.credentials_secret
    if not secret:
        return []
    own, *others = (uri.partition("://")[0] for uri in _uris(model))
    schemes = dict.fromkeys((own, *sorted(others)))
    taken: set[str] = set()
    told: list[Manifest] = []
    for scheme in schemes:
        keys = SECRET_KEYS.get(scheme, {})
        told += _from_secret(secret, scheme == own == "hf", keys, taken)
        taken |= set(keys.values())
    return told


def _from_secret(
    secret: str, is_needed: bool, keys: dict[str, str], taken: set[str]
) -> list[Manifest]:
    return [
        {
            "name": variable,
            "valueFrom": {
                "secretKeyRef": {"name": secret, "key": key}
                | ({} if is_needed else {"optional": True})
            },
        }
        for variable, key in keys.items()
        if key not in taken
    ]


def _uris(model: Model) -> list[str]:
    return [model.uri, *(adapter.uri for adapter in model.adapters)]
