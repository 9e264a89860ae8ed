"""The environment, read once."""

import functools
import os
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

from quire_kernels.errors import KernelSettingError

Implementation: TypeAlias = Literal["auto", "cpp", "torch"]
Isa: TypeAlias = Literal["avx2", "avx512"]


@dataclass(frozen=True)
class KernelSettings:
    """How the CPU path is chosen."""

    implementation: Implementation = "auto"  # QUIRE_KERNELS; cpp fails where no variant runs
    isa: Isa | None = None  # QUIRE_ISA; None takes the widest that this processor has


def read_settings(environ: "os._Environ[str] | dict[str, str]") -> KernelSettings:
    """Settings from environment variables.

    Raises:
        KernelSettingError: a value is not one of those allowed.
    """
    implementation = environ.get("QUIRE_KERNELS") or "auto"
    isa = environ.get("QUIRE_ISA") or None
    if implementation not in get_args(Implementation):
        raise KernelSettingError(
            f"QUIRE_KERNELS must be one of auto, cpp, torch, got {implementation!r}; "
            "unset it for auto"
        )
    if isa is not None and isa not in get_args(Isa):
        raise KernelSettingError(
            f"QUIRE_ISA must be one of {', '.join(get_args(Isa))}, got {isa!r}; "
            "unset it for the widest that this processor has"
        )
    return KernelSettings(cast(Implementation, implementation), cast("Isa | None", isa))


@functools.cache
def settings() -> KernelSettings:
    """This process's settings."""
    return read_settings(os.environ)
