"""Last words: one line on stderr, and JSON where Kubernetes reads a container's termination
message.
"""

import logging
import sys
from pathlib import Path

import msgspec

from quire_engine.redaction import ADDRESSES_ONLY, Redactor
from quire_engine.settings import termination_log

logger = logging.getLogger(__name__)


class TerminationMessage(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What the operator reads from a failed container. Commands may say more."""

    reason: str  # CamelCase
    message: str


MAX_BYTES = 4096  # Kubernetes cuts a termination message there


def report_fatal(reason: str, message: str, redact: Redactor = ADDRESSES_ONLY) -> None:
    """Tell why this process ends. Nothing may be written to stderr after it."""
    report_failure(TerminationMessage(reason=reason, message=message), redact)


def report_failure(failure: TerminationMessage, redact: Redactor = ADDRESSES_ONLY) -> None:
    """The same for a failure that says more than reason and message."""
    line = " ".join(redact(failure.message).split())
    path = termination_log()
    if path is not None:
        _write(path, msgspec.structs.replace(failure, message=line))
    sys.stderr.write(f"quire-engine: {line}\n")
    sys.stderr.flush()


def report_success(report: msgspec.Struct) -> None:
    """What a Job that ended well has to say, where its operator reads it."""
    path = termination_log()
    if path is not None:
        _write_bytes(path, msgspec.json.encode(report))


def _write(path: Path, message: TerminationMessage) -> None:
    encoded = msgspec.json.encode(message)
    if len(encoded) > MAX_BYTES:
        spare = len(encoded) - MAX_BYTES
        shorter = message.message.encode()[: -spare - len("…".encode())].decode(errors="ignore")
        encoded = msgspec.json.encode(msgspec.structs.replace(message, message=shorter + "…"))
    _write_bytes(path, encoded)


def _write_bytes(path: Path, encoded: bytes) -> None:
    try:
        path.write_bytes(encoded)
    except OSError as error:
        logger.warning("no termination message path=%s error=%s", path, error)
