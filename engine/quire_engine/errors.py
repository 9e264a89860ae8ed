"""What can go wrong in the engine, and the exit code that each error ends a process with.

    EngineError
    ├── ConfigError            2   a flag or a setting breaks a rule
    │   ├── ModelUnsupported   2   the model's architecture or format is none of ours
    │   ├── AdapterUnusable    2   a LoRA adapter that no fetch of ours brings is missing or broken
    │   └── DoesNotFit         2   the memory plan needs more than there is
    ├── ModelError
    │   ├── ModelMissing      66   no such model folder or file
    │   └── ModelCorrupt      65   a file is truncated, altered or not what its header says
    ├── NoDevice              69   the device asked for is not on this machine
    ├── RequestRefused        --   one request that can never run; it is answered, nothing ends
    ├── FetchFailed           10   `quire-engine fetch` could not complete
    └── CoreDied              70   the core process ended, or broke one of our own invariants

A message is rule + input + way out.
"""

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """How a process of the engine ends; the operator reads it from the pod's status."""

    OK = 0  # finished, or drained after SIGTERM
    USAGE = 2  # bad flags or config; starting again will not help
    FETCH_FAILED = 10  # the termination message names the reason
    MODEL_CORRUPT = 65  # sysexits EX_DATAERR; the operator runs a repairing fetch
    MODEL_MISSING = 66  # sysexits EX_NOINPUT
    NO_DEVICE = 69  # sysexits EX_UNAVAILABLE
    INTERNAL = 70  # sysexits EX_SOFTWARE; the core died


class EngineError(Exception):
    """Root of the engine's own errors. `reason` is CamelCase, as in the termination message."""

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL
    reason: ClassVar[str] = "Internal"


class ConfigError(EngineError):
    """A flag or a setting breaks a rule."""

    exit_code = ExitCode.USAGE
    reason = "BadConfig"


class ModelUnsupported(ConfigError):
    """The model is whole, but its architecture, dtype or file format is none that we run."""

    reason = "UnsupportedModel"


class AdapterUnusable(ConfigError):
    """Files of a LoRA adapter that came not with the model: fetching that again mends nothing."""

    reason = "AdapterUnusable"


class DoesNotFit(ConfigError):
    """The memory plan asks for more than the device has. The message names what would fit."""

    reason = "DoesNotFit"


class ModelError(EngineError):
    """The model's files cannot be used."""


class ModelMissing(ModelError):
    """No model at this path, or one of its files is not there."""

    exit_code = ExitCode.MODEL_MISSING
    reason = "ModelMissing"


class ModelCorrupt(ModelError):
    """A file of the model is truncated, altered or not what its header says."""

    exit_code = ExitCode.MODEL_CORRUPT
    reason = "ModelCorrupt"


class NoDevice(EngineError):
    """The device asked for is not on this machine."""

    exit_code = ExitCode.NO_DEVICE
    reason = "NoDevice"


class RequestRefused(EngineError):
    """One request can never run to its end. It gets an error output; the core goes on."""

    reason = "RequestRefused"


class FetchFailed(EngineError):
    """The model could not be fetched."""

    exit_code = ExitCode.FETCH_FAILED
    reason = "FetchFailed"


class CoreDied(EngineError):
    """The core process ended unasked, or an invariant of ours does not hold."""

    reason = "CoreDied"
