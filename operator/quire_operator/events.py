"""Events that we write on an InferenceService: `kubectl describe` shows them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from quire_operator.api import API_VERSION, KIND
from quire_operator.kinds import EVENT, Manifest
from quire_operator.names import Key
from quire_operator.values import timestamp

MAX_MESSAGE = 1024
"""Characters: the API server refuses longer ones."""


@dataclass(frozen=True, slots=True)
class Note:
    """One Event, before it has a time and an object."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def manifest(key: Key, uid: str, note: Note, now: datetime, component: str) -> Manifest:
    """An Event on the InferenceService of this uid, named as client-go does, by the time."""
    time = timestamp(now.timestamp())
    unique = f"{int(now.timestamp() * 1e6):x}-{note.reason.lower()}"
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.kind,
        "metadata": {"name": f"{key.name}.{unique}", "namespace": key.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": key.name,
            "namespace": key.namespace,
            "uid": uid,
        },
        "type": note.type,
        "reason": note.reason,
        "message": note.message[:MAX_MESSAGE],
        "count": 1,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "source": {"component": component},
        "reportingComponent": component,
    }
