"""The one sentence for a cluster, or a service, that cannot be read. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from quire_operator import api
from quire_operator.errors import ApiError, ConsoleError, Denied, NotFound
from quire_operator.names import Key

_RESOURCE = f"{api.PLURAL}.{api.GROUP}"


def about(error: ApiError, namespace: str | None, place: str) -> ConsoleError:
    """Of a request for InferenceServices that the API server at `place` refused, or did not get."""
    if error.status == 401:
        return ConsoleError(
            f"{place} does not accept these credentials (401 {error.message}): log in again, or "
            "choose another --context"
        )
    if isinstance(error, Denied):
        where = f"namespace {namespace}" if namespace else "all namespaces"
        return ConsoleError(
            f"you may not read {_RESOURCE} in {where}: {error.message}; ask for the cluster role "
            "`view` there"
        )
    if isinstance(error, NotFound):
        return ConsoleError(
            f"{place} knows no {_RESOURCE}: quire is not installed there; install its chart, or "
            "choose another --context"
        )
    if error.status == 0:
        return ConsoleError(
            f"{place} gives no answer ({_cause(error)}): is the cluster up, and is this the right "
            "--context?"
        )
    return ConsoleError(f"{place} refuses ({error.status} {error.message}): try again")


def _cause(error: ApiError) -> str:
    """In the words of what broke; a deadline that passed has none."""
    cause = error.__cause__ or error
    return str(cause) or type(cause).__name__


def is_unknown_kind(error: NotFound, name: str) -> bool:
    """Whether the definition is missing, rather than the object. An object's 404 names it."""
    return f'"{name}"' not in error.message


def no_such(key: Key, names: Sequence[str] | None) -> ConsoleError:
    """`names`: the services that there are in the namespace; None: they cannot be listed."""
    said = f"there is no InferenceService {key.name} in namespace {key.namespace}"
    if names is None:
        return ConsoleError(f"{said}; give another namespace by -n")
    if not names:
        return ConsoleError(f"{said}, nor any other; give another namespace by -n")
    near = difflib.get_close_matches(key.name, names, n=1)
    if near:
        return ConsoleError(f"{said}; did you mean {near[0]}?")
    shown = ", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "")
    return ConsoleError(f"{said}; there are: {shown}")


def no_status(key: Key, age: str) -> ConsoleError:
    """Nobody has looked at it."""
    return ConsoleError(
        f"{key} was made {age} ago and has no status: no operator of quire looks at it; see "
        "whether one runs (kubectl get deployments -A -l app.kubernetes.io/name=quire) and watches "
        f"namespace {key.namespace}"
    )
