"""Where a service's own address leads while none of its pods is ready. Pure.

A service that may sleep (`scaling.idleSecondsToZero`, and a gateway is configured) has, beside the
EndpointSlices of its selector, one of ours that leads to the gateway's pods:

    wanted     while spec.replicas is 0, or its address leads to no pod of its own
    before 0   the last pods go once the slice is there, and stay as long as it cannot be
    after 0    the slice goes once the selector's own slices have a ready endpoint

The gateway has no pod ready: there is no slice, and who asks a sleeping service is refused at once.
"""

from __future__ import annotations

from quire_operator import children
from quire_operator.kinds import Manifest
from quire_operator.observe import Observation


def may_sleep(seen: Observation) -> bool:
    """Whether its requests are to be held while no pod is there."""
    return seen.spec.scaling.idle_seconds_to_zero is not None and seen.gateway is not None


def wanted(seen: Observation) -> Manifest | None:
    """Our slice as it is to be now; None for none.

    Only with a port that status tells already: the gateway listens where status says.
    """
    port, gateway = seen.gateway_port, seen.gateway
    if not may_sleep(seen) or gateway is None or not gateway.addresses:
        return None
    if port is None or port != seen.service.status.gateway_port:
        return None
    if seen.spec.replicas > 0 and seen.is_answered:
        return None
    return children.gateway_slice(seen.key, seen.uid, port, gateway)


def stands(seen: Observation) -> bool:
    """Whether requests that find no pod reach the gateway."""
    manifest, live = wanted(seen), seen.route
    if manifest is None or live is None or live.meta.deleting:
        return False
    return children.holds(live, manifest)


def lets_go(seen: Observation) -> bool:
    """Whether the last pods may go."""
    return not may_sleep(seen) or stands(seen)


def words(seen: Observation) -> str:
    """Of a service at zero replicas: who answers now, and what brings it back."""
    idle = seen.spec.scaling.idle_seconds_to_zero
    if idle is None:
        writer = seen.service.replicas_writer
        by = f" (written by {writer})" if writer else ""
        return f"spec.replicas is 0{by}: no pod runs; set it to 1 or more to serve"
    if seen.gateway is None:
        return (
            "spec.replicas is 0 and no gateway is configured (the chart's gateway.serviceName), so "
            "that no request wakes it; set spec.replicas to 1 or more to serve"
        )
    if stands(seen):
        return (
            "asleep: the gateway holds the next request and wakes it "
            f"(scaling.idleSecondsToZero is {idle})"
        )
    return _unrouted(seen, seen.gateway.addresses)


def _unrouted(seen: Observation, addresses: tuple[str, ...]) -> str:
    why = (
        "its address does not lead to the gateway yet"
        if addresses
        else "the gateway has no ready pod that would hold its requests"
    )
    left = sum(not pod.ended for pod in seen.pods)
    if any(deployment.replicas for deployment in seen.deployments):
        return (
            f"spec.replicas is 0, but {why}: {left} of its pods stay until then; remove "
            "scaling.idleSecondsToZero to stop them now"
        )
    return f"asleep, and {why}: until then requests are refused, or set spec.replicas to 1 or more"
