"""What can go wrong in the control plane.

QuireError
├── SettingError            a setting of the process is missing or wrong
├── NotLeader               this replica does not hold the lease: nothing was written
├── OverlayError            spec.podTemplate cannot be merged
├── ConsoleError            `kubectl quire status` or `top` has nothing to show
├── SimulatorError          `kubectl quire simulate` cannot draw its plot
│   └── ScenarioError       its scenario cannot be read
└── ApiError                the API server answered with a status of 400 or more, or not at all
    ├── NotFound            404
    ├── AlreadyExists       409 on create
    ├── Conflict            409: a precondition or a field's owner
    ├── QuotaExceeded       403 with "exceeded quota"
    ├── Denied              403 otherwise: RBAC, a terminating namespace, an admission plugin
    ├── Invalid             400, 422: the object itself is refused
    └── Unavailable         429, 5xx, a broken connection: try again
"""

from __future__ import annotations


class QuireError(Exception):
    """Base of all our errors."""


class SettingError(QuireError):
    """A setting of the process is missing or wrong; the message has key, value and rule."""


class NotLeader(QuireError):
    """This replica does not hold the lease (any more); nothing was written."""


class OverlayError(QuireError):
    """spec.podTemplate cannot be merged over the pod."""


class ConsoleError(QuireError):
    """`kubectl quire status` or `top` has nothing to show; the message is one sentence that says
    why and the way out."""


class SimulatorError(QuireError):
    """`kubectl quire simulate` cannot draw its plot."""


class ScenarioError(SimulatorError):
    """A scenario cannot be read; the message has the path within it, rule, value and way out."""


class ApiError(QuireError):
    """The API server's refusal. `message` is its own text; str() adds the request."""

    def __init__(self, status: int, request: str, message: str, reason: str = "") -> None:
        super().__init__(f"{request}: {status} {reason}: {message}".rstrip(": "))
        self.status = status
        self.message = message
        self.reason = reason


class NotFound(ApiError):
    """404: the object, or its kind, is not there."""


class AlreadyExists(ApiError):
    """409 on create: the name is taken."""


class Conflict(ApiError):
    """409: resourceVersion or uid differ, or another manager owns a field."""


class QuotaExceeded(ApiError):
    """403: a ResourceQuota of the namespace refuses the object."""


class Denied(ApiError):
    """403: RBAC, a terminating namespace or an admission plugin."""


class Invalid(ApiError):
    """400 or 422: the object itself is refused; retrying the same one is of no use."""


class Unavailable(ApiError):
    """429, 5xx or no answer (status 0): worth another try."""


def from_answer(status: int, request: str, message: str, reason: str) -> ApiError:
    """The error for an answer of the API server (a `Status` object's fields)."""
    if status == 403 and "exceeded quota" in message:
        return QuotaExceeded(status, request, message, reason)
    if status == 409:
        kind = AlreadyExists if reason == "AlreadyExists" else Conflict
        return kind(status, request, message, reason)
    kinds: dict[int, type[ApiError]] = {403: Denied, 404: NotFound, 400: Invalid, 422: Invalid}
    return kinds.get(status, Unavailable)(status, request, message, reason)
