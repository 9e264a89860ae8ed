"""GPUs that data centres have, and the memory that CUDA finds in them. Pure.

`memory_bytes` is the device's total memory as cudaMemGetInfo gives it, which is what `serve` plans
by, and not what the name says: error correction, firmware and driver keep a part. It differs by up
to 1 % between drivers and boards; here stands the least that was found. Source: the line "GPU 0 has
a total capacity of 79.10 GiB" of PyTorch's out-of-memory messages in public issues of 2023 to 2026,
of each type several. `nvidia-smi` and the node label nvidia.com/gpu.memory say up to 4 % more.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches

from quire_engine.errors import ConfigError


@dataclass(frozen=True)
class GpuType:
    """One row of the table."""

    name: str
    memory_bytes: int


def _row(name: str, gibibytes: float) -> GpuType:
    return GpuType(name, int(gibibytes * 1024**3))


GPU_TYPES = (
    _row("T4 16GB", 14.56),
    _row("V100 16GB", 15.77),
    _row("V100 32GB", 31.73),
    _row("A10 24GB", 21.96),
    _row("A10G 24GB", 21.96),
    _row("L4 24GB", 21.96),
    _row("A30 24GB", 23.49),
    _row("A40 48GB", 44.34),
    _row("L40 48GB", 44.34),
    _row("L40S 48GB", 44.34),
    _row("A100 40GB", 39.25),
    _row("A100 80GB", 79.14),
    _row("H100 80GB", 79.10),
    _row("H100 NVL 94GB", 93.02),
    _row("H200 141GB", 139.72),
    _row("B200 180GB", 178.35),
)

# What a node's nvidia.com/gpu.product says besides: NVIDIA-A100-SXM4-80GB, NVIDIA-H100-80GB-HBM3.
_IGNORED = re.compile(r"nvidia|tesla|gpu|pcie|sxm\d?|hbm\d?e?")


def find_gpu(text: str) -> GpuType:
    """The type that `text` names: L4, H100 80GB, a100-80gb, or a node's nvidia.com/gpu.product.

    ConfigError for a name of none or of several.
    """
    asked = {word for word in _words(text) if not _IGNORED.fullmatch(word)}
    found = [gpu for gpu in GPU_TYPES if asked and asked <= _words(gpu.name)]
    if len(found) == 1:
        return found[0]
    names = [gpu.name for gpu in GPU_TYPES]
    meant = [gpu.name for gpu in found] or get_close_matches(text.upper(), names, 3, cutoff=0.5)
    advice = f"take {' or '.join(meant)}" if meant else "take one of these"
    raise ConfigError(
        f"gpu must name one of {', '.join(names)}, got {text!r}; {advice}, or give the memory of "
        "another with --memory"
    )


def smallest_gpu(least_bytes: int) -> GpuType | None:
    """The first of those with the least memory that is enough; None where none has it."""
    enough = [gpu for gpu in GPU_TYPES if gpu.memory_bytes >= least_bytes]
    return min(enough, key=lambda gpu: gpu.memory_bytes, default=None)


def _words(text: str) -> frozenset[str]:
    """In lower case, a bare number as gigabytes."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return frozenset(f"{word}gb" if word.isdigit() else word for word in words)
