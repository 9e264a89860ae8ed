"""What the environment says about the test cluster, read once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quire_cluster.errors import PrerequisiteError

PROVIDER_NAMES = ("netns", "kind", "kubeconfig")


@dataclass(frozen=True)
class Settings:
    """cache: built binaries, images and cluster state (QUIRE_CACHE, ~/.cache/quire).
    provider: forces one of PROVIDER_NAMES (QUIRE_CLUSTER, unset: the first that fits).
    kubeconfig: use this cluster as it is (QUIRE_KUBECONFIG).
    registry: where images are pushed for such a cluster (QUIRE_REGISTRY).
    hub_address: this host as that cluster's pods reach it (QUIRE_HUB_ADDRESS)."""

    cache: Path
    repo: Path
    provider: str | None = None
    kubeconfig: Path | None = None
    registry: str | None = None
    hub_address: str | None = None


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Raises PrerequisiteError for an unknown provider or a kubeconfig that is not there."""
    provider = environ.get("QUIRE_CLUSTER") or None
    if provider is not None and provider not in PROVIDER_NAMES:
        raise PrerequisiteError(
            f"QUIRE_CLUSTER must be one of {', '.join(PROVIDER_NAMES)}, got {provider!r}; unset it "
            "to let the machine decide"
        )
    kubeconfig = _existing_file(environ, "QUIRE_KUBECONFIG")
    if provider == "kubeconfig" and kubeconfig is None:
        raise PrerequisiteError("QUIRE_CLUSTER=kubeconfig needs QUIRE_KUBECONFIG to name a file")
    return Settings(
        cache=Path(environ.get("QUIRE_CACHE") or Path.home() / ".cache" / "quire").absolute(),
        repo=Path(__file__).resolve().parents[3],
        provider=provider,
        kubeconfig=kubeconfig,
        registry=environ.get("QUIRE_REGISTRY") or None,
        hub_address=environ.get("QUIRE_HUB_ADDRESS") or None,
    )


def _existing_file(environ: Mapping[str, str], key: str) -> Path | None:
    value = environ.get(key)
    if not value:
        return None
    path = Path(value).absolute()
    if not path.is_file():
        raise PrerequisiteError(f"{key} must name a file, and {path} is none; correct or unset it")
    return path
