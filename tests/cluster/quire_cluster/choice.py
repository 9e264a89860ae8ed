"""Which provider serves: the one that is named, else a given kubeconfig, else kind where a Docker
engine answers, else a cluster of our own."""

from collections.abc import Callable

from quire_cluster.external import ExternalCluster
from quire_cluster.kind import KindCluster, docker_answers
from quire_cluster.netns import NetnsCluster
from quire_cluster.provider import Provider
from quire_cluster.settings import Settings


def provider_name(settings: Settings, has_docker: Callable[[], bool]) -> str:
    """The name alone, so that the rule can be tested without a cluster. `has_docker` is asked only
    when it matters: it starts a program."""
    if settings.provider is not None:
        return settings.provider
    if settings.kubeconfig is not None:
        return "kubeconfig"
    return "kind" if has_docker() else "netns"


def choose(settings: Settings) -> Provider:
    match provider_name(settings, docker_answers):
        case "kubeconfig":
            return ExternalCluster(settings)
        case "kind":
            return KindCluster(settings)
        case _:
            return NetnsCluster(settings)
