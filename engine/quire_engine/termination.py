"""Last words: one line on stderr, and JSON where Kubernetes reads a container's termination
message.
"""

import logging
import sys
from pathlib import Path

import msgspec

from quire_engine.settings import termination_log

logger = logging.getLogger(__name__)


class TerminationMessage(msgspec.Struct, frozen=True):
    """What the operator reads from a failed container."""

    reason: str  # CamelCase
    message: str


MAX_BYTES = 4096  # Kubernetes cuts a termination message there


def report_fatal(reason: str, message: str) -> None:
    """Tell why this process ends. Nothing may be written to stderr after it."""
    line = " ".join(message.split())
    path = termination_log()
    if path is not None:
        _write(path, TerminationMessage(reason, line))
    sys.stderr.write(f"quire-engine: {line}\n")
    sys.stderr.flush()


def _write(path: Path, message: TerminationMessage) -> None:
    encoded = msgspec.json.encode(message)
    if len(encoded) > MAX_BYTES:
        spare = len(encoded) - MAX_BYTES
        shorter = message.message.encode()[: -spare - len("…".encode())].decode(errors="ignore")
        encoded = msgspec.json.encode(TerminationMessage(message.reason, shorter + "…"))
    try:
        path.write_bytes(encoded)
    except OSError as error:
        logger.warning("no termination message path=%s error=%s", path, error)
